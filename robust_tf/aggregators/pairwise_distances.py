"""Squared distances between updates that hold whatever some of them contain.

||a - b||^2 = ||a||^2 + ||b||^2 - 2 <a, b> makes one matrix product of n^2
passes over the updates, and keeps no digit where the rows are long and the
difference is short: weights of 100 with noise of 0.001, or any honest rows
when an origin is chosen that a Byzantine worker has moved. So the products are
of the rows' differences from a *reference*, one of the rows, and every
reference is checked before its products are used.

Let r_i be the squared distance from row i to its floor(n / 2)-th nearest other
row. The balls with these radii hold more than n / 2 rows each, so any two of
them share a row, and the row of least r is no further than 2 sqrt(r_i) from
any row i. With products G of the differences from it and distances D,

    G_ii + G_jj <= 13 max(D_ij, min(r_i, r_j))    for all i and j:

nothing cancels but a few bits, against the distances that a rule which
withstands up to half of the workers goes by. No row is trusted for that: it
is true of any rows. A sample of the coordinates mostly finds such a reference;
where the products say that it did not, others are tried.

The products are summed over chunks of columns, which are centered in cache:
no copy of the updates is made. Each row is scaled by a power of two, so that
squares neither overflow nor vanish, and chunks are added up in float64.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from robust_tf.aggregators.updates import accumulation_dtype
from robust_tf.aggregators.updates import Block
from robust_tf.aggregators.updates import block_dtype
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import to_blocks
from robust_tf.aggregators.updates import Updates

# Columns centered and multiplied at a time: n rows of them stay in cache.
_CHUNK = 1024

# A matrix product of 49 to 63 rows takes longer than one of 64: with AVX-512 48
# rows are a tile, and what remains of them is multiplied in small pieces.
_SLOW_NUM_ROWS = range(49, 64)

# Columns, at least, that the first reference is guessed from.
_SAMPLE = 256

# G_ii + G_jj over max(D_ij, min(r_i, r_j)) may be this much. The reference
# with the least r has 13; rounding cannot make 32 of that.
_MAX_CANCELLATION = 32

# The least r, where typical differences are 1, that sums of squares which
# vanished, each below the smallest float32, cannot have changed.
_MIN_RADIUS = 2.0**-60

# The integer dtype and the bits of the exponent.
_EXPONENT = {
  tf.float32: (tf.int32, 0x7F800000),
  tf.float64: (tf.int64, 0x7FF0000000000000),
}


@tf.autograph.experimental.do_not_convert
def from_products(function: Callable, updates: Updates, *args) -> Any:
  """Returns `function(products, finite, *args)` of the updates.

  It is traced, together with the products, once for each n.

  Args:
    function: a function of a module, because what is traced is kept by it. It
      is given G, [n, n] float64: inner products of the differences from a good
      reference, in a unit of their own, the same for all; right to about 1e-7
      (float64: 1e-15) of sqrt(G_ii G_jj), and 0 for rows that are not finite;
      and which rows are finite, [n] bool. Also rows of float64 count as not
      finite that are 1e150 times as far away as most.
    updates: n >= 1 updates, in any form of `updates`, each taken as one whole
      vector.
    *args: numbers, passed on to the function.
  """
  return _traced(function, num_workers(updates), *args)(to_blocks(updates))


def squared_distances(products: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
  """Returns D of `from_products`' G, [n, n] float64.

  D is symmetric, never negative, and right to about 1e-6 (float64: 1e-15) of
  max(D_ij, min(r_i, r_j)). It is infinite where a row is not finite, and where
  i = j, so that no row is its own neighbor. Its unit is that of G: rows of
  1e25 and rows of 1e-25 have distances of about d.

  Args:
    products: [n, n] float64.
    finite: [n] bool.
  """
  others = finite[:, None] & finite & ~tf.eye(finite.shape[0], dtype=tf.bool)
  distances = _distances(products, finite)
  return tf.where(others, distances, tf.constant(float("inf"), tf.float64))


@functools.cache
def _traced(function: Callable, num_rows: int, *args) -> Callable:
  """Returns a function of blocks, traced for one n and any d."""

  @tf.function(reduce_retracing=True, autograph=False)
  def apply(blocks):
    return function(*_centered_products(num_rows)(blocks), *args)

  return apply


@functools.cache
def _centered_products(num_rows: int) -> Callable:
  """Returns a function that gives blocks' products and finite rows.

  One of its own, because many rules share it.
  """

  @tf.function(reduce_retracing=True, autograph=False)
  def apply(blocks):
    reference, units, seen_finite = _guess(blocks, num_rows)
    products, finite = _products(blocks, reference, units)
    as_seen = tf.reduce_all(tf.equal(finite, seen_finite))
    radius = tf.reduce_min(_radii(products, finite))
    return tf.cond(
      as_seen & (radius >= _MIN_RADIUS) & _is_accurate(products, finite),
      lambda: (products, finite),
      lambda: _search(blocks, products, finite),
    )

  return apply


def _guess(blocks: tuple[Block, ...], num_rows: int):
  """Returns a reference, the rows' units and which rows look finite.

  All from a sample of the columns of the largest block.
  """
  sizes = [block[0].shape.num_elements() for block in blocks]
  block = blocks[sizes.index(None if None in sizes else max(sizes))]
  stride = tf.maximum(tf.shape(block[0])[0] // _SAMPLE, 1)
  if isinstance(block, tuple):
    sample = tf.stack([row[::stride] for row in block])
  else:
    sample = block[:, ::stride]
  sample = tf.ensure_shape(sample, [num_rows, None])
  sample = tf.cast(sample, accumulation_dtype(sample.dtype))
  finite = tf.reduce_all(tf.math.is_finite(sample), axis=1)
  exact = tf.cast(tf.where(finite[:, None], sample, 0), tf.float64)
  products = tf.matmul(exact, exact, transpose_b=True)
  reference = first_least(_radii(products, finite), finite)
  largest = tf.reduce_max(tf.abs(_centered(sample, reference)), axis=1)
  units = _units(largest, finite)
  return reference, units, finite


def _search(blocks: tuple[Block, ...], products: tf.Tensor, finite: tf.Tensor):
  """Returns products from a reference that is good, and the finite rows.

  Each reference tried is the row of least r by the products of the last one.
  These place every row to within some 1e-3 of its distance to the last
  reference, so that the next one is that much nearer to the best.
  """
  num_rows = finite.shape[0]

  def body(_, untried, products, finite):
    reference = first_least(_radii(products, finite), untried)
    largest = _largest_differences(blocks, reference)
    units = _units(largest, tf.math.is_finite(largest))
    products, finite = _products(blocks, reference, units)
    untried &= tf.range(num_rows) != reference
    return _is_accurate(products, finite), untried, products, finite

  _, _, products, finite = tf.while_loop(
    lambda accurate, untried, *_: ~accurate & tf.reduce_any(untried),
    body,
    [tf.constant(False), _finite_rows(blocks), products, finite],
    parallel_iterations=1,
  )
  return products, finite


def _is_accurate(products: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
  """Returns whether the products have lost no more than a few bits."""
  distances = _distances(products, finite)
  radii = _radii(products, finite)
  norms = tf.linalg.diag_part(products)
  bound = tf.maximum(distances, tf.minimum(radii[:, None], radii))
  return tf.reduce_all(norms[:, None] + norms <= _MAX_CANCELLATION * bound)


def _radii(products: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
  """Returns r, [n]: infinite for rows that are not finite."""
  half = tf.reduce_sum(tf.cast(finite, tf.int32)) // 2
  nearest = tf.sort(_distances(products, finite), axis=1)
  return tf.gather(nearest, half, axis=1)


def _distances(products: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
  """Returns D of G: infinite for rows that are not finite, else 0 for i = j."""
  norms = tf.linalg.diag_part(products)
  distances = tf.maximum(norms[:, None] + norms - 2 * products, 0)
  both = finite[:, None] & finite
  return tf.where(both, distances, tf.constant(float("inf"), tf.float64))


def first_least(values: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
  """Returns the first candidate of least value; 0 where there is none."""
  # argmin starts from the largest float64, so that only less can win.
  values = tf.where(candidates, tf.minimum(values, 1e300), 1e301)
  return tf.argmin(values, output_type=tf.int32)


def _products(blocks: tuple[Block, ...], reference: tf.Tensor, units):
  """Returns G for that reference, and the rows for which it is finite."""
  num_rows = units.shape[0]
  scales = _inverse(units)
  zeros = tf.zeros([num_rows, num_rows], tf.float64)
  total = _fold(_add_products, zeros, blocks, reference, scales)
  # The unit of the products is that of the row in the middle.
  middle = tf.gather(tf.sort(scales), num_rows // 2)
  factors = tf.cast(units, tf.float64) * tf.cast(middle, tf.float64)
  products = (total + tf.transpose(total)) / 2 * factors[:, None] * factors
  finite = tf.math.is_finite(tf.linalg.diag_part(products))
  return tf.where(finite[:, None] & finite, products, 0), finite


def _units(largest: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
  """Returns powers of two near the rows' largest differences, [n].

  Rows that do not differ from the reference, as far as is known, have the
  unit of the row in the middle.

  Args:
    largest: [n], floating point.
    finite: which of them count.
  """
  integers, exponent = _EXPONENT[largest.dtype]
  known = finite & (largest > 0)
  smallest = 2.0**-126 if largest.dtype == tf.float32 else 2.0**-1022
  largest = tf.where(
    known, tf.clip_by_value(largest, smallest, 1 / smallest), 0
  )
  bits = tf.bitwise.bitwise_and(
    tf.bitcast(largest, integers), tf.constant(exponent, integers)
  )
  units = tf.bitcast(bits, largest.dtype)
  middle = tf.gather(tf.sort(units), units.shape[0] // 2)
  typical = tf.where(middle > 0, middle, tf.reduce_max(units))
  typical = tf.where(typical > 0, typical, tf.ones_like(typical))
  return tf.where(known, units, typical)


def _inverse(units: tf.Tensor) -> tf.Tensor:
  """Returns 1 / units, for powers of two: a division may not be exact."""
  integers, _ = _EXPONENT[units.dtype]
  ones = tf.bitcast(tf.ones_like(units), integers)
  return tf.bitcast(2 * ones - tf.bitcast(units, integers), units.dtype)


def _largest_differences(blocks: tuple[Block, ...], reference: tf.Tensor):
  """Returns max_k |x_ik - x_ref,k| / 2, [n]; infinite where not finite."""
  dtypes = [accumulation_dtype(block_dtype(block)) for block in blocks]
  dtype = tf.float64 if tf.float64 in dtypes else tf.float32
  zeros = tf.zeros([_num_rows(blocks[0])], dtype)
  return _fold(_add_largest, zeros, blocks, reference)


def _finite_rows(blocks: tuple[Block, ...]) -> tf.Tensor:
  """Returns which rows hold finite values only, [n]."""
  return _fold(_add_finite, tf.fill([_num_rows(blocks[0])], True), blocks)


def _centered(columns: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
  """Returns half the differences from a row, which no finite rows overflow."""
  return columns * 0.5 - (tf.gather(columns, reference) * 0.5)[None]


def _add_products(total, columns, reference, scales):
  scales = tf.cast(scales, columns.dtype)[:, None]
  centered = _centered(columns, reference) * scales
  centered = tf.cast(centered, _product_dtype(columns.dtype))
  num_rows = centered.shape[0]
  if num_rows in _SLOW_NUM_ROWS:
    centered = tf.pad(centered, [[0, _SLOW_NUM_ROWS.stop - num_rows], [0, 0]])
  product = tf.matmul(centered, centered, transpose_b=True)
  return total + tf.cast(product[:num_rows, :num_rows], total.dtype)


def _add_largest(total, columns, reference):
  values = tf.abs(_centered(columns, reference))
  infinity = tf.constant(float("inf"), values.dtype)
  values = tf.where(tf.math.is_finite(values), values, infinity)
  return tf.maximum(total, tf.cast(tf.reduce_max(values, axis=1), total.dtype))


def _add_finite(total, columns):
  return total & tf.reduce_all(tf.math.is_finite(columns), axis=1)


def _product_dtype(dtype: tf.DType) -> tf.DType:
  """Returns the dtype to multiply in.

  A GPU multiplies float32 matrices with 10 bits of mantissa, unless it has
  been told not to.
  """
  tensor_float = tf.config.experimental.tensor_float_32_execution_enabled()
  if tensor_float and tf.config.list_logical_devices("GPU"):
    return tf.float64
  return dtype


def _fold(add: Callable, total: tf.Tensor, blocks: tuple[Block, ...], *args):
  """Returns add(...add(add(total, chunk_1), chunk_2)...) of all columns."""
  for block in blocks:
    total = _fold_block(add, _num_rows(block))(total, block, *args)
  return total


@functools.cache
def _fold_block(add: Callable, num_rows: int) -> Callable:
  """Returns `_fold` of one block, compiled for one n and any d.

  Compiled, because then a chunk is centered and multiplied in one go.
  """

  @tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
  def apply(total, block, *args):
    width = tf.shape(block[0])[0]
    size = tf.minimum(width, _CHUNK)
    num_chunks = width // _CHUNK

    def columns(start, size):
      if isinstance(block, tuple):
        chunk = tf.stack([tf.slice(row, [start], [size]) for row in block])
      else:
        chunk = tf.slice(block, [0, start], [num_rows, size])
      return tf.cast(chunk, accumulation_dtype(chunk.dtype))

    _, total = tf.while_loop(
      lambda k, _: k < num_chunks,
      lambda k, total: (k + 1, add(total, columns(k * _CHUNK, size), *args)),
      [0, total],
    )
    rest = columns(num_chunks * _CHUNK, width - num_chunks * _CHUNK)
    return add(total, rest, *args)

  return apply


def _num_rows(block: Block) -> int:
  return len(block) if isinstance(block, tuple) else block.shape[0]
