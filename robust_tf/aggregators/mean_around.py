"""The mean of the values nearest to a center: Phocas and MeaMed.

Xie, Koyejo and Gupta, Phocas, 2018 (arXiv 1805.09682), Definition 8;
Generalized Byzantine-tolerant SGD, 2018 (arXiv 1802.10116), Definition 5.
"""

import tensorflow as tf

from robust_tf.aggregators.coordinate_wise import map_coordinates
from robust_tf.aggregators.median import median_of_rows
from robust_tf.aggregators.rows import Rows
from robust_tf.aggregators.trimmed_mean import trimmed_mean_of_rows
from robust_tf.aggregators.updates import check_count
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
  check_count("trim", trim, 2, 1, num_workers(updates))
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
  check_count("num_byzantine", num_byzantine, 2, 1, num_workers(updates))
  return map_coordinates(_meamed_of_rows, updates, num_byzantine)


def mean_of_nearest(
  rows: Rows, center: tf.Tensor, num_nearest: int
) -> tf.Tensor:
  """Returns the mean [d] of the values of the rows nearest to a center.

  Values that are equally far from it, and do not all fit, share what is left:
  neither the order of the rows nor their sign matters. NaN where fewer values
  have a finite distance.
  """

  def distance(row):
    return tf.abs(row - center)

  farthest = rows.distance_of_nearest(distance, num_nearest)
  zero, one = tf.zeros_like(center), tf.ones_like(center)

  def terms(row):
    is_inside = distance(row) < farthest
    is_tied = distance(row) == farthest
    return (
      tf.where(is_inside, row, zero),
      tf.where(is_tied, row, zero),
      tf.where(is_inside, one, zero),
      tf.where(is_tied, one, zero),
    )

  inside, tied, num_inside, num_tied = rows.totals(terms)
  total = inside + (num_nearest - num_inside) * (tied / num_tied)
  return tf.where(
    tf.math.is_finite(farthest), total / num_nearest, float("nan")
  )


def _phocas_of_rows(rows: Rows, trim: int) -> tf.Tensor:
  center = trimmed_mean_of_rows(rows, trim)
  return mean_of_nearest(rows, center, rows.num_rows - trim)


def _meamed_of_rows(rows: Rows, num_byzantine: int) -> tf.Tensor:
  center = median_of_rows(rows)
  return mean_of_nearest(rows, center, rows.num_rows - num_byzantine)
