"""The coordinate-wise mean without the extremes.

Xie, Koyejo and Gupta, Phocas, 2018 (arXiv 1805.09682), Definition 7.
"""

import functools

import tensorflow as tf

from robust_tf.aggregators.sorting_network import order_statistics
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import map_coordinates
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
  check_count("trim", trim, 2 * trim + 1, num_workers(updates))
  return map_coordinates(trimmed_mean_of_rows, updates, trim)


def trimmed_mean_of_rows(rows: list[tf.Tensor], trim: int) -> tf.Tensor:
  """Returns the coordinate-wise trimmed mean of rows of one shape."""
  kept = order_statistics(rows, range(trim, len(rows) - trim))
  return functools.reduce(tf.add, kept) / len(kept)
