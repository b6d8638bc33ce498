"""What every worker sees at every step, as one array."""

import numpy as np

from robust_tf.training.batches import WorkerBatches


def worker_examples(batches: WorkerBatches, num_steps: int) -> np.ndarray:
  """Returns the examples of all workers, indices `[T, n, B]`.

  Args:
    batches: of n workers.
    num_steps: T.
  """
  return np.array(
    [
      [batches.examples(worker, step) for worker in range(len(batches.parts))]
      for step in range(num_steps)
    ]
  )
