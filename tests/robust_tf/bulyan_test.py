"""Bulyan: its selection, and the middle of what it selected."""

import numpy as np
import pytest

from robust_tf.aggregators import bulyan
from robust_tf.aggregators import bulyan_weights
from robust_tf.aggregators import multi_krum_weights
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf


def gradients(seed, n, d):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def selected(v, num_byzantine):
  return set(np.flatnonzero(bulyan_weights(v, num_byzantine)).tolist())


def test_selection_and_middle_by_hand():
  # n = 7, q = 1: five rounds, then the mean of the three nearest the median.
  v = np.array([[0], [1], [3], [4], [6], [7], [90]], np.float32)
  # With 4, 3, 2, 1 and 1 neighbors: 3 has 9 + 4 + 1 + 9 = 23, as 4 has; then
  # 4 has 9 + 4 + 9 = 22, 6 and 1 more; then of 0, 1, 6, 7, 90 with two
  # neighbors 1 has 1 + 25 = 26, as 6 has; then 6 and 7 have 1, and 7 is alone
  # with 0 and 90, where 0 and 7 have 49.
  assert oracles.bulyan_selection(v.astype(np.float64), 1) == [2, 3, 1, 4, 0]
  assert selected(v, 1) == {0, 1, 2, 3, 4}
  # The median of 0, 1, 3, 4, 6 is 3; nearest are 3, 4 and 1.
  np.testing.assert_allclose(bulyan(v, 1), [8 / 3], rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_that_of_repeated_krum(seed):
  rng = np.random.default_rng(seed)
  q = int(rng.integers(0, 4))
  n = 4 * q + 3 + int(rng.integers(0, 4))
  v = gradients(seed, n, 30)
  v[rng.permutation(n)[:q]] *= np.float32(rng.choice([0.5, -1, 3, 1e20]))
  expected = set(oracles.bulyan_selection(v.astype(np.float64), q))
  assert selected(v, q) == expected
  assert len(expected) == n - 2 * q


def test_selection_is_not_one_shot_multi_krum():
  differs = 0
  for seed in range(5):
    v = gradients(seed, 15, 4)
    v[:3] = v[3:].mean(axis=0) + 1.5 * v[3:].std(axis=0)
    one_shot = multi_krum_weights(v, 3, num_selected=9).numpy() > 0
    differs += selected(v, 3) != set(np.flatnonzero(one_shot))
  assert differs


@pytest.mark.parametrize("n", [7, 8, 11, 12])
@pytest.mark.parametrize("seed", range(3))
def test_result_equals_the_definition(n, seed):
  v = gradients(seed, n, 500)
  q = (n - 3) // 4
  np.testing.assert_allclose(
    bulyan(v, q), oracles.bulyan(v.astype(np.float64), q), atol=1e-6
  )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e20])
def test_liars_in_one_column_do_not_change_the_middle(value):
  # A column that no sample holds; elsewhere they are as good as any.
  v = gradients(0, 11, 3000)
  v[[0, 10]] = v[3:8].mean(axis=0)
  v[[0, 10], 1] = value
  if not np.isfinite(value):
    assert not selected(v, 2) & {0, 10}
  # Finite ones are near to each other, which late rounds take for a virtue.
  np.testing.assert_allclose(
    bulyan(v, 2), oracles.bulyan(v.astype(np.float64), 2), atol=1e-6
  )


def test_copies_are_as_many_as_they_are():
  v = gradients(1, 11, 6)
  v[1] = v[0]
  assert selected(v, 2) == set(oracles.bulyan_selection(v.astype(float), 2))


def test_withstanding_nobody_selects_all():
  v = gradients(2, 5, 6)
  np.testing.assert_allclose(bulyan_weights(v, 0), [0.2] * 5)
  np.testing.assert_allclose(bulyan(v, 0), v.mean(axis=0), atol=1e-6)


def test_weights_are_equal_on_the_selected():
  weights = bulyan_weights(gradients(3, 11, 6), 2).numpy()
  np.testing.assert_allclose(weights[weights > 0], [1 / 7] * 7)


def test_list_of_variables_is_one_vector():
  v = gradients(4, 7, 20_010)
  lists = [
    [tf.constant(row[:20_000].reshape(100, 200)), tf.constant(row[20_000:])]
    for row in v
  ]
  for run in (bulyan, tf.function(bulyan)):
    large, small = run(lists, 1)
    result = np.concatenate([np.ravel(large), small])
    np.testing.assert_allclose(result, bulyan(v, 1), atol=1e-6)


def test_too_few_updates_are_refused():
  with pytest.raises(
    ValueError, match="num_byzantine=2 needs at least 11 updates, got 10"
  ):
    bulyan(gradients(0, 10, 3), num_byzantine=2)
