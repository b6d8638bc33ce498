"""Trainings with local models resume exactly, or from the mean, saying so."""

from tests.tensorflow_setup import tf  # isort: skip

import keras
import numpy as np
import pytest
from absl import logging

from robust_tf import VectorizedWorkers
from tests.robust_tf import replicas
from tests.robust_tf.local_fits import assert_same
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.local_fits import snapshot
from tests.robust_tf.local_fits import spread
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.tiers import tiers

# Keras 3.15 saves variables through NumPy's old array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

# Means of float32, in another order than NumPy's.
ROUNDING = 1e-6


@pytest.fixture
def warned(monkeypatch):
  """The warnings that are logged."""
  lines = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *args: lines.append(text % args)
  )
  return lines


def vectorized(name, num_workers=4):
  """Returns a model whose workers are rows."""
  keras.utils.set_random_seed(5)
  model = VectorizedWorkers(network(), num_workers)
  model.compile(OPTIMIZERS[name](workers_per_replica=num_workers), "mse")
  model.build((None, 3))
  return model


def built(model, num_replicas):
  """Returns a model once its optimizer has variables."""
  with replicas.mirrored(num_replicas).scope():
    model.optimizer.build(model.trainable_variables)
  return model


class Checkpointing(keras.callbacks.Callback):
  """Writes a checkpoint at the end of each epoch."""

  def __init__(self, prefix):
    """Takes the path that files begin with."""
    super().__init__()
    self._prefix = str(prefix)

  def on_epoch_end(self, epoch, logs=None):
    """Writes it."""
    tf.train.Checkpoint(model=self.model).write(f"{self._prefix}{epoch}")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_resumes_exactly(name, tmp_path):
  straight = compiled(OPTIMIZERS[name])
  files = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
  fit(straight, epochs=4, callbacks=[files, Checkpointing(tmp_path / "c")])
  expected = snapshot(straight)
  assert expected["iterations"] == 16

  with replicas.mirrored(4).scope():
    resumed = keras.models.load_model(tmp_path / "2.keras")
  assert resumed.optimizer.get_config() == straight.optimizer.get_config()
  fit(resumed, epochs=2)
  assert_same(snapshot(resumed), expected)

  restored = built(compiled(OPTIMIZERS[name]), 4)
  read = tf.train.Checkpoint(model=restored).read(str(tmp_path / "c1"))
  read.assert_consumed()
  fit(restored, epochs=2)
  assert_same(snapshot(restored), expected)


class _KilledError(Exception):
  """Ends a training as a lost machine would."""


