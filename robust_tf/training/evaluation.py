"""Evaluates the model as it is trained, and keeps what is found."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from robust_tf.training.checkpoints import Checkpoints
from robust_tf.training.data import Dataset
from robust_tf.training.journal import Journal
from robust_tf.training.settings import Settings

_BATCH = 1000

# Keras' names of what is measured on the batches of the workers.
_NAMES = {"loss": "train_loss", "accuracy": "train_accuracy"}


def test_function(
  model: keras.Model, dataset: Dataset
) -> Callable[[], dict[str, float]]:
  """Returns a function that scores the model on the test examples.

  It runs outside of any strategy, so that all strategies give one number. A
  prediction that is not finite is wrong.

  Args:
    model: returns logits.
    dataset: holds the test examples.
  """
  logits_of = tf.function(
    lambda x: model(x, training=False),
    input_signature=[tf.TensorSpec([None, *dataset.input_shape])],
    autograph=False,
  )

  def test() -> dict[str, float]:
    logits = np.concatenate(
      [
        logits_of(dataset.x_test[i : i + _BATCH]).numpy()
        for i in range(0, len(dataset.x_test), _BATCH)
      ]
    ).astype(np.float64)
    finite = np.isfinite(logits).all(axis=1)
    right = finite & (logits.argmax(axis=1) == dataset.y_test)
    with np.errstate(invalid="ignore"):
      loss = _cross_entropy(logits, dataset.y_test)
    return {"test_accuracy": float(right.mean()), "test_loss": loss}

  return test


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_sums = np.log(np.exp(shifted).sum(axis=1))
  return float(np.mean(log_sums - shifted[np.arange(len(labels)), labels]))


class EvaluationCallback(keras.callbacks.Callback):
  """Ends training at the last step; evaluates at the end of each epoch.

  What is found goes, with the epoch's logs, to the journal, to TensorBoard and
  then into a checkpoint.
  """

  def __init__(
    self,
    settings: Settings,
    test: Callable[[], dict[str, float]],
    journal: Journal,
    *,
    checkpoints: Checkpoints | None,
    writer: tf.summary.SummaryWriter,
    show: Callable[[int, dict[str, float]], None],
  ):
    """Takes where to put what is found.

    Args:
      settings: of the run.
      test: evaluates the model, see `test_function`.
      journal: gets evaluations; its last one says where the run is.
      checkpoints: makes them, None for none.
      writer: of TensorBoard's files.
      show: is told of each step, with what is known of it.
    """
    super().__init__()
    self._settings = settings
    self._test = test
    self._journal = journal
    self._checkpoints = checkpoints
    self._writer = writer
    self._show = show
    self._step = journal.step

  def on_train_begin(self, logs=None):
    """Evaluates the initial model, if the run is at its beginning."""
    if not self._journal.evaluations:
      self._evaluate({})

  def on_train_batch_end(self, batch, logs=None):
    """Counts the step, and ends training at the last."""
    self._step += 1
    self._show(self._step, logs or {})
    if self._step == self._settings.steps:
      self.model.stop_training = True

  def on_epoch_end(self, epoch, logs=None):
    """Evaluates the model, and makes a checkpoint if it is time for one."""
    self._evaluate(logs or {})
    is_last = self._step == self._settings.steps
    if self._checkpoints and (
      is_last or self._step % self._settings.checkpoint_every == 0
    ):
      self._checkpoints.save(self._step)

  def _evaluate(self, logs: dict[str, float]) -> None:
    trained = {_NAMES.get(name, name): float(x) for name, x in logs.items()}
    found = {**self._test(), **trained}
    self._journal.evaluations.append({"step": self._step, **found})
    with self._writer.as_default(step=self._step):
      for name, value in found.items():
        tf.summary.scalar(name, value)
    self._writer.flush()
    self._show(self._step, found)
