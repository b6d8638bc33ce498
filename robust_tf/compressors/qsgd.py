"""Random rounding to a few levels of the norm.

Alistarh, Grubic, Li, Tomioka and Vojnovic, QSGD: Communication-Efficient SGD
via Gradient Quantization and Encoding, NIPS 2017 (arXiv 1610.02132), Section
3.1. A level takes a fixed number of bits here, not those of an Elias code.
"""

import dataclasses
import math

import tensorflow as tf

from robust_tf.compressors import bit_packing
from robust_tf.compressors import draws
from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_integer
from robust_tf.compressors.arguments import check_seed
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.gathered import Gathered
from robust_tf.random_values import uniform

MAX_LEVELS = 127


@dataclasses.dataclass(frozen=True)
class QSGD(Gathered):
  """Q(v) / (1 + omega), where Q rounds |v_i| / ||v|| to multiples of 1 / s.

  Q rounds up or down at random such that E Q(v) = v, and E ||Q(v) - v||^2 <=
  omega ||v||^2 with omega = min(d / (4 s^2), sqrt(d) / s): the variance of one
  rounding is at most 1 / (4 s^2) of ||v||^2 (Lemma 3.1 has 1 / s^2). Where
  omega exceeds 1, Q alone makes vectors longer and is no delta-approximate
  compressor; divided by 1 + omega it is one, with delta = 1 / (1 + omega),
  whatever s. The division leaves a bias for the caller's residual to correct.

  One coordinate that is not finite makes the whole result NaN.

  Attributes:
    levels: s, from 1 to 127. A coordinate takes 2 bits with one level, 4 with
      up to 7, else 8.
    seed: of the draws; a worker's differ from another's.

  Raises:
    TypeError: an argument is no integer.
    ValueError: `levels` is below 1 or above 127, or `seed` does not fit 64
      bits.
  """

  levels: int = MAX_LEVELS
  seed: int = 0

  def __post_init__(self):
    check_integer("levels", self.levels, 1)
    check_seed(self.seed)
    if self.levels > MAX_LEVELS:
      raise ValueError(
        f"levels must be at most {MAX_LEVELS}, which is what a byte holds with"
        f" a sign, got {self.levels}"
      )

  def encode(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the levels, uint8, and the norm, a scalar.

    A level from -s to s is sent as the number level + s; several are in a byte
    where they fit. The norm is float64 for a float64 vector, else float32.
    """
    vector = as_vector(vector)
    size = vector.shape[0]
    vector = tf.cast(vector, _wide(vector.dtype))
    norm = _norm(vector)
    divisor = tf.where(norm > 0, norm, 1)
    levels = tf.constant(self.levels, vector.dtype)
    exact = tf.minimum(tf.abs(vector) / divisor * levels, levels)
    below = tf.floor(exact)
    seed = draws.worker_seed(self.seed, step, worker)
    draw = tf.cast(uniform([size], seed), vector.dtype)
    level = below + tf.cast(draw < exact - below, vector.dtype)
    codes = tf.cast(tf.where(vector < 0, -level, level) + levels, tf.uint8)
    return bit_packing.pack(codes, self._width()), norm

  def decode(
    self, payload: tuple[tf.Tensor, tf.Tensor], size: int, dtype: tf.DType
  ) -> tf.Tensor:
    """Returns the levels' values, divided by 1 + omega, `[size]`."""
    packed, norm = payload
    codes = bit_packing.unpack(packed, self._width(), size)
    level = tf.cast(codes, norm.dtype) - self.levels
    unit = norm * (self.delta(size) / self.levels)
    return tf.cast(level * unit, dtype)

  def delta(self, size: int) -> float:
    """Returns 1 / (1 + omega)."""
    check_size(size)
    s = self.levels
    return 1 / (1 + min(size / (4 * s**2), math.sqrt(size) / s))

  def payload_bytes(self, size: int, dtype: tf.DType) -> float:
    """Returns the bytes of d levels and one norm."""
    check_size(size)
    levels = bit_packing.packed_size(size, self._width())
    return float(levels + _wide(tf.as_dtype(dtype)).size)

  def _width(self) -> int:
    """Returns how many bits hold a number from 0 to 2 s."""
    return next(w for w in bit_packing.WIDTHS if 2 * self.levels < 2**w)


def _wide(dtype: tf.DType) -> tf.DType:
  return tf.float64 if dtype == tf.float64 else tf.float32


def _norm(vector: tf.Tensor) -> tf.Tensor:
  """Returns the norm, also where the squares would not be finite."""
  largest = tf.reduce_max(tf.abs(vector))
  scale = tf.where(largest > 0, largest, 1)  # NaN stays in the vector
  return scale * tf.norm(vector / scale)