class _Kill(keras.callbacks.Callback):
  def on_train_batch_end(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == 10:
      raise _KilledError


@pytest.mark.slow
def test_training_resumes_exactly_from_a_backup(tmp_path):
  straight = compiled(OPTIMIZERS["cser"])
  fit(straight, epochs=3)
  backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
  with pytest.raises(_KilledError):
    fit(compiled(OPTIMIZERS["cser"]), epochs=3, callbacks=[backup, _Kill()])
  resumed = compiled(OPTIMIZERS["cser"])
  history = fit(resumed, epochs=3, callbacks=[backup])
  assert history.epoch == [2]
  assert_same(snapshot(resumed), snapshot(straight))


@pytest.mark.parametrize("name", tiers(OPTIMIZERS, ["cser"]))
def test_training_of_rows_resumes_exactly(name, tmp_path):
  straight = vectorized(name)
  files = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
  fit(straight, epochs=3, callbacks=[files, Checkpointing(tmp_path / "c")])
  resumed = keras.models.load_model(tmp_path / "1.keras")
  restored = vectorized(name)
  restored.optimizer.build(restored.trainable_variables)
  tf.train.Checkpoint(model=restored).read(str(tmp_path / "c0"))
  for model in (resumed, restored):
    fit(model, epochs=2)
    assert_same(snapshot(model), snapshot(straight))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Where models of 4 and of 2 replicas were saved, and what they were."""
  directory = tmp_path_factory.mktemp("saved")
  snapshots = {}
  for num_replicas in (4, 2):
    model = compiled(OPTIMIZERS["cser"], num_replicas=num_replicas)
    fit(model)
    assert spread(model.optimizer) > 0.01
    model.save(directory / f"{num_replicas}.keras")
    tf.train.Checkpoint(model=model).write(str(directory / f"{num_replicas}"))
    snapshots[num_replicas] = snapshot(model)
  return directory, snapshots


def mean(by_worker):
  return [np.mean(values, axis=0) for values in zip(*by_worker, strict=True)]


def assert_all_close(by_worker, expected) -> None:
  """Asserts that all workers have the same, and what is expected."""
  for own in by_worker:
    for value, other in zip(own, expected, strict=True):
      np.testing.assert_allclose(value, other, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["file", "checkpoint"])
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 1)])
def test_other_number_of_workers_goes_on_from_the_mean_and_says_so(
  kind, before, after, saved, warned
):
  directory, snapshots = saved
  strategy = replicas.mirrored(after) if after > 1 else None
  with replicas.scope(strategy):
    if kind == "file":
      model = keras.models.load_model(directory / f"{before}.keras")
    else:
      model = network()
      model.compile(OPTIMIZERS["cser"](), "mse")
      model.optimizer.build(model.trainable_variables)
      status = tf.train.Checkpoint(model=model).read(
        str(directory / f"{before}")
      )
      status.expect_partial()
  expected = snapshots[before]
  assert_same(model.get_weights(), expected["weights"])
  optimizer = model.optimizer
  optimizer.resume()
  (line,) = warned
  assert line == (
    f"cser: saved by {before} workers, goes on with {after}: each starts from"
    " the saved model, and from the mean of what they kept"
  )
  assert len(optimizer.local_models()) == after
  for own in optimizer.local_models():
    assert_same(own, expected["weights"])
  # A checkpoint finds only the workers that there are.
  known = min(before, after) if kind == "checkpoint" else before
  assert_all_close(
    optimizer.local_state("momentum"), mean(expected["momentum"][:known])
  )
  for own in optimizer.local_state("error"):
    assert all((value == 0).all() for value in own)
  assert optimizer.bytes_sent == expected["bytes_sent"]
  fit(model)
  assert len(warned) == 1
  assert optimizer.iterations.numpy() == 8
  if after > 1:
    assert spread(optimizer) > 0.01
  # Model minus error is common to all workers from here on.
  common = keras.tree.map_structure(
    np.subtract, optimizer.local_models(), optimizer.local_state("error")
  )
  assert_all_close(common, mean(common))


def test_error_feedback_of_other_workers_is_their_mean(warned):
  def gradients(num_workers):
    random = np.random.default_rng(num_workers)
    return [random.normal(size=(2, num_workers, 5)).astype(np.float32)]

  def problem(num_replicas):
    return replicas.Problem(
      OPTIMIZERS["ef_sgd"],
      [np.zeros(5, np.float32)],
      replicas.mirrored(num_replicas),
    )

  trained = problem(4).steps(gradients(4)).optimizer
  store = {}
  trained.save_own_variables(store)
  loaded = problem(2)
  loaded.optimizer.load_own_variables(store)
  loaded.optimizer.resume()
  assert "saved by 4 workers, goes on with 2" in warned[0]
  for name in ("error", "momentum"):
    assert_all_close(
      loaded.optimizer.local_state(name), mean(trained.local_state(name))
    )
  loaded.steps(gradients(2))


def test_weights_that_are_set_between_fits_are_where_all_start(warned):
  model = compiled(OPTIMIZERS["cser"])
  fit(model)
  weights = [value + 0.25 for value in model.get_weights()]
  model.set_weights(weights)
  model.optimizer.resume()
  assert "these were set anew" in warned[0]
  for own in model.optimizer.local_models():
    assert_same(own, weights)
  for own in model.optimizer.local_state("error"):
    assert all((value == 0).all() for value in own)
  fit(model)


class Rollback(keras.callbacks.Callback):
  """Sets weights at the end of the first epoch, and sees what becomes of it."""

  def __init__(self, weights):
    """Takes them."""
    super().__init__()
    self._weights = weights
    self.models = None

  def on_epoch_end(self, epoch, logs=None):
    """Sets them."""
    if epoch == 0:
      self.model.set_weights(self._weights)

  def on_epoch_begin(self, epoch, logs=None):
    """Reads the workers' models."""
    self.models = self.model.optimizer.local_models()


def test_weights_that_a_callback_sets_are_where_all_start(warned):
  model = compiled(OPTIMIZERS["qsparse"])
  weights = [value + 0.25 for value in model.get_weights()]
  rollback = Rollback(weights)
  fit(model, epochs=2, callbacks=[rollback])
  assert len(warned) == 1
  for own in rollback.models:
    assert_same(own, weights)


def test_weights_alone_restart_the_workers(warned):
  model = compiled(OPTIMIZERS["local_sgd"])
  fit(model)
  weights = model.get_weights()
  fit(model)
  model.set_weights(weights)
  model.optimizer.resume()
  assert len(warned) == 1
  for own in model.optimizer.local_models():
    assert_same(own, weights)
