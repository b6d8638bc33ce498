"""Sums that have the same bits at every run.

`tf.add_n` adds in place, to whichever of its inputs no other op still waits
for when it runs, and begins with that one: of three tensors or more the sum is
rounded in an order that depends on which ops were done first. Outside of XLA
TensorFlow makes such an op of a chain of additions, too.
"""

from collections.abc import Sequence

import tensorflow as tf


def ordered_sum(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns the sum of tensors of one shape and one dtype.

  In which order they are added up depends on their number and shape alone.
  """
  return tf.reduce_sum(tf.stack(tensors), axis=0)
