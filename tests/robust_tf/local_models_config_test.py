"""The optimizers with local models as plain data, and back."""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import inspect

import keras
import pytest

import robust_tf
from robust_tf import compressors
from robust_tf.compressors import COMPRESSORS
from robust_tf.compressors import GRBS
from robust_tf.compressors import QSGD
from robust_tf.compressors import RandomK
from robust_tf.compressors import TopK
from robust_tf.optimizers.local_models import LocalModelOptimizer

# Of every argument another value than by default.
COMMON = {
  "learning_rate": 0.25,
  "weight_decay": 0.01,
  "clipvalue": 0.5,
  "workers_per_replica": 3,
  "name": "mine",
}
ADAPTIVE = {**COMMON, "initial_accumulator_value": 0.5, "epsilon": 0.25}
SGD = {**COMMON, "momentum": 0.5}
ARGUMENTS = {
  "AdaAlter": ADAPTIVE,
  "CSEA": {**SGD, "compressor": TopK(7)},
  "CSER": {
    **SGD,
    "sync_period": 5,
    "reset_compressor": GRBS(16, num_blocks=64, seed=9),
    "gradient_compressor": RandomK(12, seed=4),
    "released_code": True,
  },
  "CSER_PL": {**SGD, "sync_period": 5, "compressor": TopK(7)},
  "ErrorFeedbackSGD": {**SGD, "compressor": QSGD(levels=100, seed=3)},
  "LocalAdaAlter": {**ADAPTIVE, "sync_period": 5, "constant_epsilon": True},
  "LocalSGD": {**SGD, "sync_period": 5},
  "QSparseLocalSGD": {**SGD, "sync_period": 5, "compressor": RandomK(7)},
}


def make(name, **kwargs):
  return getattr(robust_tf, name)(**{**ARGUMENTS[name], **kwargs})


def test_all_public_optimizers_are_in_the_table():
  public = {
    name
    for name in robust_tf.__all__
    if inspect.isclass(getattr(robust_tf, name))
    and issubclass(getattr(robust_tf, name), LocalModelOptimizer)
  }
  assert set(ARGUMENTS) == public


@pytest.mark.parametrize("name", ARGUMENTS)
def test_table_has_every_argument(name):
  parameters = dict(
    inspect.signature(getattr(robust_tf, name).__init__).parameters
  )
  # Keras takes one kind of clipping at a time.
  for left_out in ("self", "clipnorm", "global_clipnorm"):
    del parameters[left_out]
  assert set(ARGUMENTS[name]) == set(parameters)
  for argument, value in ARGUMENTS[name].items():
    assert value != parameters[argument].default, argument


@pytest.mark.parametrize("name", ARGUMENTS)
def test_config_has_every_argument(name):
  optimizer = make(name)
  config = optimizer.get_config()
  arguments = {**ARGUMENTS[name], "clipnorm": None, "global_clipnorm": None}
  assert set(config) == set(arguments)
  assert type(optimizer).__name__ == name
  again = type(optimizer).from_config(config)
  assert again.get_config() == config
  for argument in set(arguments) - {"learning_rate", "compressor"}:
    assert getattr(again, argument) == arguments[argument], argument


@pytest.mark.parametrize("name", ARGUMENTS)
def test_serialized_optimizer_is_the_same(name):
  optimizer = make(name)
  serialized = keras.saving.serialize_keras_object(optimizer)
  assert serialized["registered_name"] == f"robust_tf>{name}"
  again = keras.saving.deserialize_keras_object(serialized)
  assert type(again) is type(optimizer)
  assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_schedule_outlives_the_config(name):
  rate = keras.optimizers.schedules.ExponentialDecay(0.5, 3, 0.8)
  again = keras.saving.deserialize_keras_object(
    keras.saving.serialize_keras_object(make(name, learning_rate=rate))
  )
  again.build([keras.Variable([1.0, 2.0])])
  again.iterations.assign(3)
  assert float(again.learning_rate) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm"])
def test_other_clipping_is_kept(name):
  optimizer = make("CSER", clipvalue=None, **{name: 2.0})
  again = robust_tf.CSER.from_config(optimizer.get_config())
  assert getattr(again, name) == 2.0


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_keras_file_gives_back_the_optimizer(name, tmp_path):
  model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
  workers = robust_tf.VectorizedWorkers(model, 3)
  workers.build((None, 3))
  workers.compile(make(name), "mse")
  workers.save(tmp_path / "workers.keras")
  loaded = keras.models.load_model(tmp_path / "workers.keras")
  assert type(loaded.optimizer) is type(workers.optimizer)
  assert loaded.optimizer.get_config() == workers.optimizer.get_config()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_is_kept(name):
  kind = COMPRESSORS[name]
  arguments = (
    {"ratio": 3} if "ratio" in inspect.signature(kind).parameters else {}
  )
  compressor = kind(**arguments)
  optimizer = robust_tf.CSER_PL(compressor=compressor)
  again = robust_tf.CSER_PL.from_config(optimizer.get_config())
  assert again.reset_compressor == compressor


def test_unknown_compressor_in_a_config_is_an_error():
  config = robust_tf.CSEA(compressor=compressors.Zero()).get_config()
  config["compressor"]["compressor"] = "zip"
  with pytest.raises(ValueError, match="compressor 'zip' is not known; known"):
    robust_tf.CSEA.from_config(config)
