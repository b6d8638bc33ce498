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
  counts: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns how many workers have finite gradients, and of how many.

  To be called on each replica; it costs two numbers in an all-reduce.

  Args:
    gradients: of this replica, one a variable; None where there is none.
    workers_per_replica: None, or the length of their leading axis.
    counts: bool scalar, whether the workers of this replica are counted at
      all; None where those of all replicas are.

  Returns:
    Two float32 scalars, the same on all replicas.
  """
  rows = workers_per_replica or 1
  finite = tf.ones([rows], tf.bool)
  for gradient in gradients:
    if gradient is not None:
      if isinstance(gradient, tf.IndexedSlices):
        gradient = gradient.values
      of_rows = tf.reshape(tf.math.is_finite(gradient), [rows, -1])
      finite &= tf.reduce_all(of_rows, axis=1)
  sums = tf.stack([tf.reduce_sum(tf.cast(finite, tf.float32)), rows])
  if counts is not None:
    sums *= tf.cast(counts, sums.dtype)
  if tf.distribute.has_strategy():
    context = tf.distribute.get_replica_context()
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
  return sums[0], sums[1]
