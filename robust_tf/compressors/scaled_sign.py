"""The signs, times the mean absolute value.

Karimireddy, Rebjock, Stich and Jaggi, Error Feedback Fixes SignSGD and other
Gradient Compression Schemes, ICML 2019 (arXiv 1901.09847).
"""

import dataclasses

import tensorflow as tf

from robust_tf.compressors import bit_packing
from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.gathered import Gathered


@dataclasses.dataclass(frozen=True)
class ScaledSign(Gathered):
  """C(v) = (||v||_1 / d) sign(v), where the sign of 0 is 1.

  A sign is one bit, so 0 has to take a side; the identity
  ||C(v) - v||^2 = ||v||^2 - ||v||_1^2 / d holds with either. One NaN makes the
  whole result NaN, and one infinity makes it infinite.
  """

  def encode(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the signs, uint8 `[ceil(d / 8)]`, and the scale, a scalar.

    A bit is 1 for a coordinate from 0; the first one is the lowest bit. The
    scale is of the vector's dtype.
    """
    vector = as_vector(vector)
    # 16 bits do not hold the sum of many values.
    wide = tf.float64 if vector.dtype == tf.float64 else tf.float32
    scale = tf.reduce_mean(tf.cast(tf.abs(vector), wide))
    bits = bit_packing.pack(tf.cast(vector >= 0, tf.uint8), 1)
    return bits, tf.cast(scale, vector.dtype)

  def decode(
    self, payload: tuple[tf.Tensor, tf.Tensor], size: int, dtype: tf.DType
  ) -> tf.Tensor:
    """Returns the scale with the signs, `[size]`."""
    bits, scale = payload
    scale = tf.cast(scale, dtype)
    positive = tf.cast(bit_packing.unpack(bits, 1, size), tf.bool)
    return tf.where(positive, scale, -scale)

  def delta(self, size: int) -> float:
    """Returns 1 / d, the bound for a vector with one coordinate that is not 0.

    For a given vector it is ||v||_1^2 / (d ||v||_2^2), which is 1 where all
    absolute values are equal.
    """
    check_size(size)
    return 1 / size

  def payload_bytes(self, size: int, dtype: tf.DType) -> float:
    """Returns the bytes of d bits and one scale."""
    check_size(size)
    signs = bit_packing.packed_size(size, 1)
    return float(signs + tf.as_dtype(dtype).size)
