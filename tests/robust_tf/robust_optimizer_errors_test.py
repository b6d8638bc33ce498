"""What RobustOptimizer refuses, and the one line with which it does."""

import functools

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustOptimizer
from robust_tf import ValidationLoss
from robust_tf.attacks import Byzantine
from tests import tensorflow_setup
from tests.robust_tf import replicas
from tests.robust_tf.server_network import server_network

ZENO = functools.partial(aggregators.zeno, num_suspected=1)


def make(
  inner=None, aggregator=aggregators.median, workers_per_replica=4, **kwargs
):
  return RobustOptimizer(
    inner or keras.optimizers.SGD(0.1),
    aggregator,
    workers_per_replica=workers_per_replica,
    **kwargs,
  )


def small_model():
  return keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])


def validation_loss():
  data = tf.data.Dataset.from_tensors((np.zeros((3, 2)), np.zeros((3, 1))))
  return ValidationLoss(small_model(), "mse", data)


def test_inner_that_is_no_optimizer_is_refused():
  with pytest.raises(TypeError, match="'adam': give a Keras optimizer"):
    make("adam")


def test_wrapping_twice_is_refused():
  with pytest.raises(ValueError, match="aggregated twice"):
    make(make())


def test_loss_scale_optimizer_inside_is_refused():
  inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
  with pytest.raises(ValueError, match="put it around the RobustOptimizer"):
    make(inner)


@pytest.mark.parametrize(
  ("setting", "advice"),
  [
    ({"gradient_accumulation_steps": 2}, "set it on the RobustOptimizer"),
    ({"loss_scale_factor": 2.0}, "put a LossScaleOptimizer around"),
  ],
)
def test_inner_settings_that_cannot_work_are_refused(setting, advice):
  with pytest.raises(ValueError, match=advice):
    make(keras.optimizers.SGD(0.1, **setting))


def test_ema_overwrite_frequency_is_refused_under_a_strategy_alone():
  settings = {"use_ema": True, "ema_overwrite_frequency": 3}
  make(keras.optimizers.SGD(0.1, **settings))
  with (
    replicas.mirrored(4).scope(),
    pytest.raises(ValueError, match="ema_overwrite_frequency=3"),
  ):
    make(keras.optimizers.SGD(0.1, **settings), workers_per_replica=None)


def test_settings_inside_a_multi_optimizer_are_refused():
  part = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
  optimizer = make(keras.optimizers.MultiOptimizer(lambda variable: part))
  with pytest.raises(ValueError, match="gradient_accumulation_steps=2"):
    optimizer.build([keras.Variable(np.zeros(1, np.float32))])


def test_built_optimizer_is_refused():
  inner = keras.optimizers.SGD(0.1)
  inner.build([keras.Variable(np.zeros(1, np.float32))])
  with pytest.raises(ValueError, match="wrap a new optimizer"):
    make(inner)


@pytest.mark.parametrize(
  ("aggregator", "error", "message"),
  [
    ("median", TypeError, "'median' is no callable"),
    (
      functools.partial(aggregators.trimmed_mean, 1),
      ValueError,
      "by position, where the updates go",
    ),
    (
      functools.partial(aggregators.trimmed_mean, trim=2),
      ValueError,
      "trim=2 needs at least 5 updates, got 4",
    ),
    (lambda rows: rows, ValueError, r"<lambda> returned float32 \(4, None\)"),
    (
      lambda rows: tf.reduce_mean(rows),
      ValueError,
      r"must return float32 \(None,\)",
    ),
    (
      lambda rows: tf.cast(rows[0], tf.float64),
      ValueError,
      "returned float64",
    ),
    (ZENO, ValueError, "validation_loss=ValidationLoss"),
  ],
)
def test_rules_that_cannot_work_are_refused(aggregator, error, message):
  with pytest.raises(error, match=message):
    make(aggregator=aggregator)


def test_too_few_replicas_are_refused_at_once():
  with (
    replicas.mirrored(2).scope(),
    pytest.raises(ValueError, match="needs at least 3 updates, got 2"),
  ):
    make(
      aggregator=functools.partial(aggregators.trimmed_mean, trim=1),
      workers_per_replica=None,
    )


def test_wrong_length_of_an_aggregate_is_refused_when_it_is_known():
  def too_short(rows):
    return rows[0][:2]

  found = replicas.Problem(
    lambda: make(aggregator=too_short, workers_per_replica=2),
    [np.zeros(3, np.float32)],
    rows=2,
  )
  with pytest.raises(ValueError, match=r"must return float32 \(3,\)"):
    found.step([np.zeros((2, 3), np.float32)])


def test_validation_loss_for_another_rule_is_refused():
  with pytest.raises(ValueError, match="not for median: leave it out"):
    make(validation_loss=validation_loss())


