"""Whoever looks at a model that is trained sees the mean of the workers'.

And training goes on as if nobody had looked.
"""

from tests.tensorflow_setup import tf  # isort: skip

import keras
import numpy as np
import pytest

from robust_tf import mean_model
from tests.robust_tf import replicas
from tests.robust_tf.local_fits import assert_same
from tests.robust_tf.local_fits import BATCH
from tests.robust_tf.local_fits import mean_of_models
from tests.robust_tf.local_fits import optimizer_of
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.local_fits import snapshot
from tests.robust_tf.local_fits import spread
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.tiers import tiers

# Keras 3.15 saves variables through NumPy's old array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

# Means and losses of float32, added in another order.
ROUNDING = 1e-6
HELD_OUT = data(7)


class Looker(keras.callbacks.Callback):
  """Looks at the model in all ways, and keeps what each one saw.

  Attributes:
    seen: tuples of what was looked at, the result, and what a copy of the
      model without a strategy gives with NumPy's mean of the workers' models.
  """

  def __init__(self, directory):
    """Takes where to save what is looked at in files."""
    super().__init__()
    self._directory = directory
    self._copy = network()
    self._copy.compile("sgd", "mse")
    self.seen = []

  def _mean(self):
    assert spread(self.model.optimizer) > 0.001
    self._copy.set_weights(mean_of_models(self.model.optimizer))
    return self._copy

  def _add(self, name, result, expected):
    self.seen.append((name, result, expected))

  def on_train_batch_end(self, batch, logs=None):
    """Evaluates, predicts and takes the weights in the middle of an epoch."""
    if batch == 0:  # no period of 3 ends with it
      x, y = HELD_OUT
      expected = self._mean().evaluate(x, y, verbose=0)
      found = self.model.evaluate(x, y, batch_size=BATCH, verbose=0)
      self._add("evaluate in a step", found, expected)
      found = self.model.predict(x, batch_size=BATCH, verbose=0)
      self._add("predict in a step", found, self._copy(x))
      with mean_model(self.model) as shown:
        self._add("mean_model", shown.get_weights(), self._copy.get_weights())
        with mean_model(self.model):
          pass
        again = shown.get_weights()
        self._add("nested mean_model", again, self._copy.get_weights())

  def on_epoch_end(self, epoch, logs=None):
    """Looks at weights, files and logs."""
    expected = self._mean()
    x, y = HELD_OUT
    weights = expected.get_weights()
    self._add("weights", self.model.get_weights(), weights)
    loss = expected.evaluate(x, y, verbose=0)
    self._add("validation_data", logs["val_loss"], loss)
    found = self.model.evaluate(x, y, batch_size=BATCH, verbose=0)
    self._add("evaluate", found, loss)
    self._add("call", self.model(x), expected(x))
    if epoch == 0:
      self._look_at_files(expected, x, weights)

  def _look_at_files(self, expected, x, weights):
    path = str(self._directory / "model.keras")
    self.model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    self._add("save", loaded.get_weights(), weights)
    path = str(self._directory / "model.weights.h5")
    self.model.save_weights(path)
    self._copy.load_weights(path, skip_mismatch=True)
    self._add("save_weights", self._copy.get_weights(), weights)
    path = str(self._directory / "exported")
    self.model.export(path, verbose=False)
    exported = tf.saved_model.load(path)
    self._add("export", exported.serve(x), expected(x))
    path = tf.train.Checkpoint(model=self.model).write(
      str(self._directory / "checkpoint")
    )
    other = network()
    tf.train.Checkpoint(model=other).read(path).expect_partial()
    self._add("Checkpoint", other.get_weights(), weights)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cser", "local_adaalter"])
def test_everyone_sees_the_mean_and_nobody_changes_the_training(name, tmp_path):
  alone = compiled(OPTIMIZERS[name])
  fit(alone, epochs=2)

  looker = Looker(tmp_path)
  model = compiled(OPTIMIZERS[name])
  files = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
  fit(model, epochs=2, callbacks=[looker, files], validation_data=HELD_OUT)
  for name, found, expected in looker.seen:
    keras.tree.map_structure(
      lambda x, y: np.testing.assert_allclose(
        x,
        y,
        rtol=ROUNDING,
        atol=ROUNDING,
        err_msg=name,  # noqa: B023
      ),
      found,
      expected,
    )
  assert len(looker.seen) == 2 * 4 + 2 * 4 + 4
  loaded = keras.models.load_model(tmp_path / "2.keras", compile=False)
  assert_same(loaded.get_weights(), model.get_weights())
  assert_same(snapshot(model), snapshot(alone))


