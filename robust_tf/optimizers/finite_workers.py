"""How many workers have gradients that a loss scale can use.

Under mixed_float16 a gradient that overflows is not finite, and the step is
made again with a smaller scale of the loss. Keras asks the first replica of a
process alone, as gradients that were summed are the same on all. Here every
worker has its own.
"""

from collections.abc import Sequence

import tensorflow as tf


def finite_workers(
  gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
  workers_per_replica: int | None,
) -> tf.Tensor:
  """Returns how many workers of all replicas have finite gradients.

  To be called on each replica; it costs one number in an all-reduce.

  Args:
    gradients: of this replica, one a variable; None where there is none.
    workers_per_replica: None, or the length of their leading axis.

  Returns:
    A float32 scalar, the same on all replicas.
  """
  rows = workers_per_replica or 1
  finite = tf.ones([rows], tf.bool)
  for gradient in gradients:
    if gradient is not None:
      if isinstance(gradient, tf.IndexedSlices):
        gradient = gradient.values
      of_rows = tf.reshape(tf.math.is_finite(gradient), [rows, -1])
      finite &= tf.reduce_all(of_rows, axis=1)
  count = tf.reduce_sum(tf.cast(finite, tf.float32))
  if not tf.distribute.has_strategy():
    return count
  context = tf.distribute.get_replica_context()
  return context.all_reduce(tf.distribute.ReduceOp.SUM, count)
