"""The forms in which the updates of n workers come, and walks over them.

A rule takes `updates` in one of four forms and answers in the same one:

  * a tensor [n, d]: one flat update a row; the result is a tensor [d];
  * an ndarray [n, d]; the result is an ndarray [d], outside a `tf.function`;
  * a list over workers of tensors or ndarrays [d]; the result is a tensor [d],
    or an ndarray where all were ndarrays;
  * a list over workers of lists over variables, of tensors, `IndexedSlices` or
    ndarrays of any shapes; the result is a list over variables of dense
    tensors, or of ndarrays where all were ndarrays.

Rules work on *blocks*, the columns of [n, d] cut into pieces: a block is a
tensor [n, d_k], or a tuple of n rows [d_k]. A large variable is a block of its
own, because stacking gradients would copy them; small ones are concatenated,
because a kernel's launch would cost more than the copy. Sums are kept in
float32 at least.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Block = tf.Tensor | tuple[tf.Tensor, ...]
Updates = Any  # one of the forms above; no type says it

_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

# Variables of fewer elements are concatenated.
_PACKED_BELOW = 16384

# A caller's AutoGraph has nothing to rewrite here.
_plain_python = tf.autograph.experimental.do_not_convert


def accumulation_dtype(dtype: tf.DType) -> tf.DType:
  """Returns the dtype to compute in: float32, or float64 for float64."""
  return tf.float64 if dtype == tf.float64 else tf.float32


@_plain_python
def num_workers(updates: Updates) -> int:
  """Returns n, the number of updates.

  Args:
    updates: in any of the module's forms.

  Raises:
    TypeError: updates in none of the forms.
    ValueError: no updates, or a tensor that is not [n, d] with n known.
  """
  if isinstance(updates, list | tuple):
    _check_lists(_lists(updates))
    return len(updates)
  return int(_matrix(updates).shape[0])


def check_count(
  name: str, value: int, factor: int, constant: int, num_updates: int
) -> None:
  """Checks a rule's count, as `trim`, against the number of updates.

  Args:
    name: the argument's name.
    value: the argument.
    factor: the rule works with factor * value + constant updates or more.
    constant: see `factor`.
    num_updates: the updates that there are.

  Raises:
    TypeError: the value is no integer.
    ValueError: the value is negative, or there are too few updates.
  """
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f"{name}={value!r} must be an integer, a number of workers")
  if value < 0:
    raise ValueError(f"{name}={value} must be at least 0")
  updates_needed = factor * value + constant
  if num_updates < updates_needed:
    raise ValueError(
      f"{name}={value} needs at least {updates_needed} updates,"
      f" got {num_updates}"
    )


@_plain_python
def to_blocks(updates: Updates) -> tuple[Block, ...]:
  """Returns the updates as blocks of columns.

  Args:
    updates: in any of the module's forms.

  Returns:
    Blocks in the updates' dtypes. Together they hold every coordinate once;
    all of one dtype, or one of each dtype at least.

  Raises:
    TypeError: updates in none of the forms, or not of floating point.
    ValueError: the workers' updates differ in shape or dtype.
  """
  if not isinstance(updates, list | tuple):
    return (_matrix(updates),)
  rows = _dense_rows(_lists(updates))
  return tuple(
    tuple(_packed([row[k] for k in group]) for row in rows)
    for group in _groups(rows[0])
  )


@_plain_python
def from_blocks(results: Sequence[tf.Tensor], like: Updates):
  """Returns one update of its blocks.

  Args:
    results: a tensor [d_k] of each block of `to_blocks(like)`.
    like: the updates that the blocks were made of.

  Returns:
    The update, in the form and the dtypes of the updates.
  """
  if not isinstance(like, list | tuple):
    (result,) = results
    result = tf.ensure_shape(result, _matrix(like).shape[1:])
    return _as_numpy([result])[0] if _is_array(like) else result
  if _is_flat(like):
    (result,) = from_blocks(results, like=_lists(like))
    return result
  shapes = [_dense_shape(value) for value in like[0]]
  variables = [None] * len(shapes)
  for group, result in zip(_groups(like[0]), results, strict=True):
    sizes = [shapes[k].num_elements() for k in group]
    pieces = [result] if len(group) == 1 else tf.split(result, sizes)
    for k, piece in zip(group, pieces, strict=True):
      variables[k] = _reshaped(piece, like[0][k])
  if all(_is_array(value) for update in like for value in update):
    return _as_numpy(variables)
  return variables


def rows_of(block: Block) -> list[tf.Tensor]:
  """Returns a block's n rows [d_k], in the dtype to compute in.

  To be called inside a compiled function, where it copies nothing.
  """
  rows = tf.unstack(block) if isinstance(block, tf.Tensor) else list(block)
  return [tf.cast(row, accumulation_dtype(row.dtype)) for row in rows]


def block_dtype(block: Block) -> tf.DType:
  """Returns the dtype of a block's rows."""
  return block.dtype if isinstance(block, tf.Tensor) else block[0].dtype


