"""Gradients of many shapes as rows of one matrix, and one row back.

A rule of a user's own, an attack and a gather between processes take a matrix
[n, d]: a worker's whole gradient a row, the variables side by side in the
order in which the optimizer has them.
"""

from collections.abc import Sequence

import tensorflow as tf


def packed_dtype(dtypes: Sequence[tf.DType]) -> tf.DType:
  """Returns the dtype that holds values of all these floating dtypes."""
  if len(set(dtypes)) == 1:
    return dtypes[0]
  return tf.float64 if tf.float64 in dtypes else tf.float32


def pack(gradients: Sequence[tf.Tensor], num_rows: int) -> tf.Tensor:
  """Returns gradients, one tensor a variable, as a matrix of whole gradients.

  Args:
    gradients: floating, of any shapes with `num_rows` times the elements of
      their variable, row after row.
    num_rows: the number of whole gradients in them.

  Returns:
    `[num_rows, d]`, in the widest dtype of the gradients.
  """
  dtype = packed_dtype([gradient.dtype for gradient in gradients])
  return tf.concat(
    [tf.cast(tf.reshape(g, [num_rows, -1]), dtype) for g in gradients], axis=1
  )


def unpack(row: tf.Tensor, like: Sequence[tf.TensorSpec]) -> list[tf.Tensor]:
  """Returns one row of a packed matrix as one tensor a variable.

  Args:
    row: `[d]`.
    like: the shape and dtype for each variable.
  """
  sizes = [spec.shape.num_elements() for spec in like]
  return [
    tf.cast(tf.reshape(piece, spec.shape), spec.dtype)
    for piece, spec in zip(tf.split(row, sizes), like, strict=True)
  ]
