"""Everything is sent: no compression."""

import dataclasses

import tensorflow as tf

from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.shared_support import SharedSupport


@dataclasses.dataclass(frozen=True)
class Identity(SharedSupport):
  """C(v) = v."""

  def support(self, size: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns all coordinates, int32 `[size]`."""
    check_size(size)
    return tf.range(size)

  def delta(self, size: int) -> float:
    """Returns 1."""
    return 1.0

  def compress(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tf.Tensor:
    """Returns the vector `[d]`."""
    return as_vector(vector)
