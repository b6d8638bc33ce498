"""What the optimizers with local models refuse, and with what words."""

from tests.tensorflow_setup import tf  # isort: skip

import keras
import numpy as np
import pytest

import robust_tf
from robust_tf import VectorizedWorkers
from robust_tf.compressors import GRBS
from robust_tf.compressors import TopK
from tests import tensorflow_setup
from tests.robust_tf import replicas
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.robust_tf.server_network import server_network

NAMES = (
  "AdaAlter",
  "CSEA",
  "CSER",
  "CSER_PL",
  "ErrorFeedbackSGD",
  "LocalAdaAlter",
  "LocalSGD",
  "QSparseLocalSGD",
)
PERIODIC = ("CSER", "CSER_PL", "LocalAdaAlter", "LocalSGD", "QSparseLocalSGD")
WITH_MOMENTUM = tuple(name for name in NAMES if "AdaAlter" not in name)
COMPRESSING = ("CSEA", "CSER_PL", "ErrorFeedbackSGD", "QSparseLocalSGD")


def make(name, **kwargs):
  return getattr(robust_tf, name)(0.1, **kwargs)


@pytest.mark.parametrize("name", PERIODIC)
@pytest.mark.parametrize(
  ("period", "error", "message"),
  [
    (0, ValueError, "sync_period=0 must be 1 or more"),
    (-3, ValueError, "sync_period=-3 must be 1 or more"),
    (2.0, TypeError, "sync_period=2.0 must be an integer"),
    (True, TypeError, "sync_period=True must be an integer"),
    (None, TypeError, "sync_period=None must be an integer"),
  ],
)
def test_period_that_is_none_is_refused(name, period, error, message):
  with pytest.raises(error, match=message):
    make(name, sync_period=period)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_out_of_range_is_refused(name, momentum):
  with pytest.raises(ValueError, match="must be at least 0 and below 1"):
    make(name, momentum=momentum)


@pytest.mark.parametrize("name", COMPRESSING)
@pytest.mark.parametrize("compressor", ["top_k", 8, TopK, None])
def test_other_than_a_compressor_is_refused(name, compressor):
  with pytest.raises(TypeError, match="^compressor=.* is no compressor of"):
    make(name, compressor=compressor)


@pytest.mark.parametrize(
  "argument", ["reset_compressor", "gradient_compressor"]
)
def test_cser_names_the_compressor_that_is_none(argument):
  with pytest.raises(TypeError, match=f"^{argument}=0.5 is no compressor"):
    make("CSER", **{argument: 0.5})


@pytest.mark.parametrize(
  "argument", ["reset_compressor", "gradient_compressor"]
)
def test_released_code_needs_compressors_for_all_reduce(argument):
  with pytest.raises(ValueError, match=rf"{argument}=TopK\(ratio=4\)"):
    make("CSER", released_code=True, **{argument: TopK(4)})


@pytest.mark.parametrize("name", ["AdaAlter", "LocalAdaAlter"])
@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ({"initial_accumulator_value": -1.0}, "value=-1.0 must be at least 0"),
    ({"epsilon": -0.5}, "epsilon=-0.5 must be at least 0"),
    ({"epsilon": 0, "initial_accumulator_value": 0}, "would divide by 0"),
  ],
)
def test_denominators_out_of_range_are_refused(name, setting, message):
  with pytest.raises(ValueError, match=message):
    make(name, **setting)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  ("setting", "error", "message"),
  [
    ({"workers_per_replica": 0}, ValueError, "workers_per_replica=0 must be"),
    ({"workers_per_replica": 2.0}, TypeError, "workers_per_replica=2.0 must"),
    ({"clipnorm": 0.0}, ValueError, "clipnorm=0.0 must be above 0"),
    ({"clipvalue": -1.0}, ValueError, "clipvalue=-1.0 must be above 0"),
    ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "Only one of"),
  ],
)
def test_numbers_out_of_range_are_refused(name, setting, error, message):
  with pytest.raises(error, match=message):
    make(name, **setting)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  "argument",
  ["use_ema", "gradient_accumulation_steps", "loss_scale_factor"],
)
def test_what_cannot_be_had_is_no_argument(name, argument):
  with pytest.raises(TypeError, match=argument):
    make(name, **{argument: 2})


