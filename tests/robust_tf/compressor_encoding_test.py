"""What top-k, scaled sign and QSGD send, against NumPy that reads it."""

import math

import numpy as np
import pytest

from robust_tf.compressors import bit_packing
from robust_tf.compressors import QSGD
from robust_tf.compressors import ScaledSign
from robust_tf.compressors import TopK
from tests.robust_tf import compressor_cases as cases
from tests.tensorflow_setup import tf

SIZES = (1, 2, 7, 8, 9, 16, 1001)

every_size = pytest.mark.parametrize("size", SIZES)
every_vector = pytest.mark.parametrize("name", cases.VECTORS)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


def top_k(values, k):
  """Returns the k largest in absolute value; of equal ones the first."""
  order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
  result = np.zeros_like(values)
  for i in order[:k]:
    result[i] = values[i]
  return result


def little_endian_fields(packed, width, count):
  """Returns numbers of `width` bits each from bytes, the low bits first."""
  bits = np.unpackbits(packed, bitorder="little")[: width * count]
  return bits.reshape(count, width) @ (2 ** np.arange(width))


@every_size
@every_vector
@pytest.mark.parametrize("ratio", [1, 2, 3.5, 50])
def test_top_k_is_its_definition(size, name, ratio):
  values = cases.vector(name, size)
  k = max(1, round(size / ratio))
  kept, indices = TopK(ratio).encode(values, 0)
  assert kept.shape == indices.shape == [k]
  assert indices.dtype == tf.int32
  np.testing.assert_array_equal(values[indices.numpy()], kept)
  result = TopK(ratio).compress(values, 0)
  np.testing.assert_array_equal(result, top_k(values, k))


def test_top_k_sends_what_is_not_finite_first():
  values = np.array([1.0, np.nan, 3.0, -np.inf, 9.0, np.inf])
  result = TopK(2).compress(values, 0)
  expected = [0, np.nan, 0, -np.inf, 0, np.inf]
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("place", range(8))
def test_top_k_sends_a_nan_wherever_it_is(place):
  values = np.arange(8.0)
  values[place] = np.nan
  assert np.isnan(TopK(4).compress(values, 0).numpy()[place])


@every_size
@every_vector
@every_dtype
def test_scaled_sign_is_its_definition(size, name, dtype):
  vector = tf.cast(cases.vector(name, size), dtype)
  values = tf.cast(vector, tf.float64).numpy()
  packed, scale = ScaledSign().encode(vector, 0)
  assert packed.dtype == tf.uint8
  assert packed.shape == [math.ceil(size / 8)]
  assert scale.dtype == vector.dtype
  signs = np.unpackbits(packed.numpy(), bitorder="little")[:size]
  np.testing.assert_array_equal(signs, values >= 0)
  expected = np.abs(values).mean() * np.where(values >= 0, 1, -1)
  result = tf.cast(ScaledSign().compress(vector, 0), tf.float64)
  # The scale is rounded once, to the dtype.
  rtol = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-6}
  np.testing.assert_allclose(result, expected, rtol=rtol.get(dtype, 1e-13))


def test_scaled_sign_takes_either_zero_as_positive():
  result = ScaledSign().compress(np.array([0.0, -0.0, -3.0]), 0)
  np.testing.assert_array_equal(result, [1.0, 1.0, -1.0])


def test_scaled_sign_adds_many_half_precision_values():
  vector = tf.fill([10_000], tf.constant(60_000.0, tf.float16))
  np.testing.assert_array_equal(ScaledSign().compress(vector, 0), vector)


@every_size
@every_vector
@pytest.mark.parametrize(
  "levels, width", [(1, 2), (2, 4), (7, 4), (8, 8), (127, 8)]
)
def test_qsgd_rounds_to_a_neighbouring_level(size, name, levels, width):
  values = cases.vector(name, size)
  case = QSGD(levels)
  packed, norm = case.encode(values, 3, worker=1)
  assert packed.dtype == tf.uint8
  assert packed.shape == [math.ceil(size * width / 8)]
  assert norm.numpy() == pytest.approx(np.linalg.norm(values), rel=1e-13)
  level = little_endian_fields(packed.numpy(), width, size) - levels
  exact = values / max(norm.numpy(), 1e-300) * levels
  # One of the two levels around the exact one; a rounding of the norm may put
  # an exact level on either side of itself.
  assert np.all(np.abs(level - exact) < 1 + 1e-9)
  assert np.abs(level).max() <= levels
  expected = level * norm.numpy() / levels * case.delta(size)
  result = case.compress(values, 3, worker=1)
  np.testing.assert_allclose(result, expected, rtol=1e-13)


@pytest.mark.parametrize("levels", [1, 5, 127])
def test_qsgd_sends_a_spike_as_it_is(levels):
  # All of the norm is in one coordinate, exactly on the highest level.
  values = cases.vector("spike", 100)
  for step in range(50):
    result = QSGD(levels).compress(values, step)
    expected = QSGD(levels).delta(100) * values
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_qsgd_draws_by_seed_step_and_worker():
  values = cases.vector("normal", 1000)
  keys = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]

  def draw(seed, step, worker):
    return tuple(QSGD(1, seed).compress(values, step, worker).numpy())

  drawn = [draw(*key) for key in keys]
  assert len(set(drawn)) == len(keys)
  assert drawn == [draw(*key) for key in keys]


def test_qsgd_of_many_workers_errs_independently():
  values = cases.vector("normal", 5000)
  case = QSGD(1)
  mean = case.delta(5000) * values
  errors = [case.compress(values, 0, i).numpy() - mean for i in range(6)]
  correlation = np.corrcoef(errors)[np.triu_indices(6, 1)]
  # Errors are heavy-tailed: few of 5000 coordinates are not rounded to 0.
  assert np.abs(correlation).max() <= 5 / np.sqrt(5000)


@pytest.mark.parametrize("dtype, value", [("float32", 1e30), ("float16", 6e4)])
def test_qsgd_takes_a_vector_whose_squares_overflow(dtype, value):
  vector = tf.constant([0.0, 0.0, -value, 0.0], dtype)
  result = tf.cast(QSGD().compress(vector, 0), tf.float64).numpy()
  expected = [0, 0, -QSGD().delta(4) * value, 0]
  np.testing.assert_allclose(result, expected, rtol=1e-3)


@pytest.mark.parametrize("width", bit_packing.WIDTHS)
@every_size
def test_unpacking_gives_what_was_packed(width, size):
  codes = np.random.default_rng(size).integers(0, 2**width, size, np.uint8)
  packed = bit_packing.pack(tf.constant(codes), width)
  assert packed.shape == [bit_packing.packed_size(size, width)]
  np.testing.assert_array_equal(
    little_endian_fields(packed.numpy(), width, size), codes
  )
  np.testing.assert_array_equal(bit_packing.unpack(packed, width, size), codes)
