"""The oracles themselves, on numbers worked by hand and against SciPy."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats

from tests.robust_tf import oracles


def column(*values):
  return np.array(values, dtype=float)[:, None]


def test_median_of_an_even_number_is_the_middle_of_two():
  assert oracles.median(column(4, 0, 1, 100)) == [2.5]
  assert oracles.median(column(4, 0, 1)) == [1]


def test_median_counts_nan_as_infinity():
  assert oracles.median(column(np.nan, 0, 1)) == [1]
  assert oracles.trimmed_mean(column(np.nan, 0, 1), trim=1) == [1]


def test_trimmed_mean_drops_both_ends():
  v = column(9, 1, 5, 100, -100)
  assert oracles.trimmed_mean(v, trim=1) == [5]
  assert oracles.trimmed_mean(v, trim=2) == [5]
  assert oracles.trimmed_mean(v, trim=0) == [3]


@pytest.mark.parametrize("trim", range(5))
def test_trimmed_mean_is_scipys(trim):
  v = np.random.default_rng(trim).normal(size=(10, 6))
  np.testing.assert_allclose(
    oracles.trimmed_mean(v, trim), stats.trim_mean(v, trim / 10 + 1e-9, axis=0)
  )


def test_phocas_takes_the_values_nearest_to_the_trimmed_mean():
  # The trimmed mean of 0, 1, 2, 3, 10 is 2; its four nearest are 0, 1, 2, 3.
  assert oracles.phocas(column(10, 0, 1, 2, 3), trim=1) == [1.5]


def test_meamed_takes_the_values_nearest_to_the_median():
  # The median of 0, 1, 5, 6, 7 is 5; its three nearest are 5, 6, 7.
  assert oracles.meamed(column(0, 1, 5, 6, 7), num_byzantine=2) == [6]


def test_mean_around_lets_equally_far_values_share_their_places():
  # Nearest to 0 are 0 and one of -1, 1, which leaves their mean.
  assert oracles.mean_around(column(-1, 0, 1), [0.0], count=2) == [0]
  assert oracles.mean_around(column(-1, 1, 3), [1.0], count=2) == [1]


def test_geometric_median_of_a_line_is_its_middle_row():
  v = np.array([[0.0, 0], [1, 1], [5, 5]])
  np.testing.assert_array_equal(oracles.geometric_median(v), [1, 1])


def test_geometric_median_of_a_square_is_its_center():
  v = np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]])
  np.testing.assert_allclose(oracles.geometric_median(v), [1, 1])


def test_geometric_median_is_a_row_that_a_majority_sent():
  v = np.array([[3.0, 4]] * 3 + [[1e6, 0], [0, -1e6]])
  np.testing.assert_array_equal(oracles.geometric_median(v), [3, 4])


@pytest.mark.parametrize("seed", range(3))
def test_geometric_median_is_scipys_minimum(seed):
  rng = np.random.default_rng(seed)
  v = rng.normal(size=(9, 4)) * np.array([[1]] * 6 + [[50]] * 3)
  found = optimize.minimize(
    lambda z: np.linalg.norm(z - v, axis=1).sum(),
    v.mean(axis=0),
    jac=lambda z: -oracles.pull(v, z),
    method="BFGS",
    options={"gtol": 1e-7},
  )
  np.testing.assert_allclose(oracles.geometric_median(v), found.x, atol=1e-6)


def test_krum_takes_the_row_with_the_nearest_neighbors():
  # Two neighbors each: 0 scores 1 + 9, 1 scores 1 + 4, 3 scores 1 + 4,
  # 4 scores 1 + 9, 100 scores much.
  v = column(100, 4, 3, 1, 0)
  np.testing.assert_array_equal(
    oracles.krum_scores(v, 2), [96**2 + 97**2, 10, 5, 5, 10]
  )
  assert oracles.krum(v, num_byzantine=1) == [3]
  assert oracles.multi_krum(v, num_byzantine=1) == [2]
  assert oracles.multi_krum(v, num_byzantine=1, num_selected=1) == [3]


def test_krum_leaves_itself_out_and_not_its_copies():
  scores = oracles.krum_scores(column(0, 0, 3, 10), num_neighbors=1)
  np.testing.assert_array_equal(scores, [0, 0, 9, 49])


def test_krum_puts_a_broken_row_last():
  v = np.array([[np.nan, 0], [np.inf, 0], [0, 0], [0, 1], [0, 2], [1, 0]])
  assert np.isinf(oracles.krum_scores(v, 2)[:2]).all()
  # With three neighbors, [0, 1] scores 1 + 1 + 2 and [0, 0] 1 + 1 + 4.
  np.testing.assert_array_equal(oracles.krum(v, num_byzantine=1), [0, 1])


def test_bulyan_selects_one_winner_after_another():
  # Of 1 2 3 4 6 50 60 with 4 neighbors, 3 scores 1 + 1 + 4 + 9 = 15. Of the
  # rest with 3, 4 scores 4 + 4 + 9 = 17; then with 2, 2 scores 1 + 16 = 17.
  # With 1 neighbor, 1 and 6 are 25 apart: the first. Then 50 and 60 are nearer
  # to each other than 6 is to 50.
  v = column(1, 2, 3, 4, 6, 50, 60)
  assert oracles.bulyan_selection(v, num_byzantine=1) == [2, 3, 1, 0, 5]
  # The median of 1, 2, 3, 4, 50 is 3; its three nearest are 2, 3, 4.
  assert oracles.bulyan(v, num_byzantine=1) == [3]


def test_zeno_scores_a_quadratic_by_its_closed_form():
  rng = np.random.default_rng(0)
  v = rng.normal(size=(5, 3))
  offset = rng.normal(size=3)  # x - x*
  gamma, rho = 0.1, 0.02
  scores = oracles.zeno_scores(
    v, lambda step: 0.5 * np.square(offset - step).sum(), gamma, rho
  )
  expected = gamma * v @ offset - (gamma**2 / 2 + rho) * np.square(v).sum(1)
  np.testing.assert_allclose(scores, expected)


def test_zeno_takes_the_best_and_never_a_broken_row():
  v = column(1, 2, -1, np.nan, np.inf)
  result = oracles.zeno(
    v, lambda step: -step.sum(), learning_rate=1, num_suspected=3, rho=0
  )
  assert result == [1.5]


def test_zeno_plus_plus_accepts_what_points_along():
  v = np.array([3.0, 4.0])
  accepted, scaled = oracles.zeno_plus_plus(2 * v, v, 0.1, 0.001, 0.0)
  assert accepted
  np.testing.assert_allclose(scaled, v)
  accepted, scaled = oracles.zeno_plus_plus(-2 * v, v, 0.1, 0.001, 0.0)
  assert not accepted
  np.testing.assert_allclose(scaled, -v)


def test_inner_product_sends_the_mean_of_the_honest_backwards():
  v = np.array([[1.0], [7.0], [3.0]])
  np.testing.assert_array_equal(
    oracles.inner_product(v, byzantine=[1], epsilon=0.5), [[1], [-1], [3]]
  )
