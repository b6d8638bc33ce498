"""The geometric median: the point with the least sum of distances to all rows.

Weiszfeld's iteration runs on the weights of the rows, with their inner
products: n^2 operations a step, whatever d is, and one weighted sum of the
updates at the end. Where the median is one of the updates, which Weiszfeld's
iteration would approach for ever, that is found out beforehand.

Weiszfeld, Tohoku Mathematical Journal, 1937; Vardi and Zhang, The multivariate
L1-median and associated data depth, PNAS 2000; as an aggregation rule: Xie,
Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv 1802.10116).
"""

import tensorflow as tf

from robust_tf.aggregators.pairwise_distances import from_products
from robust_tf.aggregators.pairwise_distances import squared_distances
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import Updates


def geometric_median(
  updates: Updates, tolerance: float = 1e-12, max_iterations: int = 1000
):
  """Returns argmin_z sum_i ||z - v_i|| over the finite updates v_i.

  Withstands fewer than n / 2 Byzantine workers; permutation, translation,
  scale and rotation of the updates do the same to it.

  Args:
    updates: n >= 1 updates, in any form of `updates`. Updates that are not
      finite are left out; where none is finite, the result is NaN.
    tolerance: where z has a gradient, the mean of the unit vectors from it to
      the updates, no longer than this, the iteration stops.
    max_iterations: the most iterations. Ten to thirty are usual where d is
      large; only updates near one line take hundreds.

  Returns:
    The point, in the form and the dtypes of the updates. Where many points are
    medians (an even number of updates on a line), the mean of those updates
    that are.

  Raises:
    TypeError, ValueError: updates in none of the forms, or none at all.
    ValueError: a tolerance that is not positive, or `max_iterations` below 1.
  """
  return combine(
    updates, geometric_median_weights(updates, tolerance, max_iterations)
  )


def geometric_median_weights(
  updates: Updates, tolerance: float = 1e-12, max_iterations: int = 1000
) -> tf.Tensor:
  """Returns what weights make the geometric median of the updates.

  Args, Raises: as in `geometric_median`.

  Returns:
    [n] float64, not negative and of sum 1; 0 for updates that are not finite.
  """
  if not tolerance > 0:
    raise ValueError(f"tolerance={tolerance} must be positive")
  if max_iterations < 1:
    raise ValueError(f"max_iterations={max_iterations} must be at least 1")
  return from_products(_weights, updates, tolerance, max_iterations)


def _weights(products, finite, tolerance: float, max_iterations: int):
  """Returns the weights, given the products of `from_products`."""
  slack = tolerance * tf.reduce_sum(tf.cast(finite, tf.float64))
  distances = tf.sqrt(squared_distances(products, finite))
  medians = tf.cast(finite & _is_median(products, distances, slack), tf.float64)
  return tf.cond(
    tf.reduce_any(medians > 0),
    lambda: medians / tf.reduce_sum(medians),
    lambda: _weiszfeld(products, finite, slack, max_iterations),
  )


def _is_median(products, distances, slack) -> tf.Tensor:
  """Returns which of the finite updates are medians, [n].

  v_k is one when the pull of the others, sum_i (v_i - v_k) / ||v_i - v_k||,
  is no longer than the number of updates that lie on v_k (Vardi and Zhang,
  equation 2.6).
  """
  on_it = tf.linalg.set_diag(distances == 0, tf.ones_like(distances[0]) > 0)
  # Column k: the weights of all v_i in the pull on v_k.
  pulls = tf.where(on_it, tf.zeros_like(distances), 1 / distances)
  pulls = tf.linalg.set_diag(pulls, -tf.reduce_sum(pulls, axis=0))
  squares = tf.reduce_sum(pulls * tf.matmul(products, pulls), axis=0)
  multiplicity = tf.reduce_sum(tf.cast(on_it, tf.float64), axis=0)
  return tf.sqrt(tf.maximum(squares, 0)) <= multiplicity + slack


def _weiszfeld(products, finite, slack, max_iterations: int) -> tf.Tensor:
  """Returns the weights of a median that is none of the updates."""
  norms = tf.linalg.diag_part(products)

  def step(weights, _):
    """Moves z = sum_i w_i v_i (Vardi and Zhang, equations 2.5 to 2.7)."""
    image = tf.linalg.matvec(products, weights)
    squares = norms - 2 * image + tf.tensordot(weights, image, 1)
    apart = finite & (squares > 0)
    inverses = tf.where(apart, tf.math.rsqrt(squares), tf.zeros_like(squares))
    # T(z) - z and R(z), the sum of the unit vectors towards the updates that
    # are not z; eta(z) of them are.
    change = inverses / tf.reduce_sum(inverses) - weights
    square = tf.tensordot(change, tf.linalg.matvec(products, change), 1)
    length = tf.reduce_sum(inverses) * tf.sqrt(tf.maximum(square, 0))
    on_z = tf.reduce_sum(tf.cast(finite & ~apart, tf.float64))
    pull = tf.maximum(length - on_z, 0)
    return weights + tf.math.divide_no_nan(pull, length) * change, pull

  # The reference, where the products are 0, is as near to half of the updates
  # as any.
  start = tf.cast(finite & (norms == 0), tf.float64)
  return tf.while_loop(
    lambda _, pull: pull > slack,
    step,
    [start / tf.reduce_sum(start), tf.constant(float("inf"), tf.float64)],
    maximum_iterations=max_iterations,
  )[0]
