"""RobustOptimizer in files, and trainings that resume from them exactly."""

import functools
import json

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # isort: skip
import keras

import robust_tf
from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustOptimizer
from robust_tf import saved_classes
from robust_tf import VectorizedWorkers
from robust_tf.attacks import Byzantine
from robust_tf.compressors import GRBS
from robust_tf.compressors import TopK
from tests.robust_tf import replicas
from tests.robust_tf.mirrored_fits import adam
from tests.robust_tf.mirrored_fits import assert_equal
from tests.robust_tf.mirrored_fits import BATCH
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.robust_tf.mirrored_fits import replicas_agree
from tests.robust_tf.mirrored_fits import robust
from tests.robust_tf.mirrored_fits import sgd
from tests.tensorflow_setup import run_script
from tests.tiers import tiers

# Keras 3.15 saves variables through NumPy's old array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

OPTIMIZERS = {
  "adam": robust(adam),
  "accumulating": robust(
    lambda: keras.optimizers.Adam(0.05), gradient_accumulation_steps=3
  ),
  "attacked": robust(
    adam, byzantine=Byzantine((0,), attacks.gaussian, 2, seed=4)
  ),
}


def first(rows):
  return rows[0]


def test_only_a_lambda_is_warned_of():
  def make(rule, attack):
    return RobustOptimizer(
      keras.optimizers.SGD(0.1),
      rule,
      byzantine=Byzantine((0,), attack),
      workers_per_replica=4,
    )

  make(first, attacks.sign_flip)  # warnings are errors
  with pytest.warns(UserWarning, match="^aggregator is a lambda: .* cannot"):
    make(lambda rows: rows[0], attacks.sign_flip)
  with pytest.warns(UserWarning, match="^aggregator is a lambda"):
    make(functools.partial(lambda rows, k: rows[k], k=1), attacks.sign_flip)
  with pytest.warns(UserWarning, match="^byzantine.attack is a lambda"):
    make(first, lambda updates, byzantine, seed: updates)


@pytest.mark.parametrize("name", ["accumulating", "attacked"])
def test_training_resumes_exactly_from_a_checkpoint(name, tmp_path):
  model = compiled(OPTIMIZERS[name])
  # Four steps: in the middle of accumulating.
  fit(model)
  saved = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
  resumed = compiled(OPTIMIZERS[name])
  with replicas.mirrored(4).scope():
    resumed.optimizer.build(resumed.trainable_variables)
  tf.train.Checkpoint(model=resumed).restore(saved).assert_consumed()
  for each in (model, resumed):
    fit(each, x_and_y=data(1))
  assert_equal(resumed, model)
  replicas_agree(resumed)


@pytest.mark.parametrize(
  "name", tiers(["accumulating", "adam"], ["accumulating"])
)
def test_training_resumes_exactly_from_a_keras_file(name, tmp_path):
  model = compiled(OPTIMIZERS[name])
  fit(model)
  model.save(tmp_path / "model.keras")
  with replicas.mirrored(4).scope():
    resumed = keras.models.load_model(tmp_path / "model.keras")
  assert resumed.optimizer.get_config() == model.optimizer.get_config()
  for each in (model, resumed):
    fit(each, x_and_y=data(1))
  assert_equal(resumed, model)
  replicas_agree(resumed)


class _KilledError(Exception):
  """Ends a training as a lost machine would."""


class _Kill(keras.callbacks.Callback):
  def on_epoch_begin(self, epoch, logs=None):
    if epoch == 2:
      raise _KilledError


@pytest.mark.slow
def test_training_resumes_exactly_from_a_backup(tmp_path):
  name = "accumulating"
  straight = compiled(OPTIMIZERS[name])
  fit(straight, epochs=3)
  backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
  with pytest.raises(_KilledError):
    fit(compiled(OPTIMIZERS[name]), epochs=3, callbacks=[backup, _Kill()])
  resumed = compiled(OPTIMIZERS[name])
  history = fit(resumed, epochs=3, callbacks=[backup])
  assert history.epoch == [2]
  assert_equal(resumed, straight)


