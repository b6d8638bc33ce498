"""Compressors whose payloads differ in kind from worker to worker.

A sum of payloads is no payload, so that the payloads of all workers are
gathered, decoded and averaged.
"""

import abc

import tensorflow as tf

from robust_tf.compressors.arguments import as_vector


class Gathered(abc.ABC):
  """C(v) = decode(encode(v))."""

  all_reduce = False

  @abc.abstractmethod
  def encode(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tuple[tf.Tensor, ...]:
    """Returns what a worker sends.

    Args:
      vector: `[d]`, floating, of known size.
      step: an integer, or an integer scalar tensor.
      worker: the worker's index; an integer, or an integer scalar tensor.

    Returns:
      Tensors whose shapes follow from d.
    """

  @abc.abstractmethod
  def decode(
    self, payload: tuple[tf.Tensor, ...], size: int, dtype: tf.DType
  ) -> tf.Tensor:
    """Returns the vector `[size]` that a payload stands for."""

  @abc.abstractmethod
  def delta(self, size: int) -> float:
    """Returns a delta with E ||C(v) - v||^2 <= (1 - delta) ||v||^2 for all v.

    Args:
      size: the coordinates of the vector, d.
    """

  @abc.abstractmethod
  def payload_bytes(self, size: int, dtype: tf.DType) -> float:
    """Returns the bytes of a payload."""

  def compress(
    self, vector: tf.Tensor, step: int | tf.Tensor, worker: int | tf.Tensor = 0
  ) -> tf.Tensor:
    """Returns the vector that the others make of the payload, `[d]`."""
    vector = as_vector(vector)
    payload = self.encode(vector, step, worker)
    return self.decode(payload, vector.shape[0], vector.dtype)
