"""Private hooks do what they say; versions without them are refused."""

import keras
import numpy as np
import pytest

from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import gradient_reduction
from robust_tf.distribute.hooks import heartbeat
from robust_tf.distribute.hooks import loss_scale
from robust_tf.distribute.hooks import multi_worker_fit
from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks import worker_calls
from robust_tf.distribute.hooks import xla
from robust_tf.distribute.hooks.strategies import StrategyKind
from robust_tf.training import child_processes
from tests.robust_tf.server_network import server_network
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf


class TaggingOps(tf.distribute.ReductionToOneDevice):
  """Keeps whose gradients each batch holds, and sums as usual."""

  def __init__(self):
    super().__init__()
    self.batches = []
    self.checked = []

  def check_optimizer(self, optimizer):
    self.checked.append(optimizer)

  def batch_reduce_implementation(
    self, reduce_op, value_destination_pairs, options
  ):
    self.batches.append(
      (gradient_reduction.reducing_gradients_of(), len(value_destination_pairs))
    )
    return super().batch_reduce_implementation(
      reduce_op, value_destination_pairs, options
    )


def mirrored(ops):
  return tf.distribute.MirroredStrategy(DEVICES, cross_device_ops=ops)


def fit(strategy, layers, optimizer):
  with strategy.scope():
    model = keras.Sequential([keras.Input((5,)), *layers()])
    model.compile(optimizer(), "mse", metrics=["mae"])
  model.fit(np.ones((16, 5)), np.ones((16, 1)), batch_size=8, verbose=0)
  return model


@pytest.mark.parametrize(
  ("path", "parameters", "found"),
  [
    ("keras.optimizers.Optimizer._gone", (), "is not there"),
    ("tensorflow.python.gone.function", ("self",), "is not there"),
    # `stateless_apply(self, optimizer_variables, grads, trainable_variables)`.
    (
      "keras.optimizers.Optimizer.stateless_apply",
      ("self", "optimizer_variables", "grads"),
      r"takes \(self, optimizer_variables, grads, trainable_variables\)",
    ),
    (
      "keras.optimizers.Optimizer.stateless_apply",
      ("self", "gradients"),
      r"takes \(self, optimizer_variables,",
    ),
  ],
)
def test_missing_part_is_an_error_that_names_hook_and_versions(
  path, parameters, found
):
  with pytest.raises(ValueError, match=found) as raised:
    private.find("robust_tf.distribute.hooks.loss_scale", path, parameters)
  message = str(raised.value)
  assert f"the hook loss_scale of robust_tf needs {path}" in message
  assert tf.__version__ in message
  assert keras.__version__ in message


def test_part_may_have_more_arguments_if_they_have_defaults():
  path = "keras.optimizers.Optimizer.apply"
  found = private.find("hooks.hook", path, ("self", "grads"))
  assert found is keras.optimizers.Optimizer.apply


def test_missing_attribute_is_an_error_that_names_its_class():
  with pytest.raises(ValueError, match=r"needs keras\..*\.SGD\._gone, which"):
    private.attribute("hooks.hook", keras.optimizers.SGD(), "_gone")


def test_other_backend_is_refused(monkeypatch):
  monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
  with pytest.raises(ValueError, match="'jax'.*KERAS_BACKEND=tensorflow"):
    hooks.install()


def test_hook_changes_nothing_twice():
  hooks.install(loss_scale)
  changed = keras.optimizers.LossScaleOptimizer.check_finite
  hooks.install(loss_scale)
  assert keras.optimizers.LossScaleOptimizer.check_finite is changed


class ReducingElsewhere(keras.optimizers.SGD):
  """Stands for a Keras whose `apply` calls the reduction by another name."""

  def apply(self, grads, trainable_variables=None):
    del grads, trainable_variables


def test_optimizer_that_reduces_elsewhere_is_an_error():
  optimizer = gradient_reduction.without_gradient_reduction(
    ReducingElsewhere(1.0)
  )
  with pytest.raises(ValueError, match="which `apply` does not call"):
    gradient_reduction.apply_as_given(optimizer, [tf.ones(2)], [None])


def test_ops_that_the_strategy_does_not_show_are_an_error():
  with mirrored(TaggingOps()).scope():
    with pytest.raises(ValueError, match="which is not what reduces"):
      strategies.check_used(TaggingOps())


def test_kind_without_strategy_is_none():
  assert strategies.strategy_kind() is StrategyKind.NONE


