"""Tensors of many shapes as one vector, and back.

A rule of a user's own, an attack and a gather between processes take a matrix
[n, d]: a worker's whole gradient a row, the variables side by side in the
order in which the optimizer has them. A few coordinates of such a vector are
taken and put back without making it.
"""

import itertools
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


def split_coordinates(
  coordinates: tf.Tensor, sizes: Sequence[int]
) -> list[tf.Tensor]:
  """Returns the coordinates of a vector by the tensor that they are in.

  Args:
    coordinates: int32 `[k]`, ascending, of the vector.
    sizes: the number of elements of each of the tensors that make it up.

  Returns:
    For each tensor int32 `[k_i]`, of its elements; the k_i add up to k.
  """
  starts = [0, *itertools.accumulate(sizes)]
  edges = tf.searchsorted(coordinates, starts)
  return [
    coordinates[edges[i] : edges[i + 1]] - starts[i] for i in range(len(sizes))
  ]


def take(
  values: Sequence[tf.Tensor], coordinates: Sequence[tf.Tensor]
) -> tf.Tensor:
  """Returns some elements of tensors as one vector, `[k]`.

  Args:
    values: floating, of any shapes.
    coordinates: see `split_coordinates`.
  """
  dtype = packed_dtype([value.dtype for value in values])
  return tf.concat(
    [
      tf.cast(tf.gather(tf.reshape(value, [-1]), chosen), dtype)
      for value, chosen in zip(values, coordinates, strict=True)
    ],
    axis=0,
  )


def put(
  values: Sequence[tf.Tensor],
  coordinates: Sequence[tf.Tensor],
  elements: tf.Tensor,
) -> list[tf.Tensor]:
  """Returns tensors with other elements in place of those that were taken.

  Args:
    values: floating, of any shapes.
    coordinates: see `split_coordinates`.
    elements: `[k]`, in the order of `take`.
  """
  pieces = tf.split(elements, [tf.size(chosen) for chosen in coordinates])
  return [
    tf.reshape(
      tf.tensor_scatter_nd_update(
        tf.reshape(value, [-1]),
        chosen[:, tf.newaxis],
        tf.cast(piece, value.dtype),
      ),
      value.shape,
    )
    for value, chosen, piece in zip(values, coordinates, pieces, strict=True)
  ]


def densified(gradient, variable) -> tf.Tensor:
  """Returns a gradient as a tensor, also that of an embedding's few rows.

  Args:
    gradient: a tensor, or `tf.IndexedSlices`.
    variable: what it is the gradient of.
  """
  if isinstance(gradient, tf.IndexedSlices):
    return tf.math.unsorted_segment_sum(
      gradient.values, gradient.indices, variable.shape[0]
    )
  return gradient