@_plain_python
def map_blocks(kernel: Callable, updates: Updates, *args):
  """Returns the update that `kernel(block, *args)` makes of every block.

  Args:
    kernel: makes a tensor [d_k], in the dtype to compute in, of a block.
    updates: in any of the module's forms.
    *args: passed on to the kernel.

  Returns:
    One update, in the form and the dtypes of the updates.
  """
  results = []
  for block in to_blocks(updates):
    result = kernel(block, *args)
    results.append(tf.cast(result, block_dtype(block)))
  return from_blocks(results, like=updates)


@functools.cache
def compiled(function: Callable, num_rows: int, *args) -> Callable:
  """Returns `function(block, *tensors, *args)`, compiled.

  Args:
    function: a function of a module, because what is compiled is kept by it.
    num_rows: the block's n. The function is traced once for each, with d left
      open: variables of many sizes are no retracings, but n has to be known.
    *args: numbers or functions, passed on.

  Returns:
    A function of the block and the tensors. The result is cast to the block's
    dtype.
  """
  del num_rows  # tells apart what is traced

  @tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
  def apply(block, *tensors):
    return tf.cast(function(block, *tensors, *args), block_dtype(block))

  return apply


@_plain_python
def combine(updates: Updates, weights: tf.Tensor):
  """Returns the weighted sum of the updates.

  A row of weight zero never touches the result, whatever it holds.

  Args:
    updates: in any of the module's forms.
    weights: [n], floating point.

  Returns:
    sum_i weights[i] * updates[i], in the form and the dtypes of the updates.
  """
  kernel = compiled(_weighted_sum, num_workers(updates))
  return map_blocks(kernel, updates, weights)


def _weighted_sum(block: Block, weights: tf.Tensor) -> tf.Tensor:
  weights = tf.cast(weights, accumulation_dtype(block_dtype(block)))
  terms = [
    tf.where(weight == 0, tf.zeros_like(row), weight * row)
    for weight, row in zip(tf.unstack(weights), rows_of(block), strict=True)
  ]
  return functools.reduce(tf.add, terms)


def _matrix(updates) -> tf.Tensor:
  """Returns updates that are no lists as a tensor [n, d]."""
  if not isinstance(updates, tf.Tensor | tf.Variable | np.ndarray):
    raise TypeError(
      f"updates are a {type(updates).__name__}: give a tensor or an ndarray"
      " [n, d], or a list over workers of flat updates [d] or of lists over"
      " variables"
    )
  tensor = tf.convert_to_tensor(updates)
  _check_dtype(tensor.dtype)
  if tensor.shape.rank != 2 or tensor.shape[0] is None:
    raise ValueError(
      f"updates of shape {tensor.shape}: a tensor of updates is [n, d], with n"
      " known; flatten each update, or give a list over workers of lists over"
      " variables"
    )
  if tensor.shape[0] == 0:
    raise ValueError("no updates: at least 1 is needed")
  return tensor


def _is_flat(updates: Sequence) -> bool:
  """Returns whether a list is one of flat updates, one of each worker."""
  return bool(updates) and all(
    isinstance(update, tf.Tensor | tf.Variable | np.ndarray)
    and len(update.shape) == 1
    for update in updates
  )


def _lists(updates: Sequence) -> Sequence[Sequence]:
  """Returns a list of updates as one of lists over variables."""
  return [[x] for x in updates] if _is_flat(updates) else updates