@pytest.mark.parametrize(
  ("strategy", "kind"),
  [
    (lambda: mirrored(None), StrategyKind.MIRRORED),
    (lambda: tf.distribute.OneDeviceStrategy("CPU:0"), StrategyKind.OTHER),
    (
      tf.distribute.experimental.CentralStorageStrategy,
      StrategyKind.OTHER,
    ),
  ],
)
def test_kind_is_that_of_the_strategy(strategy, kind):
  strategy = strategy()
  assert strategies.strategy_kind(strategy) is kind
  with strategy.scope():
    assert strategies.strategy_kind() is kind
    found = strategy.run(
      lambda: tf.constant(strategies.strategy_kind() is kind)
    )
  assert all(strategy.experimental_local_results(found))


# Servers and collective ops, which a process keeps once it has them.
PARAMETER_SERVERS = """
import sys
import tensorflow as tf
from robust_tf.distribute.hooks import strategies

cluster = {"ps": [sys.argv[1]], "worker": [sys.argv[2]]}
servers = [tf.distribute.Server(cluster, job, 0) for job in cluster]
strategy = tf.distribute.ParameterServerStrategy(
  tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec(cluster), rpc_layer="grpc"
  )
)
print(strategies.strategy_kind(strategy).name)
"""
MULTI_WORKER = """
import tensorflow as tf
from robust_tf.distribute.hooks import strategies

strategy = tf.distribute.MultiWorkerMirroredStrategy()
print(strategies.strategy_kind(strategy).name)
"""


def test_kind_with_parameter_servers_is_seen():
  addresses = child_processes.free_addresses(2)
  with server_network() as prefix:
    result = run_script(PARAMETER_SERVERS, *addresses, prefix=prefix)
  assert result.stdout.split() == ["PARAMETER_SERVER"], result.stderr


def test_kind_with_several_processes_is_seen():
  result = run_script(MULTI_WORKER)
  assert result.stdout.split() == ["MULTI_WORKER"], result.stderr


def test_replica_devices_are_in_order():
  assert strategies.local_replica_devices(mirrored(None)) == DEVICES


def test_cross_device_ops_are_those_of_the_strategy():
  ops = tf.distribute.ReductionToOneDevice()
  assert strategies.cross_device_ops(mirrored(ops)) is ops
  one = tf.distribute.OneDeviceStrategy("CPU:0")
  assert strategies.cross_device_ops(one) is None


def test_xla_is_seen_while_a_function_is_traced():
  seen = []

  def function(x):
    seen.append(xla.in_xla())
    return x

  tf.function(function, jit_compile=True)(tf.constant(1.0))
  tf.function(function)(tf.constant(1.0))
  assert seen == [True, False]
  assert not xla.in_xla()


def test_optimizer_without_reduction_applies_what_each_replica_gives():
  strategy = mirrored(tf.distribute.ReductionToOneDevice())
  with strategy.scope():
    variable = keras.Variable(np.zeros(2, np.float32))
    optimizer = gradient_reduction.without_gradient_reduction(
      keras.optimizers.SGD(1.0)
    )

  @tf.function
  def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    gradient = tf.fill([2], 1.0 + tf.cast(replica, tf.float32))
    optimizer.apply([gradient], [variable])

  strategy.run(step)
  replicas = strategy.experimental_local_results(variable.value)
  assert [x.numpy().tolist() for x in replicas] == [
    [-1.0 - i, -1.0 - i] for i in range(4)
  ]


def test_optimizer_without_reduction_is_copied_whole():
  optimizer = gradient_reduction.without_gradient_reduction(
    keras.optimizers.SGD(1.0)
  )
  copy = keras.optimizers.SGD.from_config(optimizer.get_config())
  assert gradient_reduction.reduces_by_itself(optimizer)
  assert not gradient_reduction.reduces_by_itself(copy)


@pytest.mark.parametrize(
  ("optimizer", "error", "match"),
  [
    (lambda: "sgd", TypeError, "must be a Keras optimizer, got str"),
    (
      lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
      ValueError,
      "wrap the aggregating optimizer in it",
    ),
  ],
)
def test_what_cannot_do_without_reduction_is_refused(optimizer, error, match):
  with pytest.raises(error, match=match):
    gradient_reduction.without_gradient_reduction(optimizer())


def test_subclass_that_reduces_by_itself_is_seen():
  class Own(keras.optimizers.SGD):
    def _all_reduce_sum_gradients(self, grads_and_vars):
      return grads_and_vars

  assert gradient_reduction.reduces_by_itself(Own())


