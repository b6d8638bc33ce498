"""E ||C(v) - v||^2 <= (1 - delta) ||v||^2, for every compressor.

Deterministic compressors keep it for each vector; of random ones the mean over
steps is compared, within five standard errors of that mean.
"""

import numpy as np
import pytest

from robust_tf import compressors
from tests.robust_tf import compressor_cases as cases

NUM_STEPS = 500
STANDARD_ERRORS = 5
ROUNDING = 1e-12

every_size = pytest.mark.parametrize("size", [1, *cases.SIZES])
every_vector = pytest.mark.parametrize("name", cases.VECTORS)


def errors(case, values, num_steps=NUM_STEPS):
  """Returns ||C(v) - v||^2 / ||v||^2 at each step, and its standard error."""
  compressed = cases.steps_of(case, values, num_steps)
  error = np.sum((compressed - values) ** 2, axis=1)
  error /= max(np.sum(values**2), 1e-300)
  return error, error.std() / np.sqrt(num_steps)


def is_defined(case, size):
  return not isinstance(case, compressors.GRBS) or size >= case.ratio


@every_size
@pytest.mark.parametrize("case", cases.SHARED, ids=str)
def test_mean_error_of_a_shared_support_is_one_minus_delta(case, size):
  if not is_defined(case, size):
    pytest.skip("needs a coordinate for each of `ratio` blocks")
  for name in cases.VECTORS[:-1]:
    num_steps = 1 if case.delta(size) in (0, 1) else NUM_STEPS
    values = cases.vector(name, size)
    error, standard_error = errors(case, values, num_steps)
    allowed = STANDARD_ERRORS * standard_error + ROUNDING
    assert abs(error.mean() - (1 - case.delta(size))) <= allowed, name


@every_size
@every_vector
@pytest.mark.parametrize(
  "case",
  [case for case in cases.GATHERED if not isinstance(case, compressors.QSGD)],
  ids=str,
)
def test_error_of_a_deterministic_compressor_is_bounded(case, size, name):
  values = cases.vector(name, size)
  error = np.sum((case.compress(values, 0).numpy() - values) ** 2)
  bound = (1 - case.delta(size)) * np.sum(values**2)
  assert error <= bound + ROUNDING * np.sum(values**2)


def expected_qsgd_error(values, levels, delta):
  """Returns the mean of ||delta Q(v) - v||^2 / ||v||^2, and its deviation.

  From the definition of Q: |Q(v)_i| is ||v|| (l + 1) / s with probability p =
  s |v_i| / ||v|| - l, and ||v|| l / s otherwise, each i for itself.
  """
  norm = np.linalg.norm(values)
  values = np.abs(values) / norm
  p, level = np.modf(levels * values)
  error_below = (delta * level / levels - values) ** 2
  error_above = (delta * (level + 1) / levels - values) ** 2
  mean = p * error_above + (1 - p) * error_below
  variance = p * (1 - p) * (error_above - error_below) ** 2
  return mean.sum(), np.sqrt(variance.sum())


@every_size
@pytest.mark.parametrize("levels", [1, 2, 5, 7, 8, 127])
def test_expected_error_of_qsgd_is_bounded(levels, size):
  delta = compressors.QSGD(levels).delta(size)
  # Adversaries too: all coordinates half way between two levels, were the norm
  # not fixed by them, and a few large ones among many small ones.
  rng = np.random.default_rng([levels, size])
  vectors = [cases.vector(name, size) for name in cases.VECTORS[:-1]]
  vectors += [rng.integers(0, levels, size) + 0.5 for _ in range(20)]
  vectors += [rng.standard_cauchy(size) for _ in range(20)]
  for values in vectors:
    error, _ = expected_qsgd_error(values, levels, delta)
    assert error <= 1 - delta + ROUNDING


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_bound_of_qsgd_is_reached(levels):
  # Each of 4 s^2 equal coordinates is half a level: the largest variance.
  size = 4 * levels**2
  delta = compressors.QSGD(levels).delta(size)
  error, _ = expected_qsgd_error(np.ones(size), levels, delta)
  assert error == pytest.approx(1 - delta, rel=1e-12)


@every_size
@pytest.mark.parametrize("levels", [1, 5, 127])
def test_mean_error_of_qsgd_is_the_expected_one(levels, size):
  case = compressors.QSGD(levels, seed=levels)
  for name in cases.VECTORS[:-1]:
    values = cases.vector(name, size)
    error, _ = errors(case, values)
    mean, deviation = expected_qsgd_error(values, levels, case.delta(size))
    # Values exactly on a level have no variance; their norm has a rounding.
    allowed = STANDARD_ERRORS * deviation / np.sqrt(NUM_STEPS) + 1e-6
    assert abs(error.mean() - mean) <= allowed, name


@pytest.mark.parametrize("levels", [1, 5, 127])
def test_mean_of_qsgd_is_delta_times_the_vector(levels):
  case = compressors.QSGD(levels)
  values = cases.vector("normal", 100)
  compressed = cases.steps_of(case, values, NUM_STEPS)
  # No coordinate's variance exceeds that of half a level.
  unit = case.delta(100) * np.linalg.norm(values) / levels
  allowed = STANDARD_ERRORS * unit / 2 / np.sqrt(NUM_STEPS)
  mean = compressed.mean(axis=0)
  assert np.abs(mean - case.delta(100) * values).max() <= allowed


def test_delta_of_scaled_sign_is_reached_by_a_spike():
  values = cases.vector("spike", 50)
  error = np.sum((compressors.ScaledSign().compress(values, 0) - values) ** 2)
  assert error == pytest.approx((1 - 1 / 50) * 9.0, rel=1e-12)


@every_vector
def test_error_of_scaled_sign_is_that_of_its_formula(name):
  values = cases.vector(name, 51)
  error = np.sum((compressors.ScaledSign().compress(values, 0) - values) ** 2)
  expected = np.sum(values**2) - np.abs(values).sum() ** 2 / 51
  assert error == pytest.approx(expected, abs=1e-12 * np.sum(values**2))


def test_delta_of_top_k_is_reached_by_a_constant():
  values = cases.vector("constant", 50)
  case = compressors.TopK(8)  # round(50 / 8) = 6
  error = np.sum((case.compress(values, 0).numpy() - values) ** 2)
  assert case.delta(50) == 6 / 50
  assert error == pytest.approx((1 - 6 / 50) * np.sum(values**2), rel=1e-12)


@pytest.mark.parametrize(
  "case, size, delta",
  [
    (compressors.Identity(), 10, 1.0),
    (compressors.Zero(), 10, 0.0),
    (compressors.GRBS(8), 5000, 1 / 8),
    (compressors.GRBS(8), 10, 1 / 10),  # 10 blocks, round(10 / 8) of them
    (compressors.GRBS(1.5, 6), 5000, 4 / 6),
    (compressors.GRBS(1024), 5000, 1 / 1024),
    (compressors.RandomK(8), 1000, 1 / 8),
    (compressors.RandomK(8), 3, 1 / 3),  # no less than one coordinate
    (compressors.TopK(100), 250, 2 / 250),
    (compressors.ScaledSign(), 40, 1 / 40),
    (compressors.QSGD(1), 1, 1 / 1.25),  # omega is d / (4 s^2)
    (compressors.QSGD(2), 16, 1 / 2),
    (compressors.QSGD(1), 10_000, 1 / 101),  # omega is sqrt(d) / s
  ],
  ids=str,
)
def test_delta_is_that_of_the_definition(case, size, delta):
  assert case.delta(size) == pytest.approx(delta, rel=1e-15)
