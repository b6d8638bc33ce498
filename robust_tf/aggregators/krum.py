"""Krum and multi-Krum: the updates whose neighbors are nearest.

Every update is scored by the sum of its squared distances to the n - q - 2
updates nearest to it. Krum takes the one of least score, multi-Krum the mean
of the m of least score.

Blanchard, El Mhamdi, Guerraoui and Stainer, Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent, NeurIPS 2017.
"""

import functools

import numpy as np
import tensorflow as tf

from robust_tf.aggregators.pairwise_distances import from_products
from robust_tf.aggregators.pairwise_distances import squared_distances
from robust_tf.aggregators.updates import Block
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import map_blocks
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def krum(updates: Updates, num_byzantine: int):
  """Returns the update whose n - q - 2 nearest neighbors are nearest.

  Args:
    updates: n >= 2 q + 3 updates, in any form of `updates`.
    num_byzantine: q, how many may be Byzantine.

  Returns:
    One of the updates, in their form and dtypes; of equal scores, the first.
    An update that is not finite is never taken; where none is finite, the
    result is NaN.

  Raises:
    TypeError: updates in none of the forms, or `num_byzantine` no integer.
    ValueError: `num_byzantine` below 0, or too few updates.
  """
  weights = krum_weights(updates, num_byzantine)
  return map_blocks(_row_of_weight_1, updates, weights)


def krum_weights(updates: Updates, num_byzantine: int) -> tf.Tensor:
  """Returns 1 for the update that `krum` takes, else 0: [n] float64.

  Args, Raises: as in `krum`.
  """
  return multi_krum_weights(updates, num_byzantine, num_selected=1)


def multi_krum(
  updates: Updates, num_byzantine: int, num_selected: int | None = None
):
  """Returns the mean of the updates of least Krum scores.

  Args:
    updates: n >= 2 q + 3 updates, in any form of `updates`.
    num_byzantine: q, how many may be Byzantine.
    num_selected: m, how many to average: 1 to n - q - 2, the default.

  Returns:
    One update, in the form and the dtypes of the updates. Of equal scores the
    first are taken. Updates that are not finite are never taken: where less
    than m are finite, the mean is that of these; where none is, NaN.

  Raises:
    TypeError: updates in none of the forms, or a count that is no integer.
    ValueError: a count out of its range, or too few updates.
  """
  return combine(
    updates, multi_krum_weights(updates, num_byzantine, num_selected)
  )


def multi_krum_weights(
  updates: Updates, num_byzantine: int, num_selected: int | None = None
) -> tf.Tensor:
  """Returns 1 / m for the updates that `multi_krum` takes, else 0: [n] float64.

  Args, Raises: as in `multi_krum`.
  """
  n = num_workers(updates)
  check_count("num_byzantine", num_byzantine, 2, 3, n)
  num_neighbors = n - num_byzantine - 2
  if num_selected is None:
    num_selected = num_neighbors
  _check_num_selected(num_selected, num_neighbors)
  return from_products(_weights, updates, num_neighbors, num_selected)


def _row_of_weight_1(block: Block, weights: tf.Tensor) -> tf.Tensor:
  """Returns what `combine` would, without reading the other rows."""
  index = tf.argmax(weights, output_type=tf.int32)
  if isinstance(block, tuple):
    rows = [functools.partial(tf.identity, row) for row in block]
    row = tf.switch_case(index, rows)
  else:
    row = tf.gather(block, index)
  return tf.cond(
    tf.gather(weights, index) == 1,
    lambda: row,
    lambda: tf.fill(tf.shape(row), tf.constant(float("nan"), row.dtype)),
  )


def _check_num_selected(num_selected: int, most: int) -> None:
  if isinstance(num_selected, bool) or not isinstance(
    num_selected, int | np.integer
  ):
    raise TypeError(
      f"num_selected={num_selected!r} must be an integer, a number of workers"
    )
  if not 1 <= num_selected <= most:
    raise ValueError(
      f"num_selected={num_selected} must be 1 to n - num_byzantine - 2,"
      f" here {most}"
    )


def _weights(products, finite, num_neighbors: int, num_selected: int):
  """Returns the weights, given the products of `from_products`."""
  distances = squared_distances(products, finite)
  nearest = tf.sort(distances, axis=1)[:, :num_neighbors]
  # A finite update comes before one that is not, whatever its score is.
  scores = tf.minimum(tf.reduce_sum(nearest, axis=1), tf.float64.max)
  scores = tf.where(finite, scores, tf.constant(float("inf"), tf.float64))
  ranks = tf.argsort(tf.argsort(scores, stable=True), stable=True)
  selected = tf.cast((ranks < num_selected) & finite, tf.float64)
  return selected / tf.reduce_sum(selected)
