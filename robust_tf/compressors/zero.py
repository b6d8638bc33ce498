"""Nothing is sent."""

import dataclasses

import tensorflow as tf

from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.shared_support import SharedSupport


@dataclasses.dataclass(frozen=True)
class Zero(SharedSupport):
  """C(v) = 0."""

  def support(self, size: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns no coordinates, int32 `[0]`."""
    check_size(size)
    return tf.zeros([0], tf.int32)

  def delta(self, size: int) -> float:
    """Returns 0: the bound holds, and promises nothing."""
    return 0.0

  def compress(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tf.Tensor:
    """Returns zeros `[d]`, NaN or not."""
    return tf.zeros_like(as_vector(vector))
