"""The mean of the values nearest to a centre: Phocas and MeaMed.

Xie, Koyejo and Gupta, Phocas, 2018 (arXiv 1805.09682), Definition 8;
Generalized Byzantine-tolerant SGD, 2018 (arXiv 1802.10116), Definition 5.
"""

import functools

import tensorflow as tf

from robust_tf.aggregators.median import median_of_rows
from robust_tf.aggregators.sorting_network import order_statistics
from robust_tf.aggregators.trimmed_mean import trimmed_mean_of_rows
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import map_coordinates
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def phocas(updates: Updates, trim: int):
  """Returns the mean of the n - trim values nearest to the trimmed mean.

  Args:
    updates: n >= 2 trim + 1 updates, in any form of `updates`.
    trim: values to leave out, b in the paper.

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError: updates in none of the forms, or `trim` is no integer.
    ValueError: `trim` below 0, or too few updates.
  """
  check_count("trim", trim, 2 * trim + 1, num_workers(updates))
  return map_coordinates(_phocas_of_rows, updates, trim)


def meamed(updates: Updates, num_byzantine: int):
  """Returns the mean of the n - num_byzantine values nearest to the median.

  Args:
    updates: n >= 2 num_byzantine + 1 updates, in any form of `updates`.
    num_byzantine: values to leave out, q in the paper.

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError: updates in none of the forms, or no integer.
    ValueError: `num_byzantine` below 0, or too few updates.
  """
  check_count(
    "num_byzantine",
    num_byzantine,
    2 * num_byzantine + 1,
    num_workers(updates),
  )
  return map_coordinates(_meamed_of_rows, updates, num_byzantine)


def mean_of_nearest(
  rows: list[tf.Tensor], centre: tf.Tensor, num_nearest: int
) -> tf.Tensor:
  """Returns the mean of the values nearest to a centre; ties share a weight."""
  distances = [tf.abs(row - centre) for row in rows]
  (farthest,) = order_statistics(distances, [num_nearest - 1])
  zero = tf.zeros_like(centre)
  add = functools.partial(functools.reduce, tf.add)
  pairs = list(zip(rows, distances, strict=True))
  inside = add([tf.where(d < farthest, row, zero) for row, d in pairs])
  ties = add([tf.where(d == farthest, row, zero) for row, d in pairs])
  count = add([tf.cast(d < farthest, centre.dtype) for d in distances])
  tied = add([tf.cast(d == farthest, centre.dtype) for d in distances])
  return (inside + (num_nearest - count) * ties / tied) / num_nearest


def _phocas_of_rows(rows: list[tf.Tensor], trim: int) -> tf.Tensor:
  centre = trimmed_mean_of_rows(rows, trim)
  return mean_of_nearest(rows, centre, len(rows) - trim)


def _meamed_of_rows(rows: list[tf.Tensor], num_byzantine: int) -> tf.Tensor:
  return mean_of_nearest(rows, median_of_rows(rows), len(rows) - num_byzantine)
