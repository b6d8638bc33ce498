"""The geometric median: the point of least summed distance to the updates.

Chen, Su and Xu, Distributed Statistical Machine Learning in Adversarial
Settings, 2017; Weiszfeld's iteration, on the inner products of the updates.
"""

import tensorflow as tf

from robust_tf.aggregators.pairwise_distances import centered_products
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import Updates


def geometric_median(
  updates: Updates, tolerance: float = 1e-9, max_iterations: int = 1000
):
  """Returns the geometric median of the updates.

  Args:
    updates: n >= 1 updates, in any form of `updates`.
    tolerance: largest change of a weight in the last iteration.
    max_iterations: iterations at most.

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError, ValueError: updates in none of the forms, or none at all.
  """
  return combine(
    updates, geometric_median_weights(updates, tolerance, max_iterations)
  )


def geometric_median_weights(
  updates: Updates, tolerance: float = 1e-9, max_iterations: int = 1000
) -> tf.Tensor:
  """Returns the weights of the updates in their geometric median: [n]."""
  products, finite = centered_products(updates)
  norms = tf.linalg.diag_part(products)

  def weights_of(squared):
    root = tf.sqrt(tf.maximum(squared, 0))
    least = 1e-9 * tf.reduce_max(root) + 1e-300
    inverse = tf.where(finite, 1 / tf.maximum(root, least), 0)
    return inverse / tf.reduce_sum(inverse)

  def step(_, weights):
    image = tf.linalg.matvec(products, weights)
    squared = norms - 2 * image + tf.tensordot(weights, image, 1)
    new = weights_of(squared)
    return tf.reduce_max(tf.abs(new - weights)), new

  start = tf.cast(finite, tf.float64) / tf.reduce_sum(
    tf.cast(finite, tf.float64)
  )
  _, weights = tf.while_loop(
    lambda change, _: change > tolerance,
    step,
    (tf.constant(1.0, tf.float64), start),
    maximum_iterations=max_iterations,
  )
  return weights
