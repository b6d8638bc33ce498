"""Sorts n rows coordinate by coordinate with a fixed list of comparisons.

A comparison is an elementwise minimum and maximum of two rows, so the whole
network is one loop over the coordinates when compiled. Merge exchange: Knuth,
The Art of Computer Programming 3, 5.2.2, Algorithm M.
"""

import functools
from collections.abc import Iterable
from collections.abc import Sequence

import tensorflow as tf

Comparator = tuple[int, int]
PrunedComparator = tuple[int, int, bool, bool]


@functools.cache
def comparators(num_rows: int) -> tuple[Comparator, ...]:
  """Returns the pairs (i, j), i < j, to compare and exchange in this order."""
  pairs = []
  if num_rows < 2:
    return ()
  t = (num_rows - 1).bit_length()
  p = 1 << (t - 1)
  while p:
    q, r, d = 1 << (t - 1), 0, p
    while True:
      pairs += [(i, i + d) for i in range(num_rows - d) if i & p == r]
      if q == p:
        break
      d, q, r = q - p, q // 2, p
    p //= 2
  return tuple(pairs)


def pruned(
  pairs: Sequence[Comparator], ranks: Iterable[int]
) -> list[PrunedComparator]:
  """Returns what of a network is needed for some ranks.

  Returns:
    (i, j, whether the minimum is needed, whether the maximum is).
  """
  live = set(ranks)
  kept = []
  for i, j in reversed(pairs):
    if i in live or j in live:
      kept.append((i, j, i in live, j in live))
      live |= {i, j}
  return kept[::-1]


def order_statistics(
  rows: Sequence[tf.Tensor], ranks: Sequence[int]
) -> list[tf.Tensor]:
  """Returns the rows of some ranks, 0 the least.

  Args:
    rows: n tensors of one shape, without NaN.
    ranks: of 0 to n - 1.
  """
  wires = list(rows)
  for i, j, low, high in pruned(comparators(len(rows)), ranks):
    a, b = wires[i], wires[j]
    if low:
      wires[i] = tf.minimum(a, b)
    if high:
      wires[j] = tf.maximum(a, b)
  return [wires[rank] for rank in ranks]
