"""Order statistics of many rows, by bisection on the bits of the values.

The bits of floating-point numbers, read as integers, are in the order of the
numbers. The value of a rank is then found bit by bit, from the highest: with
how many values lower than a candidate is its next bit still 0? One bit is one
pass over the rows, which only compares and adds: with integers of 16 bits, of
which a register holds most, in two steps for float32 and four for float64.
Once the high bits of the answer are known, a value with lower high bits counts
as the least there is and one with higher as the greatest.

What a row costs does not depend on how many there are.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

_BITS = 16  # of a digit
_DIGIT = tf.int16
_SIGN = 1 << (_BITS - 1)
_INTEGER = {tf.float32: tf.int32, tf.float64: tf.int64}


def order_statistic(values: tf.Tensor, rank: int | tf.Tensor) -> tf.Tensor:
  """Returns the values [d] of a rank, 0 the least.

  Args:
    values: [groups, rows of a group, d], float32 or float64, without NaN; fewer
      than 2^15 rows.
    rank: a number, or a tensor [d] int16.
  """
  integers = _ordered_integers(values)
  found = None  # the high bits of the answer
  for shift in range(integers.dtype.size * 8 - _BITS, -1, -_BITS):
    rest = tf.bitwise.right_shift(integers, shift)
    # The middle of what begins with the bits that are found.
    middle = 0 if found is None else found * (1 << _BITS) + _SIGN
    digit = _bisected(_digits(rest, middle), rank)
    found = tf.cast(digit, integers.dtype) + middle
  return _values(found, values.dtype)


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


def _bisected(digits: tf.Tensor, rank: int | tf.Tensor) -> tf.Tensor:
  """Returns the digits [d] of a rank."""
  least = tf.constant(_DIGIT.min, _DIGIT)

  def next_bit(bit, low):
    candidate = low + bit
    (lower,) = totals(digits, lambda row: [tf.cast(row < candidate, _DIGIT)])
    low = tf.where(lower <= rank, candidate, low)
    return tf.bitwise.right_shift(bit, 1) & _DIGIT.max, low

  # Adding -2^15 to the least digit wraps round to 0: the sign is a bit too.
  low = tf.fill(digits.shape[2:], least)
  return tf.while_loop(lambda bit, _: bit != 0, next_bit, (least, low))[1]


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