def test_validation_loss_of_a_wrong_type_is_refused():
  with pytest.raises(TypeError, match="must be a ValidationLoss"):
    make(aggregator=ZENO, validation_loss="mse")


def test_zeno_of_several_learning_rates_is_refused():
  inner = keras.optimizers.MultiOptimizer(lambda variable: None)
  with pytest.raises(ValueError, match="has several: wrap one optimizer"):
    make(inner, ZENO, validation_loss=validation_loss())


def test_byzantine_worker_out_of_range_is_refused():
  byzantine = Byzantine(workers=(4,), attack=attacks.sign_flip)
  with pytest.raises(ValueError, match="worker 4 is not one of the 4 workers"):
    make(byzantine=byzantine)


def test_byzantine_of_a_wrong_type_is_refused():
  with pytest.raises(
    TypeError, match="byzantine=3 must be a robust_tf.Byzantine"
  ):
    make(byzantine=3)


@pytest.mark.parametrize(
  ("setting", "error", "message"),
  [
    ({"workers_per_replica": 0}, ValueError, "workers_per_replica=0 must be 1"),
    ({"workers_per_replica": 2.0}, TypeError, "workers_per_replica=2.0 must"),
    (
      {"gradient_accumulation_steps": 1},
      ValueError,
      "gradient_accumulation_steps=1 must be 2",
    ),
    ({"clipnorm": 0.0}, ValueError, "clipnorm=0.0 must be above 0"),
    ({"clipvalue": -1.0}, ValueError, "clipvalue=-1.0 must be above 0"),
    ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "Only one of"),
  ],
)
def test_numbers_out_of_range_are_refused(setting, error, message):
  with pytest.raises(error, match=message):
    make(**setting)


def test_single_worker_is_refused_when_it_trains():
  variable = keras.Variable(np.zeros(1, np.float32))
  optimizer = make(workers_per_replica=None)
  optimizer.build([variable])
  with pytest.raises(ValueError, match="has 1 worker"):
    optimizer.apply([np.zeros(1, np.float32)], [variable])


def test_other_strategy_than_it_was_made_under_is_refused():
  optimizer = make()
  with replicas.mirrored(4).scope():
    model = small_model()
    model.compile(optimizer, "mse")
  with pytest.raises(ValueError, match="inside strategy.scope()"):
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), batch_size=4, verbose=0)


def test_apply_outside_the_replicas_is_refused():
  with replicas.mirrored(4).scope():
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = make(workers_per_replica=None)
    with pytest.raises(ValueError, match="a function that strategy.run runs"):
      optimizer.apply([tf.zeros(1)], [variable])


def test_jit_compile_under_a_strategy_is_refused():
  with replicas.mirrored(2).scope():
    model = small_model()
    model.compile(make(workers_per_replica=None), "mse", jit_compile=True)
  with pytest.raises(ValueError, match="jit_compile=False"):
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), batch_size=4, verbose=0)


def test_gradients_of_other_workers_than_expected_are_refused():
  model = small_model()
  model.compile(make(workers_per_replica=4), "mse")
  with pytest.raises(ValueError, match=r"not \(4, 2, 1\): workers_per_replica"):
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), batch_size=4, verbose=0)


def test_one_device_strategy_is_refused():
  with (
    tf.distribute.OneDeviceStrategy("CPU:0").scope(),
    pytest.raises(ValueError, match="under OneDeviceStrategy is not supported"),
  ):
    make()


PARAMETER_SERVER = """
import socket

import keras
import tensorflow as tf

from robust_tf import RobustOptimizer
from robust_tf import aggregators

sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
ports = [s.getsockname()[1] for s in sockets]
for s in sockets:
  s.close()
cluster = tf.train.ClusterSpec(
  {"ps": [f"localhost:{ports[0]}"], "worker": [f"localhost:{ports[1]}"]}
)
servers = [
  tf.distribute.Server(cluster, job_name=job, task_index=0, protocol="grpc")
  for job in cluster.jobs
]
strategy = tf.distribute.ParameterServerStrategy(
  tf.distribute.cluster_resolver.SimpleClusterResolver(
    cluster, rpc_layer="grpc"
  )
)
with strategy.scope():
  try:
    RobustOptimizer(keras.optimizers.SGD(0.1), aggregators.median)
  except ValueError as error:
    print("refused:", error)
"""


def test_parameter_server_strategy_is_refused():
  # A process of its own: such a strategy hangs where devices are configured.
  with server_network() as prefix:
    done = tensorflow_setup.run_script(PARAMETER_SERVER, prefix=prefix)
  assert done.returncode == 0, done.stderr
  assert "refused: under ParameterServerStrategy" in done.stdout
  assert "let the coordinator do it" in done.stdout
