"""Batches as `fit` takes them: tuples (x, y) or (x, y, sample_weight)."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from baechi_tf.python_item import as_tensors


def as_batch(batch: Any) -> Any:
  """Returns the arrays in a batch as tensors."""

  def as_tensor(value):
    known = value is None or tf.is_tensor(value)
    return value if known else as_tensors(value)

  return tf.nest.map_structure(as_tensor, batch)


def check_batch(batch: Any) -> int:
  """Returns the number of examples in a batch.

  Args:
    batch: a tuple as a `tf.data.Dataset` gives it to `fit`, of tensors.

  Raises:
    ValueError: the batch is no tuple of (inputs, targets) or (inputs, targets,
      sample weights), is empty, or its tensors have different numbers of rows.
  """
  if not isinstance(batch, tuple) or not 1 <= len(batch) <= 3:
    raise ValueError(
      "example_batch must be a tuple (x, y) or (x, y, sample_weight), as a"
      f" tf.data.Dataset gives it to fit; got {type(batch).__name__}"
    )
  shapes = [x.shape for x in tf.nest.flatten(batch) if tf.is_tensor(x)]
  rows = [x[0] for x in shapes if x.rank]
  if not rows or min(rows) < 1 or len(rows) < len(shapes):
    raise ValueError(
      f"example_batch needs at least one example, got {_shapes(shapes)}"
    )
  if len(set(rows)) > 1:
    raise ValueError(
      "example_batch must have as many examples in each tensor, got the shapes"
      f" {_shapes(shapes)}"
    )
  return rows[0]


def _shapes(shapes: Sequence[tf.TensorShape]) -> str:
  return ", ".join(str(tuple(x.as_list())) for x in shapes) or "no tensor"


def batch_specs(batch: Any, any_rows: bool = False) -> Any:
  """Returns the type of each of a batch's tensors, in the batch's structure.

  Args:
    batch: a structure of tensors, `None`s and other values.
    any_rows: leave the first dimension of dense tensors open, as a data set
      does whose last batch may be smaller.
  """

  def spec(value):
    if not isinstance(value, tf.Tensor):
      composite = isinstance(value, tf.__internal__.CompositeTensor)
      return tf.type_spec_from_value(value) if composite else value
    shape = value.shape
    if any_rows and shape.rank:
      shape = [None, *shape[1:]]
    return tf.TensorSpec(shape, value.dtype)

  return tf.nest.map_structure(spec, batch)