def _check_lists(updates: Sequence[Sequence]) -> None:
  if not updates:
    raise ValueError("no updates: at least 1 is needed")
  for worker, update in enumerate(updates):
    if not isinstance(update, list | tuple):
      raise TypeError(
        f"the update of worker {worker} is a {type(update).__name__}: a list"
        " of updates holds one tensor [d] per worker, or one list of tensors"
      )
    if len(update) != len(updates[0]):
      raise ValueError(
        f"the update of worker {worker} has {len(update)} variables, that of"
        f" worker 0 has {len(updates[0])}"
      )
  if not updates[0]:
    raise ValueError("updates of no variables: at least 1 is needed")


def _check_dtype(dtype: tf.DType) -> None:
  if dtype not in _DTYPES:
    names = ", ".join(x.name for x in _DTYPES)
    raise TypeError(
      f"updates of dtype {dtype.name}: cast them to one of {names}"
    )


def _dense_rows(updates: Sequence[Sequence]) -> list[list[tf.Tensor]]:
  """Returns every worker's variables as dense tensors that agree in shape."""
  _check_lists(updates)
  rows = [
    [_dense(value, worker, k) for k, value in enumerate(update)]
    for worker, update in enumerate(updates)
  ]
  for worker, row in enumerate(rows):
    for k, (first, value) in enumerate(zip(rows[0], row, strict=True)):
      if value.dtype != first.dtype or not first.shape.is_compatible_with(
        value.shape
      ):
        raise ValueError(
          f"variable {k} is {value.dtype.name} {value.shape} in the update of"
          f" worker {worker}, {first.dtype.name} {first.shape} in that of"
          " worker 0"
        )
  return rows


def _dense(value, worker: int, k: int) -> tf.Tensor:
  """Returns one worker's update of one variable as a dense tensor."""
  if isinstance(value, tf.IndexedSlices):
    return _dense_slices(value, worker, k)
  if not isinstance(value, tf.Tensor | tf.Variable | np.ndarray | np.generic):
    raise TypeError(
      f"variable {k} in the update of worker {worker} is a"
      f" {type(value).__name__}, not a tensor"
    )
  tensor = tf.convert_to_tensor(value)
  _check_dtype(tensor.dtype)
  return tensor


def _dense_slices(slices: tf.IndexedSlices, worker: int, k: int) -> tf.Tensor:
  """Returns slices as a dense tensor; slices of one index are added up."""
  if slices.dense_shape is None:
    raise ValueError(
      f"variable {k} in the update of worker {worker} is IndexedSlices of no"
      " dense_shape: give them the variable's shape"
    )
  _check_dtype(slices.dtype)
  values = tf.cast(slices.values, accumulation_dtype(slices.dtype))
  total = tf.math.unsorted_segment_sum(
    values, slices.indices, slices.dense_shape[0]
  )
  return tf.ensure_shape(tf.cast(total, slices.dtype), _dense_shape(slices))


def _dense_shape(value) -> tf.TensorShape:
  """Returns the shape of a variable's update, as far as it is known."""
  if isinstance(value, tf.IndexedSlices):
    static = tf.get_static_value(value.dense_shape)
    first = None if static is None else static[0]
    return tf.TensorShape([first]).concatenate(value.values.shape[1:])
  return tf.TensorShape(value.shape)


def _groups(update: Sequence) -> list[list[int]]:
  """Returns which variables make up each block: the small ones, by dtype."""
  groups = []
  small = {}
  for k, value in enumerate(update):
    size = _dense_shape(value).num_elements()
    if size is None or size >= _PACKED_BELOW:
      groups.append([k])
    else:
      small.setdefault(tf.as_dtype(value.dtype), []).append(k)
  return groups + list(small.values())


def _packed(values: list[tf.Tensor]) -> tf.Tensor:
  """Returns the elements of some tensors in one row."""
  flat = [x if x.shape.rank == 1 else tf.reshape(x, [-1]) for x in values]
  return flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)


def _reshaped(flat: tf.Tensor, like) -> tf.Tensor:
  shape = _dense_shape(like)
  if shape.is_fully_defined():
    return tf.reshape(flat, shape)
  if isinstance(like, tf.IndexedSlices):
    return tf.reshape(flat, like.dense_shape)
  return tf.reshape(flat, tf.shape(like))


def _is_array(value) -> bool:
  return isinstance(value, np.ndarray | np.generic)


def _as_numpy(tensors: list[tf.Tensor]) -> list:
  """Returns tensors as arrays, where they have values yet."""
  if not tf.executing_eagerly():
    return tensors
  return [np.asarray(x.numpy()) for x in tensors]  # no scalars of NumPy
