"""Compressors that keep the same coordinates on every worker.

The mean of what the workers keep is what is kept of their mean, so that an
all-reduce of the kept coordinates carries it, and no indices are sent. Such a
compressor is linear, and applying it twice at one step is applying it once.
"""

import abc

import tensorflow as tf

from robust_tf.compressors.arguments import as_vector
from robust_tf.compressors.arguments import check_size


class SharedSupport(abc.ABC):
  """C(v) = v on the coordinates of the step, 0 elsewhere.

  A coordinate that is kept is kept as it is, NaN and infinity too; one that is
  not kept is 0 whatever it was.
  """

  all_reduce = True

  @abc.abstractmethod
  def support(self, size: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns the coordinates that every worker keeps at a step.

    Args:
      size: the coordinates of the vector, d.
      step: an integer, or an integer scalar tensor.

    Returns:
      int32 `[k]`, ascending.
    """

  @abc.abstractmethod
  def delta(self, size: int) -> float:
    """Returns the share of steps at which any one coordinate is kept.

    So E ||C(v) - v||^2 = (1 - delta) ||v||^2, whatever v.

    Args:
      size: the coordinates of the vector, d.
    """

  def compress(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tf.Tensor:
    """Returns what is kept of the vector, `[d]`, with 0 for the rest.

    Args:
      vector: `[d]`, floating, of known size.
      step: an integer, or an integer scalar tensor.
      worker: makes no difference.
    """
    vector = as_vector(vector)
    support = self.support(vector.shape[0], step)
    return tf.tensor_scatter_nd_update(
      tf.zeros_like(vector),
      support[:, tf.newaxis],
      tf.gather(vector, support),
    )

  def payload_bytes(self, size: int, dtype: tf.DType) -> float:
    """Returns the expected bytes of the coordinates that are kept."""
    check_size(size)
    return self.delta(size) * size * tf.as_dtype(dtype).size
