"""Krum and multi-Krum: the updates that have the nearest neighbours.

Blanchard, El Mhamdi, Guerraoui and Stainer, Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent, NeurIPS 2017.
"""

import tensorflow as tf

from robust_tf.aggregators.pairwise_distances import squared_distances
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def krum(updates: Updates, num_byzantine: int):
  """Returns the update that is nearest to its n - q - 2 nearest neighbours.

  Args:
    updates: n >= 2 q + 3 updates, in any form of `updates`.
    num_byzantine: q.

  Returns:
    One of the updates, in their form and dtypes; of equals, the first.

  Raises:
    TypeError: updates in none of the forms, or `num_byzantine` no integer.
    ValueError: `num_byzantine` below 0, or too few updates.
  """
  return combine(updates, krum_weights(updates, num_byzantine))


def krum_weights(updates: Updates, num_byzantine: int) -> tf.Tensor:
  """Returns 1 for the update that `krum` returns, 0 for others: [n] float64."""
  return multi_krum_weights(updates, num_byzantine, num_selected=1)


def multi_krum(
  updates: Updates, num_byzantine: int, num_selected: int | None = None
):
  """Returns the mean of the updates with the least Krum scores.

  Args:
    updates: n >= 2 q + 3 updates, in any form of `updates`.
    num_byzantine: q.
    num_selected: m, of 1 to n - q - 2, which is the default.

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError: updates in none of the forms, or a count that is no integer.
    ValueError: a count out of range, or too few updates.
  """
  return combine(
    updates, multi_krum_weights(updates, num_byzantine, num_selected)
  )


def multi_krum_weights(
  updates: Updates, num_byzantine: int, num_selected: int | None = None
) -> tf.Tensor:
  """Returns 1 / m for the updates that `multi_krum` averages: [n] float64."""
  n = num_workers(updates)
  check_count("num_byzantine", num_byzantine, 2 * num_byzantine + 3, n)
  most = n - num_byzantine - 2
  m = most if num_selected is None else num_selected
  if not 1 <= m <= most:
    raise ValueError(
      f"num_selected={m} must be 1 to {most}, n - num_byzantine - 2 for"
      f" {n} updates"
    )
  scores = krum_scores(squared_distances(updates), most)
  chosen = tf.argsort(scores, stable=True)[:m]
  return tf.reduce_sum(tf.one_hot(chosen, n, dtype=tf.float64), axis=0) / m


def krum_scores(distances: tf.Tensor, num_neighbors: int) -> tf.Tensor:
  """Returns the sums of each row's least distances, [n].

  Args:
    distances: squared, [n, n], infinite on the diagonal.
    num_neighbors: how many to add up.
  """
  return tf.reduce_sum(tf.sort(distances, axis=1)[:, :num_neighbors], axis=1)
