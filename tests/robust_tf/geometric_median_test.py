"""The geometric median: where it is known, where it is a row, how it ends."""

import numpy as np
import pytest

from robust_tf.aggregators import geometric_median
from robust_tf.aggregators import geometric_median_weights
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf


def gradients(seed, n, d):
  return np.random.default_rng(seed).normal(size=(n, d))


def test_median_of_a_right_triangle_sees_its_sides_at_120_degrees():
  # The Fermat point of (0, 0), (1, 0), (0, 1), by symmetry (t, t): the pulls
  # cancel when 2 (1/2 - t) / sqrt(t^2 + (1 - t)^2) = sqrt(1/2) * 2 * ... , at
  # t = (3 - sqrt(3)) / 6.
  z = geometric_median(np.array([[0.0, 0], [1, 0], [0, 1]]))
  np.testing.assert_allclose(z, (3 - np.sqrt(3)) / 6, rtol=1e-11)


def test_median_of_a_convex_quadrilateral_is_where_the_diagonals_cross():
  z = geometric_median(np.array([[0.0, 0], [4, 0], [3, 3], [0, 4]]))
  np.testing.assert_allclose(z, [2, 2], rtol=1e-11)


def test_row_in_an_obtuse_corner_is_the_median():
  v = np.array([[0.0, 0], [10, 1], [-10, 1]])
  np.testing.assert_array_equal(geometric_median(v), [0, 0])
  np.testing.assert_array_equal(geometric_median_weights(v), [1, 0, 0])


def test_median_on_a_line_is_the_median():
  v = np.array([[3.0], [0], [10], [4], [-7]])
  np.testing.assert_array_equal(geometric_median(v), [3])


def test_median_of_an_even_number_on_a_line_is_between_the_middle_two():
  v = np.array([[3.0], [0], [10], [5]])
  np.testing.assert_array_equal(geometric_median(v), [4])
  np.testing.assert_array_equal(geometric_median(v[:2]), [1.5])


def test_row_of_more_than_half_of_the_workers_is_the_median():
  v = gradients(0, 9, 30).astype(np.float32)
  v[[1, 4, 5, 8, 0]] = v[0]
  np.testing.assert_allclose(geometric_median(v), v[0], rtol=1e-6)


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies_pull_as_often_as_they_are_sent(copies):
  v = gradients(copies, 9, 4)
  v[:copies] = 3
  z = geometric_median(v)
  on_z = np.all(np.isclose(v, z, atol=1e-9), axis=1).sum()
  assert np.linalg.norm(oracles.pull(v, v[0] if on_z else z)) <= on_z + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_pulls_of_the_rows_cancel(seed):
  rng = np.random.default_rng(seed)
  n, d = int(rng.integers(3, 14)), int(rng.choice([2, 3, 50]))
  v = rng.normal(size=(n, d))
  v[: (n - 1) // 2] *= 10.0 ** rng.integers(0, 13)
  z = geometric_median(v)
  at = np.flatnonzero((v == z).all(axis=1))
  assert np.linalg.norm(oracles.pull(v, z)) <= len(at) + 1e-9


@pytest.mark.parametrize("far", [1.0, 1e8, 1e20, 1e30])
def test_far_rows_pull_no_more_than_near_ones(far):
  v = gradients(1, 11, 20).astype(np.float32)
  v[:5] *= np.float32(far)
  expected = oracles.geometric_median(v.astype(np.float64))
  np.testing.assert_allclose(geometric_median(v), expected, atol=1e-5)


def test_rows_that_are_not_finite_are_left_out():
  v = gradients(2, 9, 3000).astype(np.float32)
  v[[0, 3], 1] = np.nan, -np.inf  # a column that no sample holds
  weights = geometric_median_weights(v).numpy()
  np.testing.assert_array_equal(weights == 0, np.isin(np.arange(9), [0, 3]))
  finite = np.delete(v, [0, 3], axis=0)
  np.testing.assert_allclose(
    geometric_median(v), geometric_median(finite), atol=1e-5
  )


def test_of_no_finite_rows_the_result_is_nan():
  v = np.full((3, 4), np.inf, np.float32)
  assert np.isnan(geometric_median(v)).all()


def test_weights_are_those_of_a_mean():
  weights = geometric_median_weights(gradients(3, 9, 5)).numpy()
  assert (weights > 0).all()
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-14)


@pytest.mark.parametrize("exponent", [-30, 25])
def test_scale_of_the_updates_is_that_of_the_median(exponent):
  v = gradients(4, 7, 10).astype(np.float32)
  scale = np.float32(2.0**exponent)
  np.testing.assert_array_equal(
    geometric_median(v * scale), geometric_median(v) * scale
  )


def test_small_noise_on_large_weights_is_not_lost():
  noise = gradients(5, 7, 10)
  weights = geometric_median_weights((100 + 1e-3 * noise).astype(np.float32))
  expected = geometric_median_weights(noise)
  # Rounding at 100 is a hundredth of the noise.
  np.testing.assert_allclose(weights, expected, atol=1e-2)


def test_tolerance_ends_the_iteration_early():
  v = gradients(6, 9, 3)

  def pull(tolerance, max_iterations=1000):
    z = geometric_median(v, tolerance, max_iterations)
    return np.linalg.norm(oracles.pull(v, z))

  assert 1e-6 < pull(1e-2) <= 9e-2
  assert pull(1e-12) <= 9e-12
  assert pull(1e-12, max_iterations=3) > 1e-4


def test_nothing_more_than_a_step_away_from_a_row_that_pulls_harder():
  # The first row is nearest to half of the others, so the iteration starts
  # there, where the unit vector towards it is undefined.
  v = np.array([[0.0, 0.1], [1, 0], [-1, 0], [0, 5], [0, 6], [0, 7], [0.5, 5]])
  expected = oracles.geometric_median(v)
  np.testing.assert_allclose(geometric_median(v), expected, atol=1e-10)


def test_median_is_the_same_in_a_function_and_compiled():
  v = tf.constant(gradients(7, 9, 40))
  expected = geometric_median(v)
  for options in ({}, {"jit_compile": True}):
    result = tf.function(geometric_median, **options)(v)
    np.testing.assert_allclose(result, expected, rtol=1e-10)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"tolerance": 0.0}, "tolerance=0.0 must be positive"),
    ({"tolerance": float("nan")}, "tolerance=nan must be positive"),
    ({"max_iterations": 0}, "max_iterations=0 must be at least 1"),
  ],
)
def test_options_that_never_end_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    geometric_median(gradients(0, 3, 2), **options)
