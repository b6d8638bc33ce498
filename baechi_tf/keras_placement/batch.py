"""Batches as `fit` takes them: tuples (x, y) or (x, y, sample_weight)."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from baechi_tf.python_item import as_tensors


def as_batch(batch: Any) -> Any:
  """Returns the arrays in a batch as tensors.

  Raises:
    ValueError: the batch is, or has in it, a whole data set.
  """

  def as_tensor(value):
    if isinstance(value, tf.data.Dataset):
      raise ValueError(
        "example_batch is a tf.data.Dataset, must be one batch of it:"
        " next(iter(dataset))"
      )
    known = value is None or tf.is_tensor(value)
    return value if known else as_tensors(value)

  return tf.nest.map_structure(as_tensor, batch)


def check_batch(batch: Any, any_structure: bool = False) -> int:
  """Returns the number of examples in a batch.

  Args:
    batch: a tuple as a `tf.data.Dataset` gives it to `fit`, of tensors.
    any_structure: whether another structure of tensors will do, because the
      model's own training step takes the batch apart.

  Raises:
    ValueError: the batch is no tuple of (inputs, targets) or (inputs, targets,
      sample weights), has single values or no examples, or its tensors have
      different numbers of rows.
  """
  is_tuple = isinstance(batch, tuple) and 1 <= len(batch) <= 3
  if not is_tuple and not any_structure:
    raise ValueError(
      "example_batch must be a tuple (x, y) or (x, y, sample_weight), as a"
      f" tf.data.Dataset gives it to fit; got {type(batch).__name__}"
    )
  shapes = [x.shape for x in tf.nest.flatten(batch) if tf.is_tensor(x)]
  if any(x.rank == 0 for x in shapes):
    raise ValueError(
      "example_batch has a single value where a row for each example belongs:"
      " make lists of values NumPy arrays"
    )
  rows = [x[0] for x in shapes]
  if not rows or min(rows) < 1:
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
