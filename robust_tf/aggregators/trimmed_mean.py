"""The coordinate-wise mean without the extremes.

Xie, Koyejo and Gupta, Phocas, 2018 (arXiv 1805.09682), Definition 7.
"""

import tensorflow as tf

from robust_tf.aggregators.coordinate_wise import map_coordinates
from robust_tf.aggregators.rows import Rows
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def trimmed_mean(updates: Updates, trim: int):
  """Returns the mean of each coordinate without its extremes.

  Args:
    updates: n >= 2 trim + 1 updates, in any form of `updates`.
    trim: values to leave out at each end, b in the paper.

  Returns:
    The trimmed means, in the form and the dtypes of the updates.

  Raises:
    TypeError: updates in none of the forms, or `trim` is no integer.
    ValueError: `trim` below 0, or too few updates.
  """
  check_count("trim", trim, 2, 1, num_workers(updates))
  return map_coordinates(trimmed_mean_of_rows, updates, trim)


def trimmed_mean_of_rows(rows: Rows, trim: int) -> tf.Tensor:
  """Returns the trimmed mean [d] of each coordinate of the rows."""
  kept = range(trim, rows.num_rows - trim)
  return rows.total_of_ranks(kept.start, kept.stop) / len(kept)