def test_ratio_above_the_number_of_coordinates_is_refused():
  # The network has 26.
  model = compiled(lambda: make("CSEA", compressor=GRBS(32)))
  with pytest.raises(ValueError, match="ratio=32 .* got 26; lower the ratio"):
    fit(model)


@pytest.mark.parametrize("name", NAMES)
def test_one_device_strategy_is_refused(name):
  with (
    tf.distribute.OneDeviceStrategy("CPU:0").scope(),
    pytest.raises(
      ValueError, match=f"{name} under OneDeviceStrategy is not supported"
    ),
  ):
    make(name)


def test_other_strategy_than_it_was_made_under_is_refused():
  optimizer = make("LocalSGD")
  with replicas.mirrored(2).scope():
    model = network()
    model.compile(optimizer, "mse")
  with pytest.raises(
    ValueError, match=r"LocalSGD was made under .*: make it, .*scope\(\)"
  ):
    fit(model)


def test_use_outside_the_strategy_it_was_made_under_is_refused():
  with replicas.mirrored(2).scope():
    optimizer = make("LocalSGD")
  model = network()
  model.compile(optimizer, "mse")
  with pytest.raises(ValueError, match="LocalSGD was made under Mirrored"):
    fit(model)


def test_variables_made_outside_the_scope_are_refused():
  with replicas.mirrored(2).scope():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(make("LocalSGD"), "mse")
  model.build((None, 3))
  with pytest.raises(ValueError, match="kernel is no part of any replica: m"):
    fit(model)


def test_apply_outside_the_replicas_is_refused():
  with replicas.mirrored(2).scope():
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = make("LocalSGD")
    with pytest.raises(ValueError, match="a function that strategy.run runs"):
      optimizer.apply([tf.zeros(1)], [variable])


def problem(**kwargs):
  """Returns an optimizer that did a step, and its variables."""
  variables = [keras.Variable(np.ones(3, np.float32)) for _ in range(2)]
  optimizer = make("LocalSGD", **kwargs)
  optimizer.apply([tf.ones(3), tf.ones(3)], variables)
  return optimizer, variables


def test_other_variables_than_it_was_built_for_are_refused():
  optimizer, variables = problem()
  with pytest.raises(ValueError, match="built for 2 variables and is given 1"):
    optimizer.apply([tf.ones(3)], variables[:1])
  with pytest.raises(ValueError, match="is given 2, not the same"):
    optimizer.apply([tf.ones(3)] * 2, variables[::-1])


def test_gradients_of_other_variables_than_before_are_refused():
  optimizer, variables = problem()
  with pytest.raises(ValueError, match="gradients of other variables than"):
    optimizer.apply([None, tf.ones(3)], variables)


def test_no_gradient_at_all_is_refused():
  variable = keras.Variable(np.ones(3, np.float32))
  with pytest.raises(ValueError, match="no variable bears on the loss"):
    make("LocalSGD").apply([None], [variable])


def test_freezing_a_layer_needs_a_new_optimizer():
  model = network()
  model.compile(make("LocalSGD"), "mse")
  fit(model)
  model.layers[0].trainable = False
  model.compile(model.optimizer, "mse")
  with pytest.raises(ValueError, match="compile the model again, with a new"):
    fit(model)


def test_jit_compile_under_a_strategy_is_refused():
  model = compiled(lambda: make("LocalSGD"), num_replicas=2, jit_compile=True)
  with pytest.raises(ValueError, match="jit_compile=False"):
    fit(model)


@pytest.mark.parametrize("rows", [None, 2])
def test_vectorized_workers_need_as_many_workers(rows):
  workers = VectorizedWorkers(network(), 4)
  with pytest.raises(ValueError, match=f"workers_per_replica={rows}, .* has 4"):
    workers.compile(make("LocalSGD", workers_per_replica=rows), "mse")


def test_workers_per_replica_without_vectorized_workers_is_refused():
  model = network()
  model.compile(make("LocalSGD", workers_per_replica=4), "mse")
  with pytest.raises(ValueError, match=r"not \(4, 3, 4\): workers_per_replica"):
    fit(model)