def test_model_is_loaded_on_one_machine_to_be_used(tmp_path):
  model = compiled(robust(adam))
  fit(model)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  x, y = data(1)
  np.testing.assert_allclose(
    loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6
  )
  with pytest.raises(ValueError, match="has 1 worker"):
    loaded.fit(x, y, verbose=0)


@pytest.mark.parametrize(("steps", "loads"), [(3, True), (4, False)])
def test_accumulated_gradients_load_for_the_same_workers_alone(
  steps, loads, tmp_path
):
  model = compiled(OPTIMIZERS["accumulating"])
  x, y = data()
  fit(model, x_and_y=(x[: steps * BATCH], y[: steps * BATCH]))
  model.save(tmp_path / "model.keras")
  if loads:
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.iterations.numpy() == 1
  else:
    with pytest.raises(ValueError, match="accumulated gradients for other"):
      keras.models.load_model(tmp_path / "model.keras")


# Of each class that Keras saves, and what such objects refer to.
SAVED = {
  "AdaAlter": lambda: robust_tf.AdaAlter(0.5),
  "CSEA": lambda: robust_tf.CSEA(0.1, compressor=TopK(4)),
  "CSER": lambda: robust_tf.CSER(
    0.1, sync_period=3, reset_compressor=TopK(4), gradient_compressor=GRBS(8)
  ),
  "CSER_PL": lambda: robust_tf.CSER_PL(0.1, sync_period=3, compressor=GRBS(8)),
  "ErrorFeedbackSGD": lambda: robust_tf.ErrorFeedbackSGD(
    0.1, compressor=TopK(4)
  ),
  "LocalAdaAlter": lambda: robust_tf.LocalAdaAlter(0.5, sync_period=3),
  "LocalSGD": lambda: robust_tf.LocalSGD(0.1, sync_period=5),
  "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(
    robust(sgd)()
  ),
  "QSparseLocalSGD": lambda: robust_tf.QSparseLocalSGD(
    0.1, sync_period=3, compressor=GRBS(4)
  ),
  "RobustOptimizer": robust(
    adam,
    byzantine=Byzantine((0,), attacks.gaussian, 2, seed=4),
    workers_per_replica=4,
  ),
}
LOAD = """
import json
import sys
import robust_tf
import keras

found = {}
for path in sys.argv[1:]:
  optimizer = keras.models.load_model(path).optimizer
  found[path] = [
    type(optimizer).__name__,
    optimizer.get_config(),
    [variable.numpy().tolist() for variable in optimizer.variables],
  ]
print(json.dumps(found))
"""


def test_fresh_process_loads_every_class_once_the_package_is_imported(tmp_path):
  expected = {}
  for name, make in SAVED.items():
    model = network()
    if name == "RobustOptimizer":
      model = VectorizedWorkers(model, 4)
    model.compile(make(), "mse")
    if name == "RobustOptimizer":
      fit(model)
    model.optimizer.build(model.trainable_variables)
    path = str(tmp_path / f"{name}.keras")
    model.save(path)
    expected[path] = [
      name,
      model.optimizer.get_config(),
      [variable.numpy().tolist() for variable in model.optimizer.variables],
    ]
  result = run_script(LOAD, *expected)
  assert result.returncode == 0, result.stderr
  assert json.loads(result.stdout.splitlines()[-1]) == json.loads(
    json.dumps(expected)
  )


def test_every_class_that_keras_saves_can_be_loaded():
  for name in robust_tf.__all__:
    getattr(robust_tf, name)
  registered = {
    name.removeprefix("robust_tf>")
    for name in keras.saving.get_custom_objects()
    if name.startswith("robust_tf>")
  }
  keras_own = {"LossScaleOptimizer"}
  assert registered == set(SAVED) - keras_own | {"VectorizedWorkers"}


