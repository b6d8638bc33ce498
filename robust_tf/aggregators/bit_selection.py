"""Order statistics of many rows, by bisection on the bits of the values.

The bits of floating-point numbers, read as integers, are in the order of the
numbers. The value of a rank is then found bit by bit, from the highest: with
how many values lower than a candidate is its next bit still 0? One bit is one
pass over the rows, which only compares and adds: with integers of 16 bits, of
which a register holds most, in two steps for float32 and four for float64.
Once the high bits of the answer are known, a value with lower high bits counts
as the least there is and one with higher as the greatest.

The cost is about that of a sorting network of 64 rows, however many they are.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

_BITS = 16  # of a digit
_DIGIT = tf.int16
_SIGN = 1 << (_BITS - 1)
_INTEGER = {tf.float32: tf.int32, tf.float64: tf.int64}


def order_statistics(
  values: tf.Tensor, ranks: Sequence[int | tf.Tensor]
) -> list[tf.Tensor]:
  """Returns the values [d] of some ranks, 0 the least.

  Args:
    values: [groups, rows of a group, d], float32 or float64, without NaN; no
      more than 2^15 - 1 rows.
    ranks: numbers, or tensors [d] int16.
  """
  integers = _ordered_integers(values)
  found = [None] * len(ranks)  # the high bits of each answer
  for shift in range(integers.dtype.size * 8 - _BITS, -1, -_BITS):
    rest = tf.bitwise.right_shift(integers, shift)
    # The middle of what begins with the bits that are found.
    middles = [0 if x is None else x * (1 << _BITS) + _SIGN for x in found]
    digits = [_digits(rest, middle) for middle in middles]
    found = [
      tf.cast(digit, integers.dtype) + middle
      for digit, middle in zip(_bisected(digits, ranks), middles, strict=True)
    ]
  return [_values(x, values.dtype) for x in found]


def totals(values: tf.Tensor, terms: Callable) -> list[tf.Tensor]:
  """Returns the sums over all rows of each of the tensors `terms(row)`.

  Args:
    values: [groups, rows of a group, d].
    terms: makes tensors [d] of a row [d].
  """
  zeros = [tf.zeros_like(x) for x in terms(values[0, 0])]
  return _folded(tf.add, zeros, values, terms)


def least_above(values: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
  """Returns the least values [d] above a bound [d], +inf where there are none.

  Args:
    values: [groups, rows of a group, d].
    bound: [d].
  """
  infinity = tf.fill(bound.shape, tf.constant(float("inf"), bound.dtype))
  (least,) = _folded(
    tf.minimum,
    [infinity],
    values,
    lambda row: [tf.where(row > bound, row, infinity)],
  )
  return least


def _folded(function, start, values: tf.Tensor, terms: Callable):
  """Returns what a function of two tensors makes of the terms of all rows."""
  num_groups, size, d = values.shape

  def with_group(group, *results):
    # Row by row: a slice of many rows would be copied.
    rows = [
      tf.reshape(tf.slice(values, [group, k, 0], [1, 1, d]), [d])
      for k in range(size)
    ]
    columns = zip(results, *[terms(row) for row in rows], strict=True)
    return group + 1, *[functools.reduce(function, x) for x in columns]

  return tf.while_loop(
    lambda group, *_: group < num_groups,
    with_group,
    (tf.constant(0), *start),
  )[1:]


def _bisected(
  digits: Sequence[tf.Tensor], ranks: Sequence[int | tf.Tensor]
) -> Sequence[tf.Tensor]:
  """Returns the digit [d] of each rank among the digits of that rank."""
  least = tf.constant(_DIGIT.min, _DIGIT)

  def next_bit(bit, *lows):
    candidates = [low + bit for low in lows]
    lower = [
      totals(digit, lambda row, x=x: [tf.cast(row < x, _DIGIT)])[0]
      for digit, x in zip(digits, candidates, strict=True)
    ]
    lows = [
      tf.where(count <= rank, candidate, low)
      for count, rank, candidate, low in zip(
        lower, ranks, candidates, lows, strict=True
      )
    ]
    return tf.bitwise.right_shift(bit, 1) & _DIGIT.max, *lows

  # Adding -2^15 to the least digit wraps round to 0: the sign is a bit too.
  lows = [tf.fill(digits[0].shape[2:], least)] * len(ranks)
  return tf.while_loop(lambda bit, *_: bit != 0, next_bit, (least, *lows))[1:]


def _digits(integers: tf.Tensor, middle: tf.Tensor | int) -> tf.Tensor:
  """Returns how far integers are above a middle, or the farthest that fits."""
  least, greatest = middle - _SIGN, middle + (_SIGN - 1)
  within = tf.minimum(tf.maximum(integers, least), greatest)
  return tf.cast(within - middle, _DIGIT)


def _ordered_integers(values: tf.Tensor) -> tf.Tensor:
  """Returns integers in the order of the values; undone by `_values`."""
  integers = tf.bitcast(values, _INTEGER[values.dtype])
  negative = tf.bitwise.right_shift(integers, values.dtype.size * 8 - 1)
  # The other bits of a negative number grow as it falls.
  flipped = tf.bitwise.bitwise_and(negative, integers.dtype.max)
  return tf.bitwise.bitwise_xor(integers, flipped)


def _values(integers: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  negative = tf.bitwise.right_shift(integers, dtype.size * 8 - 1)
  flipped = tf.bitwise.bitwise_and(negative, integers.dtype.max)
  return tf.bitcast(tf.bitwise.bitwise_xor(integers, flipped), dtype)
