"""Which examples each worker sees at each step.

A worker goes through its own examples in an order that is shuffled anew each
time round. What it sees at a step is a function of the seed, the worker and
the step alone: a run that is resumed goes on where it was, and all strategies
see the same batches, however the workers are spread over devices.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from robust_tf.federated.validation_examples import validation_examples
from robust_tf.training.data import Dataset

_WORKERS = 0  # sets the stream of random numbers apart from others


@dataclasses.dataclass(frozen=True, eq=False)
class WorkerBatches:
  """The batches of n workers.

  Attributes:
    dataset: where the examples are.
    parts: the examples of each worker, as indices into the training examples.
    batch_size: B, examples that a worker sees at a step.
    seed: of the order.
    flipped_workers: workers whose labels are flipped, y -> classes - 1 - y.
    flipped_from: the step from which on they are.

  Raises:
    ValueError: a worker holds less than a batch.
  """

  dataset: Dataset
  parts: Sequence[np.ndarray]
  batch_size: int
  seed: int
  flipped_workers: Sequence[int] = ()
  flipped_from: int = 0

  def __post_init__(self):
    sizes = [len(x) for x in self.parts]
    smallest = int(np.argmin(sizes))
    if self.batch_size > sizes[smallest]:
      raise ValueError(
        f"batch_size={self.batch_size} is more than the {sizes[smallest]}"
        f" examples of worker {smallest}; give at most {sizes[smallest]}, or"
        " fewer workers"
      )

  def examples(self, worker: int, step: int) -> np.ndarray:
    """Returns the examples of a worker's batch, indices `[B]`.

    Args:
      worker: which one.
      step: 0 is the first.
    """
    size = len(self.parts[worker])
    rounds, places = np.divmod(
      step * self.batch_size + np.arange(self.batch_size), size
    )
    batch = np.empty(self.batch_size, int)
    for number in np.unique(rounds):
      order = self._order(worker, int(number), size)
      batch[rounds == number] = order[places[rounds == number]]
    return self.parts[worker][batch]

  def batch(
    self, workers: Sequence[int], step: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and labels of some workers, one after another.

    Args:
      workers: m of them.
      step: 0 is the first.

    Returns:
      Inputs `[m * B, *input_shape]` and labels `[m * B]`.
    """
    examples = np.concatenate([self.examples(i, step) for i in workers])
    labels = self.dataset.y_train[examples]
    flips = np.isin(workers, self.flipped_workers) & (step >= self.flipped_from)
    flipped = self.dataset.num_classes - 1 - labels
    labels = np.where(np.repeat(flips, self.batch_size), flipped, labels)
    return self.dataset.x_train[examples], labels

  def _order(self, worker: int, number: int, size: int) -> np.ndarray:
    rng = np.random.default_rng([self.seed, _WORKERS, worker, number])
    return rng.permutation(size)


def validation_batches(
  dataset: Dataset, batch_size: int, seed: int, first_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the server's own batch of each step, for ever.

  Args:
    dataset: where the examples are.
    batch_size: examples in a batch, see `validation_examples`.
    seed: of the draws.
    first_step: the step that the first batch is for.

  Yields:
    Inputs `[batch_size, *input_shape]` and labels `[batch_size]`.
  """
  for step in itertools.count(first_step):
    examples = validation_examples(len(dataset.x_train), batch_size, seed, step)
    yield dataset.x_train[examples], dataset.y_train[examples]