def test_classes_are_found_when_keras_was_imported_before(monkeypatch):
  config = keras.saving.serialize_keras_object(SAVED["LocalSGD"]())
  monkeypatch.delitem(keras.saving.get_custom_objects(), "robust_tf>LocalSGD")
  with pytest.raises(TypeError, match="Could not locate class 'LocalSGD'"):
    keras.saving.deserialize_keras_object(config)
  saved_classes.register(["LocalSGD"])
  loaded = keras.saving.deserialize_keras_object(config)
  assert type(loaded) is robust_tf.LocalSGD


@keras.saving.register_keras_serializable("tests")
def largest(rows, scale=1.0):
  return scale * tf.reduce_max(rows, axis=0)


@keras.saving.register_keras_serializable("tests")
class Scaled:
  def __init__(self, scale):
    self.scale = scale

  def __call__(self, rows):
    return self.scale * rows[0]

  def get_config(self):
    return {"scale": self.scale}

  @classmethod
  def from_config(cls, config):
    return cls(**config)


def unregistered(rows):
  return rows[0]


@pytest.mark.parametrize(
  "aggregator",
  [
    aggregators.median,
    functools.partial(aggregators.krum, num_byzantine=1),
    largest,
    functools.partial(largest, scale=2.0),
    Scaled(3.0),
    unregistered,
  ],
)
def test_config_gives_back_the_optimizer(aggregator):
  optimizer = RobustOptimizer(
    keras.optimizers.Adam(0.25, clipnorm=2.0),
    aggregator,
    byzantine=Byzantine(
      (1, 3),
      functools.partial(
        attacks.worst_case,
        aggregator=functools.partial(aggregators.trimmed_mean, trim=2),
      ),
      start_step=3,
      seed=9,
    ),
    clipvalue=0.5,
    gradient_accumulation_steps=2,
    workers_per_replica=5,
    report=True,
    name="mine",
  )
  again = keras.saving.deserialize_keras_object(
    keras.saving.serialize_keras_object(optimizer),
    custom_objects={"unregistered": unregistered},
  )
  assert again.get_config() == optimizer.get_config()
  assert again.byzantine.workers == (1, 3)
  assert again.inner_optimizer.clipnorm == 2.0
  rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  np.testing.assert_array_equal(
    again.aggregator(tf.constant(rows)), aggregator(tf.constant(rows))
  )


def test_unknown_rule_in_a_config_is_an_error():
  optimizer = RobustOptimizer(sgd(), aggregators.median)
  config = optimizer.get_config()
  config["aggregator"]["rule"] = "no_such_rule"
  with pytest.raises(
    ValueError, match="'no_such_rule' is not known; known are"
  ):
    RobustOptimizer.from_config(config)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("aggregator", {"parameters": {}}, "has no 'rule'"),
    ("aggregator", {"rule": "median"}, "has no 'parameters'"),
    ("aggregator", {"rule": "median", "parameters": 3}, "is no Mapping"),
    ("aggregator", {"rule": "mode", "parameters": {}}, "'mode' is not known"),
    ("aggregator", None, "'aggregator' is no Mapping"),
    ("byzantine", {"workers": [0]}, "has no 'attack'"),
    ("byzantine", 3, "has no 'attack'"),
  ],
)
def test_damaged_config_says_what_is_damaged(name, value, message):
  config = RobustOptimizer(keras.optimizers.SGD(0.1), aggregators.median)
  config = {**config.get_config(), name: value}
  with pytest.raises(ValueError, match=message):
    RobustOptimizer.from_config(config)


@pytest.mark.parametrize("name", ["aggregator", "inner_optimizer"])
def test_config_without_an_entry_names_it(name):
  optimizer = RobustOptimizer(keras.optimizers.SGD(0.1), aggregators.median)
  config = optimizer.get_config()
  del config[name]
  with pytest.raises(ValueError, match=f"damaged: it has no '{name}'"):
    RobustOptimizer.from_config(config)
