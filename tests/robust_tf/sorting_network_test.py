"""The network sorts everything, and a pruned one what it was pruned to."""

import itertools

import numpy as np
import pytest

from robust_tf.aggregators.sorting_network import comparators
from robust_tf.aggregators.sorting_network import order_statistics
from robust_tf.aggregators.sorting_network import pruned
from tests.tensorflow_setup import tf


def zeros_and_ones(n):
  """Returns all 2^n columns of n zeros and ones: [n, 2^n]."""
  return np.array(list(itertools.product([0, 1], repeat=n))).T


def run(network, rows):
  """Runs (i, j, low, high) on rows; what is not needed becomes rubbish."""
  wires = list(rows)
  for i, j, low, high in network:
    a, b = wires[i], wires[j]
    wires[i] = np.minimum(a, b) if low else np.full_like(a, -7)
    wires[j] = np.maximum(a, b) if high else np.full_like(a, -7)
  return wires


# A network that sorts all zeros and ones sorts everything: Knuth 5.3.4,
# Theorem Z.
@pytest.mark.parametrize("n", range(1, 13))
def test_network_sorts_all_zeros_and_ones(n):
  rows = zeros_and_ones(n)
  wires = run([(i, j, True, True) for i, j in comparators(n)], rows)
  np.testing.assert_array_equal(wires, np.sort(rows, axis=0))


@pytest.mark.parametrize("n", range(1, 13))
def test_pruned_network_finds_its_ranks_in_all_zeros_and_ones(n):
  rows = zeros_and_ones(n)
  ordered = np.sort(rows, axis=0)
  for start, stop in itertools.combinations(range(n + 1), 2):
    wires = run(pruned(comparators(n), range(start, stop)), rows)
    np.testing.assert_array_equal(wires[start:stop], ordered[start:stop])


@pytest.mark.parametrize("n", [13, 31, 32, 33, 64, 100, 128])
def test_network_sorts_permutations(n):
  rng = np.random.default_rng(n)
  rows = np.stack([rng.permutation(n) for _ in range(200)], axis=1)
  wires = run([(i, j, True, True) for i, j in comparators(n)], rows)
  np.testing.assert_array_equal(wires, np.sort(rows, axis=0))


# Knuth, table 1 of section 5.3.4.
@pytest.mark.parametrize(
  "n, count", [(1, 0), (2, 1), (4, 5), (8, 19), (16, 63)]
)
def test_network_has_as_many_comparators_as_published(n, count):
  assert len(comparators(n)) == count


def test_pruning_to_one_rank_leaves_out_comparators_and_halves_of_them():
  whole = comparators(10)
  median = pruned(whole, [4])
  assert len(median) < len(whole)
  assert sum(low + high for _, _, low, high in median) < 2 * len(median)


def test_ranks_come_in_the_order_asked_for():
  rows = list(tf.constant([[5.0], [1.0], [4.0], [2.0], [3.0]]))
  np.testing.assert_array_equal(
    order_statistics(rows, [4, 0, 2, 2]), [[5], [1], [3], [3]]
  )
