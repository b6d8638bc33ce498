"""Applies a rule that treats every coordinate by itself, fast and safely.

Few rows: the rule is compiled to one loop over the coordinates of a block,
which reads every value once. Many rows: it is compiled for a chunk of columns,
and runs chunk by chunk, so that what it keeps stays in the cache.

A result that is not finite says that more values are NaN or infinite than the
rule can leave out, or that a sum or a difference overflowed. Only then the
rule is applied again with values scaled down by a power of two; and where it
keeps a value that is not finite even so, the median of the finite values
stands in for it. Where there is none, the result is NaN.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from robust_tf.aggregators.rows import FewRows
from robust_tf.aggregators.rows import ManyRows
from robust_tf.aggregators.rows import MOST_OF_FEW
from robust_tf.aggregators.rows import MOST_OF_MANY
from robust_tf.aggregators.rows import Rows
from robust_tf.aggregators.updates import accumulation_dtype
from robust_tf.aggregators.updates import Block
from robust_tf.aggregators.updates import block_dtype
from robust_tf.aggregators.updates import compiled
from robust_tf.aggregators.updates import from_blocks
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import rows_of
from robust_tf.aggregators.updates import to_blocks
from robust_tf.aggregators.updates import Updates

# Columns of a chunk. No power of two, or the rows would share cache lines.
_CHUNK = 1552

RowsFunction = Callable[..., tf.Tensor]


@tf.autograph.experimental.do_not_convert
def map_coordinates(
  function: RowsFunction, updates: Updates, *args, stand_ins=None
):
  """Returns the update that a coordinate-wise rule makes of the updates.

  Args:
    function: `function(rows, *args)` makes a tensor [d] of `Rows`, by
      elementwise operations, such that f(c rows) = c f(rows). A function of a
      module, because what is compiled is kept by it.
    updates: in any of the forms of `updates`.
    *args: numbers, passed on to the function.
    stand_ins: [n]; where it is not 0 it stands in for all values of that row.

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError, ValueError: updates in none of the forms.
    ValueError: more than 32,704 updates.
  """
  n = num_workers(updates)
  if n > MOST_OF_MANY:
    raise ValueError(
      f"{n} updates: rules by rank take no more than {MOST_OF_MANY}"
    )
  blocks = to_blocks(updates)

  def apply(function, *args):
    if n <= MOST_OF_FEW:
      kernel = compiled(_of_few_rows, n, function, *args)
    else:
      kernel = _by_chunks(compiled(_of_many_rows, n, function, *args))
    return [kernel(block, stand_ins) for block in blocks]

  results = _finite(
    apply(function, *args),
    lambda: apply(_scaled, function, *args),
    lambda: apply(_median_of_finite),
  )
  return from_blocks(results, like=updates)


def _finite(
  results: list[tf.Tensor], *alternatives: Callable[[], list[tf.Tensor]]
) -> list[tf.Tensor]:
  """Returns the results with alternatives where they are not finite."""
  if not alternatives:
    return results
  first, *others = alternatives

  def replaced():
    better = [
      tf.where(tf.math.is_finite(old), old, new)
      for old, new in zip(results, first(), strict=True)
    ]
    return _finite(better, *others)

  return tf.cond(_are_finite(results), lambda: results, replaced)


def _are_finite(results: list[tf.Tensor]) -> tf.Tensor:
  """Returns False where a value is not finite, or nearly so."""
  # The fastest way to see every value once; that it overflows early is safe.
  squares = [
    tf.nn.l2_loss(x if x.dtype == tf.float64 else tf.cast(x, tf.float32))
    for x in results
  ]
  return tf.reduce_all([tf.math.is_finite(x) for x in squares])


def _scaled(rows: Rows, function: RowsFunction, *args) -> tf.Tensor:
  """Returns what the function makes of the rows, where a sum would overflow."""
  scale = 2.0 ** -(2 * rows.num_rows).bit_length()  # changes no digit
  return function(rows.map(lambda row: row * scale), *args) / scale


def _median_of_finite(rows: Rows) -> tf.Tensor:
  return rows.median_of_finite()


def _of_few_rows(block: Block, stand_ins, function, *args) -> tf.Tensor:
  """Returns what a function of rows makes of a block's; to be compiled."""
  rows = _replaced(rows_of(block), stand_ins)
  return function(FewRows.of(rows), *args)


def _of_many_rows(chunk: tf.Tensor, stand_ins, function, *args) -> tf.Tensor:
  """Returns what a function of rows makes of a chunk's; to be compiled."""
  chunk = tf.cast(chunk, accumulation_dtype(chunk.dtype))
  if stand_ins is not None:
    column = tf.cast(stand_ins, chunk.dtype)[:, None]
    chunk = tf.where(column == 0, chunk, column)
  return function(ManyRows.of(chunk), *args)


@functools.cache
def _by_chunks(kernel: Callable) -> Callable:
  """Returns a function of a block that applies a kernel to its chunks."""

  @tf.function(reduce_retracing=True, autograph=False)
  def apply(block, stand_ins):
    size = tf.shape(block if _is_matrix(block) else block[0])[-1]
    width = tf.minimum(size, _CHUNK)
    starts = tf.range(0, tf.maximum(size, 1), _CHUNK)
    results = tf.map_fn(
      lambda start: kernel(
        # The last chunk overlaps the one before it.
        _columns(block, tf.minimum(start, size - width), width),
        stand_ins,
      ),
      starts,
      fn_output_signature=tf.TensorSpec([_CHUNK], block_dtype(block)),
    )
    num_first = starts[-1]  # in all chunks but the last
    last = tf.slice(results[-1], [width + num_first - size], [size - num_first])
    first = tf.reshape(results[:-1], [num_first])
    return tf.concat([first, last], axis=0)

  return apply


def _replaced(
  rows: list[tf.Tensor], stand_ins: tf.Tensor | None
) -> list[tf.Tensor]:
  """Returns the rows, of which some are replaced by one value each."""
  if stand_ins is None:
    return rows
  return [
    tf.where(value == 0, row, tf.cast(value, row.dtype))
    for row, value in zip(rows, tf.unstack(stand_ins), strict=True)
  ]


def _columns(block: Block, start: tf.Tensor, width: tf.Tensor) -> Block:
  """Returns some columns of a block, and zeros up to a chunk's width."""
  if not _is_matrix(block):
    rows = [tf.slice(row, [start], [width]) for row in block]
    return _columns(tf.stack(rows), tf.constant(0), width)
  chunk = tf.slice(block, [0, start], [-1, width])
  missing = _CHUNK - width
  chunk = tf.cond(  # No padding is a copy too.
    missing > 0, lambda: tf.pad(chunk, [[0, 0], [0, missing]]), lambda: chunk
  )
  return tf.ensure_shape(chunk, [block.shape[0], _CHUNK])


def _is_matrix(block: Block) -> bool:
  return isinstance(block, tf.Tensor)