class Save(keras.callbacks.Callback):
  """Saves the model after a step."""

  def __init__(self, path):
    """Takes where."""
    super().__init__()
    self._path = path

  def on_train_batch_end(self, batch, logs=None):
    """Saves it."""
    self.model.save(self._path)


@pytest.mark.parametrize(
  "callback",
  [
    lambda path: keras.callbacks.ModelCheckpoint(path, save_freq=2),
    lambda path: keras.callbacks.BackupAndRestore(path, save_freq=2),
  ],
)
def test_callbacks_that_save_within_an_epoch_are_refused(callback, tmp_path):
  model = network()
  model.compile(make("LocalSGD"), "mse")
  with pytest.raises(ValueError, match="save_freq=2: under local_sgd the"):
    fit(model, callbacks=[callback(tmp_path / "model.keras")])


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_saving_within_an_epoch_is_refused(tmp_path):
  model = network()
  model.compile(make("LocalSGD"), "mse")
  with pytest.raises(ValueError, match="now those of one worker; save at the"):
    fit(model, callbacks=[Save(tmp_path / "model.keras")])


def test_checkpoint_of_a_moment_within_an_epoch_is_refused(tmp_path):
  model = network()
  model.compile(make("LocalSGD"), "mse")
  x, y = data()
  model.train_on_batch(x, y)
  saved = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
  restored = network()
  restored.compile(make("LocalSGD"), "mse")
  restored.optimizer.build(restored.trainable_variables)
  tf.train.Checkpoint(model=restored).read(saved)
  with pytest.raises(ValueError, match="saved within an epoch: it holds one"):
    fit(restored)
  with pytest.raises(ValueError, match="saved within an epoch: it holds one"):
    restored.evaluate(x, y, verbose=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_file_of_another_optimizer_is_refused():
  optimizer, variables = problem()
  store = {}
  optimizer.show_mean()
  optimizer.save_own_variables(store)
  other = make("LocalSGD", momentum=0.0)
  other.build([keras.Variable(np.ones(5, np.float32))])
  with pytest.raises(ValueError, match="the state of another optimizer or"):
    other.load_own_variables({k: np.array(v) for k, v in store.items()})


SEVERAL_STRATEGIES = """
from tests.tensorflow_setup import tf
import keras
import numpy as np
import robust_tf

def fit(num_replicas, make):
  devices = [f"CPU:{i}" for i in range(num_replicas)]
  with tf.distribute.MirroredStrategy(devices).scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.ones((3, 2)), np.zeros(2)])
    model.compile(make(0.1, momentum=0.0), "mse", jit_compile=False)
  x = np.arange(24.0).reshape(8, 3) / 24
  model.fit(x, x[:, :2], batch_size=8, verbose=0)
  return model.get_weights()

# With the collectives that TensorFlow takes by default.
expected = fit(4, keras.optimizers.SGD)
for num_replicas, make in (
  (4, robust_tf.LocalSGD),
  (2, robust_tf.LocalSGD),
  (4, keras.optimizers.SGD),
):
  for found, value in zip(fit(num_replicas, make), expected):
    np.testing.assert_allclose(found, value, rtol=1e-5)
"""


def test_local_models_train_beside_other_strategies():
  # A process of its own: collectives that fail once fail ever after.
  done = tensorflow_setup.run_script(SEVERAL_STRATEGIES, timeout_s=300)
  assert done.returncode == 0, done.stderr


PARAMETER_SERVER = """
import socket

import tensorflow as tf

import robust_tf

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
  for name in "CSER", "LocalSGD", "AdaAlter", "ErrorFeedbackSGD":
    try:
      getattr(robust_tf, name)(0.1)
    except ValueError as error:
      print("refused:", error)
"""


@pytest.mark.slow
def test_parameter_server_strategy_is_refused():
  # A process of its own: such a strategy hangs where devices are configured.
  with server_network() as prefix:
    done = tensorflow_setup.run_script(
      PARAMETER_SERVER, timeout_s=300, prefix=prefix
    )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 4
  for line in lines:
    assert line.startswith("refused: under ParameterServerStrategy")
    assert "robust_tf.federated" in line


def test_every_optimizer_is_in_these_tables():
  assert {type(make()).__name__ for make in OPTIMIZERS.values()} < set(NAMES)
  assert set(NAMES) < set(robust_tf.__all__)
