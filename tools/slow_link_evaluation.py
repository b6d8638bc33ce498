"""The loss and the accuracy of the mean of all workers' models.

The workers swap their models through files, so that no link carries them, and
each evaluates a part of the examples.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from robust_tf.training.data import Dataset
from tools.rendezvous import Rendezvous

_LOSS_EXAMPLES = 1000  # of the training examples, at most


class MeanModel:
  """The mean of the models, which are perceptrons with ReLUs."""

  def __init__(
    self, data: Dataset, directory: str, index: int, meeting: Rendezvous
  ):
    """Has no model yet.

    Args:
      data: vectors and their labels.
      directory: the same for all workers; gets a file for each model.
      index: of this worker.
      meeting: of all workers.
    """
    self._data = data
    self._directory = pathlib.Path(directory)
    self._index = index
    self._meeting = meeting
    self._num_workers = 0
    self._weights = []

  def update(self, weights: Sequence[np.ndarray], value) -> list:
    """Takes the mean of the models; returns the workers' values, by index.

    Args:
      weights: this worker's model: a kernel and a bias for each layer.
      value: anything of this worker, as JSON has it.
    """
    np.save(
      self._path(self._index), np.concatenate([x.ravel() for x in weights])
    )
    values = self._meeting.meet(value)
    self._num_workers = len(values)
    mean = np.mean([np.load(self._path(i)) for i in range(len(values))], axis=0)
    ends = np.cumsum([x.size for x in weights])[:-1]
    self._weights = [
      part.reshape(x.shape)
      for part, x in zip(np.split(mean, ends), weights, strict=True)
    ]
    # Nobody writes its next model before all have read these.
    self._meeting.meet()
    return values

  def training_loss(self) -> float:
    """Returns the mean cross-entropy of the first training examples."""
    count = min(_LOSS_EXAMPLES, len(self._data.x_train))
    mine = slice(self._index, count, self._num_workers)
    labels = self._data.y_train[mine]
    logits = self._logits(self._data.x_train[mine]).astype(np.float64)
    right = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    losses = np.logaddexp.reduce(logits, axis=1) - right
    return sum(self._meeting.meet(float(losses.sum()))) / count

  def test_accuracy(self) -> float:
    """Returns the share of test examples that are classified right."""
    mine = slice(self._index, None, self._num_workers)
    guesses = np.argmax(self._logits(self._data.x_test[mine]), axis=1)
    right = int(np.sum(guesses == self._data.y_test[mine]))
    return sum(self._meeting.meet(right)) / len(self._data.y_test)

  def _path(self, index: int) -> pathlib.Path:
    return self._directory / f"model_{index}.npy"

  def _logits(self, x: np.ndarray) -> np.ndarray:
    *hidden, kernel, bias = self._weights
    for layer in range(0, len(hidden), 2):
      x = np.maximum(x @ hidden[layer] + hidden[layer + 1], 0)
    return x @ kernel + bias
