"""Tensors of any shapes and dtypes as one vector of bytes, and back.

A process that sends another ten tensors waits ten times; one that sends a
vector waits once. Both sides know the tensors' specs, so that the bytes hold
nothing but values. They are in the order of the machine: all of a cluster's
machines are little-endian, as TensorFlow's own messages take them to be.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

Specs = Sequence[tf.TensorSpec]


def num_bytes(specs: Specs) -> int:
  """Returns how many bytes tensors of these specs have."""
  return sum(_sizes(specs))


def bytes_of_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the bytes of arrays, uint8 `[num_bytes]`."""
  return np.concatenate(
    [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays]
  )


def arrays_of_bytes(message: np.ndarray, specs: Specs) -> list[np.ndarray]:
  """Returns arrays, read-only views of their bytes.

  Args:
    message: uint8 `[num_bytes]`.
    specs: of the arrays.
  """
  ends = np.cumsum(_sizes(specs))
  return [
    np.frombuffer(part, spec.dtype.as_numpy_dtype).reshape(spec.shape)
    for part, spec in zip(np.split(message, ends[:-1]), specs, strict=True)
  ]


def bytes_of_tensors(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns the bytes of tensors, uint8 `[num_bytes]`."""
  return tf.concat(
    [tf.reshape(tf.bitcast(x, tf.uint8), [-1]) for x in tensors], axis=0
  )


def tensors_of_bytes(message: tf.Tensor, specs: Specs) -> list[tf.Tensor]:
  """Returns tensors of their bytes.

  Args:
    message: uint8 `[num_bytes]`.
    specs: of the tensors.
  """
  return [
    tf.bitcast(tf.reshape(part, [*spec.shape, spec.dtype.size]), spec.dtype)
    for part, spec in zip(tf.split(message, _sizes(specs)), specs, strict=True)
  ]


def _sizes(specs: Specs) -> list[int]:
  return [spec.shape.num_elements() * spec.dtype.size for spec in specs]