@pytest.mark.parametrize(
  ("optimizer", "inner"),
  [
    (keras.optimizers.SGD, lambda x: x),
    (
      lambda: keras.optimizers.Adam(
        clipnorm=1.0, weight_decay=0.1, use_ema=True
      ),
      lambda x: x,
    ),
    (
      lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
      lambda x: x.inner_optimizer,
    ),
  ],
)
def test_gradients_are_tagged_and_nothing_else(optimizer, inner):
  ops = TaggingOps()
  hooks.install(gradient_reduction)
  model = fit(
    mirrored(ops),
    lambda: [
      keras.layers.Dense(3),
      keras.layers.BatchNormalization(synchronized=True),
      keras.layers.Dense(1),
    ],
    optimizer,
  )
  whose = inner(model.optimizer)
  gradients = [size for found, size in ops.batches if found is not None]
  others = [size for found, size in ops.batches if found is None]
  assert {x for x, _ in ops.batches} == {None, whose}
  assert set(gradients) == {len(model.trainable_variables)}
  assert others  # of synchronised batch normalisation
  assert set(ops.checked) == {whose}
  assert gradient_reduction.reducing_gradients_of() is None


def test_single_gradient_is_tagged():
  ops = TaggingOps()
  hooks.install(gradient_reduction)
  model = fit(
    mirrored(ops),
    lambda: [keras.layers.Dense(1, use_bias=False)],
    keras.optimizers.SGD,
  )
  assert {x for x, _ in ops.batches} == {model.optimizer}


def test_variables_without_gradients_are_left_out():
  ops = TaggingOps()
  hooks.install(gradient_reduction)
  strategy = mirrored(ops)
  with strategy.scope():
    variables = [keras.Variable(np.zeros(2)) for _ in range(3)]
    optimizer = keras.optimizers.SGD(1.0)

  @tf.function
  def step():
    gradients = [tf.ones(2), None, tf.ones(2)]
    optimizer.apply(gradients, variables)

  with pytest.warns(UserWarning, match="Gradients do not exist"):
    strategy.run(step)
  assert {size for _, size in ops.batches} == {2}
  assert [x.numpy().tolist() for x in variables] == [
    [-4.0, -4.0],
    [0.0, 0.0],
    [-4.0, -4.0],
  ]


def test_other_ops_are_left_alone():
  hooks.install(gradient_reduction)
  strategy = mirrored(tf.distribute.ReductionToOneDevice())
  with strategy.scope():
    variable = keras.Variable(np.zeros(2, np.float32))
    optimizer = keras.optimizers.SGD(1.0)
  strategy.run(tf.function(lambda: optimizer.apply([tf.ones(2)], [variable])))
  assert variable.numpy().tolist() == [-4.0, -4.0]


def test_tag_is_left_when_a_reduction_fails():
  with pytest.raises(KeyError), gradient_reduction.gradients_of("optimizer"):
    assert gradient_reduction.reducing_gradients_of() == "optimizer"
    raise KeyError
  assert gradient_reduction.reducing_gradients_of() is None


def test_multi_worker_fit_is_allowed_once_and_changes_no_other_strategy():
  trained = []
  for _ in range(2):
    keras.utils.set_random_seed(1)
    model = fit(
      mirrored(tf.distribute.ReductionToOneDevice()),
      lambda: [keras.layers.Dense(1)],
      keras.optimizers.SGD,
    )
    trained.append((model.get_weights(), keras.Model._maybe_symbolic_build))
    hooks.install(multi_worker_fit)
  hooks.install(multi_worker_fit)
  (before, _), (after, changed) = trained
  assert keras.Model._maybe_symbolic_build is changed
  for x, y in zip(before, after, strict=True):
    np.testing.assert_array_equal(x, y)


def test_patience_needs_a_time_and_workers(monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  with pytest.raises(ValueError, match="heartbeat_timeout_s=0 must be above 0"):
    heartbeat.bear_with_slow_links(0)
  with pytest.raises(ValueError, match="TF_CONFIG names no workers"):
    heartbeat.bear_with_slow_links()


@pytest.mark.parametrize(
  ("job", "is_worker", "is_parameter_server"),
  [("worker", True, False), ("ps", False, True), ("chief", False, False)],
)
def test_errors_say_whose_loss_they_are(job, is_worker, is_parameter_server):
  message = (
    "Socket closed\nAdditional GRPC error information from remote target"
    f" /job:{job}/replica:0/task:1 while calling /tensorflow.eager.EagerService"
  )
  lost = tf.errors.UnavailableError(None, None, message)
  assert worker_calls.is_worker_failure(lost) == is_worker
  assert worker_calls.is_parameter_server_failure(lost) == is_parameter_server
  # What a task does wrong is neither.
  wrong = tf.errors.InvalidArgumentError(None, None, message)
  assert not worker_calls.is_worker_failure(wrong)
  assert not worker_calls.is_parameter_server_failure(wrong)