@pytest.mark.parametrize("name", tiers(OPTIMIZERS, ["cser"]))
def test_fit_ends_with_the_mean_on_every_replica(name):
  model = compiled(OPTIMIZERS[name])
  fit(model)
  optimizer = model.optimizer
  # With error feedback all have one model.
  assert (spread(optimizer) > 0.001) == (name != "ef_sgd")
  expected = mean_of_models(optimizer)
  for value, variable in zip(expected, model.trainable_variables, strict=True):
    for replica in variable.value.values:
      np.testing.assert_allclose(replica, value, rtol=ROUNDING, atol=ROUNDING)
  before = snapshot(model)
  x, y = HELD_OUT
  model.evaluate(x, y, verbose=0)
  model.predict(x, verbose=0)
  with mean_model(model):
    pass
  assert_same(snapshot(model), before)


class Interrupt(keras.callbacks.Callback):
  """Ends a training in the middle of an epoch, as Ctrl-C does."""

  def on_train_batch_end(self, batch, logs=None):
    """Ends it."""
    if batch == 1:
      raise KeyboardInterrupt


@pytest.mark.slow
def test_training_goes_on_after_an_interrupt():
  x, y = data()
  half = x[: 2 * BATCH], y[: 2 * BATCH]
  straight = compiled(OPTIMIZERS["cser"])
  fit(straight, x_and_y=half)
  fit(straight)
  model = compiled(OPTIMIZERS["cser"])
  with pytest.raises(KeyboardInterrupt):
    fit(model, callbacks=[Interrupt()])
  model.evaluate(x, y, verbose=0)
  fit(model)
  assert_same(snapshot(model), snapshot(straight))


def loop(model, num_epochs, validate):
  """Trains in a loop of one's own; returns what `validate` saw."""
  strategy = model.distribute_strategy
  optimizer = model.optimizer

  def on_replica(x, y):
    with tf.GradientTape() as tape:
      losses = tf.reduce_mean((model(x) - y) ** 2, axis=1)
      loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(
      zip(gradients, model.trainable_variables, strict=True)
    )

  step = tf.function(lambda batch: strategy.run(on_replica, batch))
  batches = strategy.experimental_distribute_dataset(
    tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)
  )
  for _ in range(num_epochs):
    for batch in batches:
      step(batch)
    with mean_model(model):
      validate(model)


@pytest.mark.slow
def test_loop_of_ones_own_shows_the_mean_and_resumes(tmp_path):
  fitted = compiled(OPTIMIZERS["cser"])
  fit(fitted, epochs=2)

  seen = []

  def validate(model):
    expected = mean_of_models(model.optimizer)
    for value, other in zip(model.get_weights(), expected, strict=True):
      np.testing.assert_allclose(value, other, rtol=ROUNDING, atol=ROUNDING)
    seen.append(model.get_weights())
    tf.train.Checkpoint(model=model).write(str(tmp_path / str(len(seen))))

  model = compiled(OPTIMIZERS["cser"])
  loop(model, 2, validate)
  # As Keras computes, but for the order of its means.
  for value, other in zip(seen[-1], fitted.get_weights(), strict=True):
    np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)

  resumed = compiled(OPTIMIZERS["cser"])
  with replicas.mirrored(4).scope():
    resumed.optimizer.build(resumed.trainable_variables)
  tf.train.Checkpoint(model=resumed).read(str(tmp_path / "1"))
  resumed.optimizer.resume()
  loop(resumed, 1, lambda model: None)
  assert_same(snapshot(resumed)["models"], snapshot(model)["models"])
  assert_same(
    resumed.optimizer.local_state("error"), model.optimizer.local_state("error")
  )


def test_single_steps_after_a_fit_are_from_the_mean():
  model = compiled(OPTIMIZERS["cser"])
  fit(model)
  model.train_on_batch(*data())
  optimizer = optimizer_of(model)
  common = keras.tree.map_structure(
    np.subtract, optimizer.local_models(), optimizer.local_state("error")
  )
  for own in common[1:]:
    for value, other in zip(own, common[0], strict=True):
      np.testing.assert_allclose(value, other, rtol=ROUNDING, atol=ROUNDING)
