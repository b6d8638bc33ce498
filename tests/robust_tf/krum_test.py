"""Krum and multi-Krum by hand, with ties, copies and what is not finite."""

import numpy as np
import pytest

from robust_tf.aggregators import krum
from robust_tf.aggregators import krum_weights
from robust_tf.aggregators import multi_krum
from robust_tf.aggregators import multi_krum_weights
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf
from tests.tiers import tiers


def column(*values):
  return np.array(values, np.float32)[:, None]


def test_nearest_neighbors_by_hand():
  # n = 6, q = 1: three neighbors. The scores are 1 + 4 + 9 = 14 for 0,
  # 1 + 1 + 4 = 6 for 1, 1 + 1 + 2.25 = 4.25 for 2, 0.25 + 1 + 4 = 5.25 for 3,
  # and 0.25 + 2.25 + 6.25 = 8.75 for 3.5.
  v = column(0, 1, 2, 3, 3.5, 100)
  assert krum(v, num_byzantine=1) == [2]
  assert multi_krum(v, num_byzantine=1, num_selected=2) == [2.5]
  assert multi_krum(v, num_byzantine=1) == [2]  # the mean of 1, 2 and 3


def test_two_neighbors_and_squared_distances_decide():
  # n = 5, q = 1: two neighbors. 9 has 9 + 16 = 25, 1 has 1 + 25 = 26. By
  # distances that are not squared it would be 1, with 6 and not 7; with a
  # third neighbor 6, with 70.
  assert krum(column(0, 1, 6, 9, 13), num_byzantine=1) == [9]


def test_no_row_is_its_own_neighbor():
  # Two neighbors: 6 has 1 + 1. Were a row its own neighbor, 0 would be first.
  assert krum(column(0, 0.1, 5, 6, 7), num_byzantine=1) == [6]


def test_copies_are_neighbors_of_each_other():
  # Three neighbors: each 0 has 0 + 0 + 25, each 5 has 0 + 16 + 25.
  v = column(5, 5, 0, 0, 0, 9)
  weights = multi_krum_weights(v, num_byzantine=1, num_selected=3).numpy()
  np.testing.assert_array_equal(weights > 0, [0, 0, 1, 1, 1, 0])


def test_weights_of_equal_scores_go_to_the_first():
  v = column(0, 1, 1, 0, 0, 1)  # three of each: all scores are 1
  np.testing.assert_array_equal(
    krum_weights(v, num_byzantine=1), [1, 0, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(
    multi_krum_weights(v, num_byzantine=1, num_selected=2),
    [0.5, 0.5, 0, 0, 0, 0],
  )


@pytest.mark.parametrize("seed", tiers(range(20), range(8)))
def test_selection_equals_the_definition(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(5, 16))
  q = int(rng.integers(0, (n - 3) // 2 + 1))
  v = rng.normal(size=(n, 40)).astype(np.float32)
  v[rng.permutation(n)[:q]] *= np.float32(rng.choice([0, 1, 10, 1e20]))
  scores = oracles.krum_scores(v.astype(np.float64), n - q - 2)
  order = np.argsort(scores, kind="stable")
  assert np.argmax(krum_weights(v, q)) == order[0]
  weights = multi_krum_weights(v, q).numpy()
  assert set(np.flatnonzero(weights)) == set(order[: n - q - 2])
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-15)


def gradients(seed, n, d):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_result_is_one_row_bit_by_bit_in_every_form():
  v = gradients(0, 7, 20_000)
  chosen = v[np.argmax(krum_weights(v, 2))]
  np.testing.assert_array_equal(krum(v, 2), chosen)
  lists = [[tf.constant(row[:19_990]), tf.constant(row[19_990:])] for row in v]
  for run in (krum, tf.function(krum), tf.function(krum, jit_compile=True)):
    result = np.concatenate(run(lists, 2))
    np.testing.assert_array_equal(result, chosen)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_never_taken(value):
  v = gradients(1, 9, 3000)
  v[:3, 1] = value  # a column that no sample holds
  weights = multi_krum_weights(v, num_byzantine=3, num_selected=4).numpy()
  assert (weights[:3] == 0).all()
  np.testing.assert_allclose(
    multi_krum(v, 3), oracles.multi_krum(v.astype(np.float64), 3), atol=1e-6
  )


def test_more_rows_than_tolerated_may_not_be_finite():
  v = gradients(2, 9, 5)
  v[:7] = np.nan
  weights = multi_krum_weights(v, num_byzantine=3).numpy()
  np.testing.assert_array_equal(weights, [0] * 7 + [0.5, 0.5])
  assert np.isfinite(krum(v, 3)).all()


def test_of_no_finite_rows_the_result_is_nan():
  v = np.full((7, 4), np.nan, np.float32)
  for rule in (krum, multi_krum):
    assert np.isnan(rule(v, 2)).all()


def test_large_updates_are_told_apart_as_small_ones_are():
  v = gradients(3, 9, 100)
  expected = krum_weights(v, 2)
  for scale in (1e-25, 1e25):
    np.testing.assert_array_equal(
      krum_weights(v * np.float32(scale), 2), expected
    )


@pytest.mark.parametrize("num_selected", [1.0, True, "2"])
def test_number_of_rows_to_select_must_be_an_integer(num_selected):
  with pytest.raises(TypeError, match="num_selected=.* must be an integer"):
    multi_krum(gradients(0, 7, 3), 1, num_selected=num_selected)


def test_number_of_rows_to_select_has_bounds():
  v = gradients(0, 9, 3)
  with pytest.raises(ValueError, match="num_selected=7 must be 1 to .* 6"):
    multi_krum(v, num_byzantine=1, num_selected=7)


def test_too_few_updates_are_refused():
  with pytest.raises(
    ValueError, match="num_byzantine=3 needs at least 9 updates, got 8"
  ):
    krum(gradients(0, 8, 3), num_byzantine=3)
