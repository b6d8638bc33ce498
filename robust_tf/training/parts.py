"""Who holds which training examples, as the flags say."""

import numpy as np

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training.data import Dataset
from robust_tf.training.settings import Settings


def make_parts(settings: Settings, dataset: Dataset) -> list[np.ndarray]:
  """Returns the examples of each worker, as indices into the training ones.

  Args:
    settings: of the run.
    dataset: what is learned.

  Raises:
    ValueError: the examples cannot be divided so.
  """
  try:
    return PARTITIONS[settings.partition](
      dataset.y_train,
      settings.workers,
      settings.seed,
      **settings.partition_arguments,
    )
  except ValueError as error:
    raise ValueError(f"--partition={settings.partition}: {error}") from None
