"""The rows of n updates, and what coordinate-wise rules ask of them.

A rule asks for order statistics and for sums over the rows. Few rows are
tensors in a list: the compiler makes one loop of a rule's networks and sums.
Many rows would be too large a loop to compile: they are one tensor, of which
each pass is a loop, and very many are not sorted but searched. Both classes
answer to the same methods, so that a rule is written once. All of it is to be
called in a compiled function.

NaN counts as +inf: neither is what an honest worker sends, and it has to stand
somewhere in the order.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.aggregators import bit_selection
from robust_tf.aggregators import sorting_network

# Of more rows, a rule's passes over them are loops of their own: MeaMed of 104
# rows of bfloat16 as one loop is five times slower, for the same reason as what
# stands at `_MOST_OF_NETWORK`.
MOST_OF_FEW = 100

# Rows that one turn of a loop over the groups takes.
_MOST_OF_GROUP = 64

# More, with what fills up their last group, would be too many to be counted in
# 16 bits.
MOST_OF_MANY = 2**15 - _MOST_OF_GROUP

# The most rows that are sorted by a network. A loop of some 3,600 operations (a
# trimmed mean of 150 rows, a median of 170) XLA cuts into functions, of which
# the code is not vectorized, and a hundred times slower.
_MOST_OF_NETWORK = 128

_sum = functools.partial(functools.reduce, tf.add)


@dataclasses.dataclass(frozen=True)
class FewRows:
  """Rows of a list.

  Attributes:
    values: n <= MOST_OF_FEW tensors [d], without NaN.
  """

  values: Sequence[tf.Tensor]

  @classmethod
  def of(cls, rows: Sequence[tf.Tensor]) -> "FewRows":
    """Returns rows [d] that may hold NaN."""
    return cls([_without_nan(row) for row in rows])

  @property
  def num_rows(self) -> int:
    """The number of rows, n."""
    return len(self.values)

  def map(self, function: Callable) -> "FewRows":
    """Returns the rows that an elementwise function makes of these."""
    return FewRows.of([function(row) for row in self.values])

  def order_statistic(self, rank: int) -> tf.Tensor:
    """Returns the values [d] of one rank, 0 the least."""
    (value,) = sorting_network.order_statistics(self.values, [rank])
    return value

  def total_of_ranks(self, start: int, stop: int) -> tf.Tensor:
    """Returns the sums [d] of the values of ranks start <= rank < stop."""
    ranks = range(start, stop)
    return _sum(sorting_network.order_statistics(self.values, ranks))

  def distance_of_nearest(
    self, distance: Callable, num_nearest: int
  ) -> tf.Tensor:
    """Returns how far [d] the last of the nearest values is from a center.

    Args:
      distance: makes the distances [d] from the center of a row [d]: an
        elementwise function that falls up to the center and rises from there.
      num_nearest: of the rows.
    """
    # Once sorted, the nearest are neighbors, of which the first or the last is
    # the farthest; the compiler sees that the center took the same comparisons.
    ranks = range(self.num_rows)
    ordered = sorting_network.order_statistics(self.values, ranks)
    distances = [distance(row) for row in ordered]
    farthest = map(tf.maximum, distances, distances[num_nearest - 1 :])
    return functools.reduce(tf.minimum, farthest)

  def totals(self, terms: Callable) -> list[tf.Tensor]:
    """Returns the sums over the rows of each of the tensors `terms(row)`."""
    sums = zip(*[terms(row) for row in self.values], strict=True)
    return [_sum(values) for values in sums]

  def median_of_finite(self) -> tf.Tensor:
    """Returns the median [d] of the finite values, NaN where there are none."""
    # Each second value that is not finite goes to the other end: the finite
    # ones stay in the middle, or half a rank above it.
    n, infinity = self.num_rows, _infinity(self.values[0])
    is_odd = tf.zeros_like(self.values[0], tf.bool)
    balanced = []
    for row in self.values:
      is_finite = tf.math.is_finite(row)
      end = tf.where(is_odd, infinity, -infinity)
      balanced.append(tf.where(is_finite, row, end))
      is_odd ^= ~is_finite
    ranks = (n - 1) // 2, n // 2, min(n // 2 + 1, n - 1)
    below, middle, above = sorting_network.order_statistics(balanced, ranks)
    low, high = (below, middle), (middle, middle if n % 2 == 0 else above)
    a, b = (tf.where(is_odd, y, x) for x, y in zip(low, high, strict=True))
    median = a / 2 + b / 2
    return tf.where(tf.math.is_finite(median), median, float("nan"))


@dataclasses.dataclass(frozen=True)
class ManyRows:
  """Rows of a tensor, in groups.

  Attributes:
    rows: [n, d] with n <= MOST_OF_MANY; may hold NaN.
    values: the same as [groups, rows of a group, d]; +inf after n rows.
  """

  rows: tf.Tensor
  values: tf.Tensor

  @classmethod
  def of(cls, rows: tf.Tensor) -> "ManyRows":
    """Returns rows [n, d] that may hold NaN."""
    n, d = rows.shape
    num_groups = -(-n // _MOST_OF_GROUP)
    size = -(-n // num_groups)
    # Joined, not padded: `tf.vectorized_map` of TensorFlow 2.21 pads with 0.
    rest = tf.fill([num_groups * size - n, d], _infinity(rows))
    values = tf.concat([rows, rest], axis=0)
    return cls(rows, tf.reshape(values, [num_groups, size, d]))

  @property
  def num_rows(self) -> int:
    """The number of rows, n."""
    return self.rows.shape[0]

  def map(self, function: Callable) -> "ManyRows":
    """Returns the rows that an elementwise function makes of these.

    It has to keep +inf what it is.
    """
    # A loop, so that what the function refers to is computed once: twice, in
    # two places, it might be rounded in two ways.
    values = tf.map_fn(lambda x: function(_without_nan(x)), self.values)
    rows = tf.reshape(values, [-1, values.shape[-1]])[: self.num_rows]
    return ManyRows(rows, values)

  def order_statistic(self, rank: int) -> tf.Tensor:
    """Returns the values [d] of one rank, 0 the least."""
    if self._fit_a_network:
      return self._listed.order_statistic(rank)
    return bit_selection.order_statistic(_without_nan(self.values), rank)

  def total_of_ranks(self, start: int, stop: int) -> tf.Tensor:
    """Returns the sums [d] of the values of ranks start <= rank < stop."""
    if self._fit_a_network:
      return self._listed.total_of_ranks(start, stop)
    if stop <= start + 2:
      return self._total_of_neighbors(start, stop)
    low = self.order_statistic(start)
    high = self.order_statistic(stop - 1)
    zero, one = tf.zeros_like(low), tf.ones_like(low)

    def terms(row):
      inside = (low < row) & (row < high)
      return (
        tf.where(inside, row, zero),
        tf.where(inside, one, zero),
        tf.where(row <= low, one, zero),
      )

    total, num_inside, num_low = self.totals(terms)
    num_low -= start  # of those that are as low, so many have a lower rank
    num_high = (stop - start) - num_inside - num_low
    return tf.where(
      low == high,
      low * (stop - start),
      total + num_low * low + num_high * high,
    )

  def _total_of_neighbors(self, start: int, stop: int) -> tf.Tensor:
    low = self.order_statistic(start)
    if stop == start + 1:
      return low
    (num_low,) = self.totals(lambda row: [tf.cast(row <= low, tf.int16)])
    above = bit_selection.least_above(self.values, low)
    return low + tf.where(num_low > start + 1, low, above)

  def distance_of_nearest(
    self, distance: Callable, num_nearest: int
  ) -> tf.Tensor:
    """Returns how far [d] the last of the nearest values is; see `FewRows`."""
    return self.map(distance).order_statistic(num_nearest - 1)

  def totals(self, terms: Callable) -> list[tf.Tensor]:
    """Returns the sums over the rows of each of the tensors `terms(row)`.

    The terms of a row +inf have to be 0, unless such values do not matter.
    """
    # Each pass replaces NaN anew: rows without would have to be written down.
    return bit_selection.totals(
      self.values, lambda row: terms(_without_nan(row))
    )

  def median_of_finite(self) -> tf.Tensor:
    """Returns the median [d] of the finite values, NaN where there are none."""
    if self._fit_a_network:
      return self._listed.median_of_finite()
    infinity = _infinity(self.values)
    num_low, num_finite = self.totals(
      lambda row: (
        tf.cast(row == -infinity, tf.int16),
        tf.cast(tf.math.is_finite(row), tf.int16),
      )
    )
    values = _without_nan(self.values)
    low, high = (
      bit_selection.order_statistic(values, num_low + rank)
      for rank in ((num_finite - 1) // 2, num_finite // 2)
    )
    return tf.where(num_finite > 0, low / 2 + high / 2, float("nan"))

  @property
  def _fit_a_network(self) -> bool:
    return self.num_rows <= _MOST_OF_NETWORK

  @property
  def _listed(self) -> FewRows:
    # Not of the groups, which need not be made where a network will do.
    return FewRows.of(tf.unstack(self.rows))


Rows = FewRows | ManyRows


def _without_nan(rows: tf.Tensor) -> tf.Tensor:
  return tf.where(tf.math.is_nan(rows), _infinity(rows), rows)


def _infinity(like: tf.Tensor) -> tf.Tensor:
  return tf.constant(float("inf"), like.dtype)
