"""The coordinates that are largest in absolute value.

Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018 (arXiv
1809.07599), Definition 2.1.
"""

import dataclasses

import tensorflow as tf

from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_ratio
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.gathered import Gathered


@dataclasses.dataclass(frozen=True)
class TopK(Gathered):
  """Keeps the round(d / ratio) largest coordinates, at least 1.

  Of equal ones those in front are kept. NaN counts as infinity: both are sent
  before anything finite.

  Attributes:
    ratio: the compression ratio R, from 1, not counting the indices.

  Raises:
    TypeError: `ratio` is no number.
    ValueError: `ratio` is below 1 or not finite.
  """

  ratio: float

  def __post_init__(self):
    check_ratio(self.ratio)

  def encode(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the values `[k]`, of the vector's dtype, and int32 indices."""
    vector = as_vector(vector)
    infinity = tf.constant(float("inf"), vector.dtype)
    magnitude = tf.where(tf.math.is_nan(vector), infinity, tf.abs(vector))
    kept = self._kept(vector.shape[0])
    indices = tf.math.top_k(magnitude, kept, sorted=False).indices
    return tf.gather(vector, indices), indices

  def decode(
    self, payload: tuple[tf.Tensor, tf.Tensor], size: int, dtype: tf.DType
  ) -> tf.Tensor:
    """Returns the values at their indices `[size]`, with 0 elsewhere."""
    values, indices = payload
    return tf.tensor_scatter_nd_update(
      tf.zeros([size], dtype), indices[:, tf.newaxis], tf.cast(values, dtype)
    )

  def delta(self, size: int) -> float:
    """Returns the share of the coordinates that is kept, k / d.

    The bound holds for every vector, with equality for a constant one.
    """
    return self._kept(size) / size

  def payload_bytes(self, size: int, dtype: tf.DType) -> float:
    """Returns the bytes of k values and k indices."""
    value_and_index = tf.as_dtype(dtype).size + tf.int32.size
    return float(self._kept(size) * value_and_index)

  def _kept(self, size: int) -> int:
    check_size(size)
    return max(1, round(size / self.ratio))
