"""Bulyan: repeated Krum, then the middle of what it selected.

Krum alone leaves an attacker room in one coordinate of a long vector. Bulyan
selects theta = n - 2q updates with it and then takes, of each coordinate, the
mean of the theta - 2q values nearest to their median.

El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed
Learning in Byzantium, ICML 2018 (arXiv 1802.07927).
"""

import tensorflow as tf

from robust_tf.aggregators.coordinate_wise import map_coordinates
from robust_tf.aggregators.mean_around import mean_of_nearest
from robust_tf.aggregators.median import median_of_rows
from robust_tf.aggregators.pairwise_distances import first_least
from robust_tf.aggregators.pairwise_distances import from_products
from robust_tf.aggregators.pairwise_distances import squared_distances
from robust_tf.aggregators.rows import Rows
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def bulyan(updates: Updates, num_byzantine: int):
  """Returns the mean of the selected values nearest to their median.

  Args:
    updates: n >= 4 q + 3 updates, in any form of `updates`.
    num_byzantine: q, how many may be Byzantine.

  Returns:
    One update, in the form and the dtypes of the updates. An update that is
    not finite is never selected, where no more than q are such.

  Raises:
    TypeError: updates in none of the forms, or `num_byzantine` no integer.
    ValueError: `num_byzantine` below 0, or too few updates.
  """
  selected = bulyan_weights(updates, num_byzantine) > 0
  # The 2q rows that are left out stand half above and half below all others:
  # the median of the n rows is then that of the selected, and the rows left
  # out are the farthest from it. Nothing is gathered.
  num_left_out = tf.cumsum(tf.cast(~selected, tf.int32))
  infinity = tf.constant(float("inf"))
  signed = tf.where(num_left_out % 2 == 0, infinity, -infinity)
  stand_ins = tf.where(selected, tf.zeros_like(signed), signed)
  num_nearest = num_workers(updates) - 4 * num_byzantine
  return map_coordinates(
    _mean_of_middle, updates, num_nearest, stand_ins=stand_ins
  )


def bulyan_weights(updates: Updates, num_byzantine: int) -> tf.Tensor:
  """Returns 1 / theta for the theta = n - 2 q selected, else 0: [n] float64.

  Bulyan is not the sum of the updates with these weights, but it is made of
  those that have one.

  Args, Raises: as in `bulyan`.
  """
  n = num_workers(updates)
  check_count("num_byzantine", num_byzantine, 4, 3, n)
  return from_products(_weights, updates, num_byzantine)


def _weights(products, finite, num_byzantine: int) -> tf.Tensor:
  """Returns the weights, given the products of `from_products`."""
  n = finite.shape[0]
  num_selected = n - 2 * num_byzantine
  distances = squared_distances(products, finite)
  order = tf.argsort(distances, axis=1, stable=True)
  nearest = tf.gather(distances, order, batch_dims=1)

  def select(k, left):
    """Takes the winner of Krum among the n - k that are left."""
    # Late rounds have fewer than q + 3 rows: one neighbor is the least.
    num_neighbors = tf.maximum(n - k - num_byzantine - 2, 1)
    is_left = tf.gather(left, order)
    count = tf.cumsum(tf.cast(is_left, tf.int32), axis=1)
    neighbors = is_left & (count <= num_neighbors)
    scores = tf.reduce_sum(tf.where(neighbors, nearest, 0), axis=1)
    winner = first_least(scores, left & finite)
    return k + 1, left & (tf.range(n) != winner)

  _, left = tf.while_loop(
    lambda k, _: k < num_selected, select, [0, tf.fill([n], True)]
  )
  return tf.cast(~left, tf.float64) / num_selected


def _mean_of_middle(rows: Rows, num_nearest: int) -> tf.Tensor:
  """Returns the second step, given rows of which some are infinite."""
  return mean_of_nearest(rows, median_of_rows(rows), num_nearest)
