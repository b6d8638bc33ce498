"""Distances between honest rows, whatever the other rows hold."""

import functools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from robust_tf.aggregators import pairwise_distances
from robust_tf.aggregators.pairwise_distances import from_products
from tests.tensorflow_setup import tf

# Columns: more than a sample, and more than a chunk and a part of one.
N, Q, D = 11, 5, 2500

# A column that no sample of the first try holds.
UNSEEN = 1

squared_distances = functools.partial(
  from_products, pairwise_distances.squared_distances
)


def honest_rows(seed=0):
  return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


def differences(v):
  """Returns the squared distances by subtraction, in float64, 0 for i = j."""
  v = np.asarray(v, np.float64)
  with np.errstate(invalid="ignore", over="ignore"):
    squares = np.array([np.square(v - row).sum(axis=1) for row in v])
  return np.where(np.isnan(squares), np.inf, squares)


def unit_of(distances, expected):
  """Returns the power of two that the distances are measured in."""
  known = np.isfinite(distances) & (expected > 0) & (distances > 0)
  ratio = np.median(expected[known] / distances[known])
  unit = 2.0 ** np.round(np.log2(ratio))
  np.testing.assert_allclose(ratio, unit, rtol=1e-5)
  return unit


def check(v, honest=slice(None), rtol=1e-6):
  """Asserts that distances between honest rows are right; returns all."""
  distances = squared_distances(v).numpy()
  expected = differences(v)
  radius = np.sort(expected, axis=1)[:, len(v) // 2]
  scale = np.maximum(expected, np.minimum(radius[:, None], radius))
  others = ~np.eye(len(v), dtype=bool)[honest, honest]
  unit = unit_of(distances[honest, honest], expected[honest, honest])
  error = np.abs(distances[honest, honest] * unit - expected[honest, honest])
  assert (error[others] <= rtol * scale[honest, honest][others]).all()
  assert (np.diag(distances) == np.inf).all()
  assert (distances >= 0).all()
  np.testing.assert_array_equal(distances, distances.T)
  return distances


def test_distances_by_hand():
  v = np.array([[0, 0], [3, 4], [0, 1]], np.float32)
  distances = squared_distances(v)
  expected = np.array([[np.inf, 25, 1], [25, np.inf, 18], [1, 18, np.inf]])
  np.testing.assert_array_equal(
    distances * unit_of(distances, expected), expected
  )


@pytest.mark.parametrize("d", [1, 300, 1024, 1025, 4096, 40_000])
def test_distances_of_any_number_of_columns_are_exact(d):
  check(np.random.default_rng(d).normal(size=(7, d)).astype(np.float32))


@pytest.mark.parametrize("n", [48, 49, 63, 64])
def test_distances_of_any_number_of_rows_are_exact(n):
  check(np.random.default_rng(n).normal(size=(n, 3000)).astype(np.float32))


VALUES = [np.nan, np.inf, -np.inf, 3e38, -1e38, -1e20, 1e12, 1e6, 1e-42, 0.0]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("columns", [slice(None), UNSEEN], ids=["all", "one"])
def test_liars_do_not_blur_distances_of_honest_rows(columns, value):
  v = honest_rows()
  v[:Q, columns] = value
  distances = check(v, honest=slice(Q, None))
  if not np.isfinite(value):
    assert (distances[:Q] == np.inf).all()


@pytest.mark.parametrize("value", [1e37, -1e20, 1e12])
def test_liars_in_other_directions_do_not_blur_distances(value):
  v = honest_rows()
  v[:Q] *= np.float32(value)
  check(v, honest=slice(Q, None))


def test_liars_that_look_central_in_the_sample_are_found_out():
  v = honest_rows()
  v[:Q] = v[Q:].mean(axis=0)
  v[:Q, UNSEEN] = [np.nan, 1e30, 1e20, 1e10, -1e5]
  check(v, honest=slice(Q, None))


def test_no_difference_of_finite_rows_overflows():
  # Of opposite signs, and near the largest float32.
  v = np.float32(1e38) * np.clip(honest_rows(), -3.4, 3.4)
  v[:Q] = 0
  v[:Q, UNSEEN] = 3.4e38
  v[Q:, UNSEEN] = -np.abs(v[Q:, UNSEEN])
  check(v)


def test_small_noise_on_large_weights_is_measured_exactly():
  check(100 + np.float32(1e-3) * honest_rows())


def test_small_noise_on_large_weights_is_measured_beside_liars():
  v = 100 + np.float32(1e-3) * honest_rows()
  v[:Q] = 1e20 * honest_rows(seed=1)[:Q]
  check(v, honest=slice(Q, None))


def test_rows_in_two_far_clusters_are_measured_exactly():
  v = honest_rows()
  v[:Q] += 1e4
  check(v)


@pytest.mark.parametrize("n", [4, 5, 10, 16, 33])
def test_copies_have_distance_zero(n):
  v = np.random.default_rng(n).normal(size=(n, D)).astype(np.float32)
  v[1 : n // 2] = v[0]
  copies = squared_distances(v).numpy()[: n // 2, : n // 2]
  assert (copies[~np.eye(len(copies), dtype=bool)] == 0).all()


def test_scaling_changes_no_bit():
  v = honest_rows()
  expected = squared_distances(v)
  for exponent in (-90, -30, 60, 110):
    scaled = v * np.float32(2.0**exponent)
    np.testing.assert_array_equal(squared_distances(scaled), expected)


def test_float64_may_be_too_large_or_small_to_square():
  v = honest_rows().astype(np.float64)
  expected = squared_distances(v)
  for exponent in (-900, 900):
    scaled = v * 2.0**exponent
    np.testing.assert_allclose(squared_distances(scaled), expected, rtol=1e-14)


def test_small_differences_that_only_unseen_columns_hold_are_found():
  v = np.zeros((N, D), np.float32)
  v[:, UNSEEN] = 1e-30 * honest_rows()[:, UNSEEN]
  check(v)


def test_float64_distances_are_exact_in_float64():
  check(100 + 1e-3 * honest_rows().astype(np.float64), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_measured_in_float32(dtype):
  v = tf.cast(100 * honest_rows(), dtype)
  expected = squared_distances(tf.cast(v, tf.float32))
  np.testing.assert_allclose(squared_distances(v), expected, rtol=1e-6)


def as_lists(v):
  """Returns rows as variables: a large one, and two that are packed."""
  return [
    [tf.constant(row[:20_000]), tf.constant(row[20_000:20_003]), row[20_003:]]
    for row in v
  ]


def test_list_of_variables_is_one_vector():
  v = np.random.default_rng(0).normal(size=(7, 20_010)).astype(np.float32)
  v[:3] = [[np.nan], [1e20], [-1e38]]
  expected = squared_distances(v)
  np.testing.assert_allclose(
    squared_distances(as_lists(v)), expected, rtol=1e-6
  )


def test_distances_are_the_same_eagerly_in_a_function_and_compiled():
  v = honest_rows()
  v[:Q] = v[Q]
  v[:Q, UNSEEN] = 1e20
  expected = squared_distances(v)
  for options in ({"autograph": False}, {"jit_compile": True}, {}):
    run = tf.function(squared_distances, **options)
    # A compiled reduction may add in another order.
    np.testing.assert_allclose(run(tf.constant(v)), expected, rtol=1e-6)


def test_number_of_columns_may_be_unknown_while_tracing():
  spec = tf.TensorSpec([N, None], tf.float32)
  run = tf.function(squared_distances, input_signature=[spec])
  for d in (3, D):
    v = honest_rows()[:, :d]
    np.testing.assert_allclose(run(v), squared_distances(v), rtol=1e-6)


def test_products_in_few_bits_on_a_gpu_are_avoided(monkeypatch):
  # As on a GPU that multiplies float32 in TensorFloat-32.
  monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
  v = np.random.default_rng(0).normal(size=(29, 100)).astype(np.float32)
  v = np.round(v * 1024) / 1024  # so that differences are exact
  check(v, rtol=1e-14)


@st.composite
def points(draw):
  """Draws rows of many magnitudes: copies, clusters, far ones."""
  n = draw(st.integers(2, 9))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  scale = 10.0 ** rng.integers(-3, 4, size=(n, 1))
  v = rng.normal(size=(n, 2)) * scale
  return v + v[rng.integers(0, n, size=n)] * rng.integers(0, 2, size=(n, 1))


@hypothesis.settings(derandomize=True, deadline=None, database=None)
@hypothesis.given(points())
def test_row_of_least_radius_is_a_good_reference_for_all_pairs(v):
  # The inequality that the module rests on, in NumPy.
  distances = differences(v)
  radius = np.sort(distances, axis=1)[:, len(v) // 2]
  norms = distances[np.argmin(radius)]
  bound = np.maximum(distances, np.minimum(radius[:, None], radius))
  assert (norms[:, None] + norms <= 13 * bound * (1 + 1e-9)).all()
