"""What every compressor does: the table, dtypes, graphs, XLA, bytes."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from robust_tf import compressors
from tests.robust_tf import compressor_cases as cases
from tests.tensorflow_setup import tf

every_case = pytest.mark.parametrize("case", cases.CASES, ids=str)
every_shared = pytest.mark.parametrize("case", cases.SHARED, ids=str)
every_gathered = pytest.mark.parametrize("case", cases.GATHERED, ids=str)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
every_size = pytest.mark.parametrize("size", cases.SIZES)

# What rounding to the dtype may change.
ROUNDING = {
  "float64": 1e-14,
  "float32": 1e-6,
  "float16": 2e-3,
  "bfloat16": 2e-2,
}


def as_float64(tensor):
  return tf.cast(tensor, tf.float64).numpy()


def test_table_holds_the_public_names():
  table = compressors.COMPRESSORS
  public = set(compressors.__all__) - {"COMPRESSORS"}
  assert {kind.__name__ for kind in table.values()} == public
  for name, kind in table.items():
    assert getattr(compressors, kind.__name__) is kind
    assert name.replace("_", "") == kind.__name__.lower()


def test_batteries_run_every_compressor():
  kinds = {type(case) for case in cases.CASES}
  assert kinds == set(compressors.COMPRESSORS.values())


@every_case
def test_compressor_says_its_family(case):
  assert hasattr(case, "support") == case.all_reduce
  assert hasattr(case, "encode") != case.all_reduce
  assert hasattr(case, "decode") != case.all_reduce


@every_case
def test_compressor_is_a_value(case):
  copy = type(case)(**dataclasses.asdict(case))
  assert copy == case
  assert hash(copy) == hash(case)
  for field in dataclasses.fields(case):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(case, field.name, 1)


@every_case
def test_public_methods_are_documented(case):
  for name in dir(case):
    if not re.match("_", name) and callable(getattr(case, name)):
      assert getattr(case, name).__doc__, name


@every_case
@every_dtype
def test_compress_keeps_shape_and_dtype(case, dtype):
  vector = tf.cast(cases.vector("normal", 1001), dtype)
  result = case.compress(vector, 3, worker=2)
  assert result.dtype == vector.dtype
  assert result.shape == vector.shape


@every_case
@every_dtype
def test_compress_in_half_precision_is_that_in_double(case, dtype):
  # Small whole numbers, all of them exact in 8 bits, all different in size.
  values = np.random.default_rng(0).permutation(np.arange(-40, 87))
  values = values[np.abs(values + 0.1).argsort()][::2].astype(np.float64)
  expected = as_float64(case.compress(values, 3))
  result = as_float64(case.compress(tf.cast(values, dtype), 3))
  if isinstance(case, compressors.QSGD):
    # A value next to a rounding boundary may take the other level.
    different = np.abs(result - expected) > ROUNDING[dtype] * 87
    assert different.mean() <= 0.02
  else:
    np.testing.assert_allclose(result, expected, rtol=ROUNDING[dtype])


@every_case
@every_size
def test_compress_in_a_graph_is_that_outside(case, size):
  vector = tf.constant(cases.vector("normal", size))
  run = tf.function(case.compress)
  for step in (0, 7):
    expected = case.compress(vector, step, 1)
    result = run(vector, tf.constant(step, tf.int64), tf.constant(1))
    assert result.shape == [size]
    # A mean may add in another order; nothing else may differ.
    np.testing.assert_allclose(result, expected, rtol=1e-13)


# XLA compiles each anew: every case of one dtype, and one case of each kind of
# another.
FAST = {
  *((case, "float32") for case in cases.CASES),
  *({type(case): (case, "bfloat16") for case in cases.CASES}.values()),
}


@pytest.mark.parametrize(
  "case, dtype",
  [
    pytest.param(*x, marks=() if x in FAST else pytest.mark.slow)
    for x in itertools.product(cases.CASES, cases.DTYPES)
  ],
  ids=str,
)
def test_compress_under_xla_is_that_outside(case, dtype):
  vector = tf.cast(cases.vector("normal", 1001), dtype)
  run = tf.function(case.compress, jit_compile=True)
  for step in (0, 7):
    expected = as_float64(case.compress(vector, step, 1))
    result = run(vector, tf.constant(step, tf.int64), tf.constant(1))
    # XLA adds in another order, which may move a mean or a norm by a rounding.
    np.testing.assert_allclose(
      as_float64(result), expected, rtol=ROUNDING[dtype]
    )


@every_gathered
def test_payload_has_static_shapes_in_a_graph(case):
  shapes = []

  @tf.function
  def run(vector, step):
    payload = case.encode(vector, step)
    shapes.extend(part.shape for part in payload)
    return payload

  payload = run(tf.constant(cases.vector("normal", 1001)), tf.constant(1))
  assert [part.shape for part in payload] == shapes
  assert all(shape.is_fully_defined() for shape in shapes)


@every_gathered
def test_compress_is_decode_of_encode(case):
  vector = tf.constant(cases.vector("normal", 1001))
  payload = case.encode(vector, 4, worker=3)
  decoded = case.decode(payload, 1001, vector.dtype)
  np.testing.assert_array_equal(decoded, case.compress(vector, 4, worker=3))


@every_gathered
@every_dtype
@pytest.mark.parametrize("size", [1, *cases.SIZES])
def test_payload_bytes_are_those_of_the_encoded_tensors(case, dtype, size):
  vector = tf.cast(cases.vector("normal", size), dtype)
  encoded = case.encode(vector, 0)
  real = sum(part.numpy().nbytes for part in encoded)
  assert case.payload_bytes(size, vector.dtype) == real


@every_shared
@every_size
def test_payload_bytes_are_the_mean_of_what_is_kept(case, size):
  support = tf.function(lambda step: case.support(size, step))
  kept = [support(tf.constant(step)).shape[0] for step in range(400)]
  for name in cases.DTYPES:
    dtype = tf.as_dtype(name)
    # GRBS's blocks differ by one coordinate, so that a mean is not exact.
    assert np.mean(kept) * dtype.size == pytest.approx(
      case.payload_bytes(size, dtype), rel=0.02
    )


@every_shared
@every_size
def test_support_is_ascending_and_inside_the_vector(case, size):
  for step in range(5):
    support = case.support(size, step)
    assert support.dtype == tf.int32
    assert np.all(np.diff(support) > 0)
    assert np.all((support.numpy() >= 0) & (support.numpy() < size))


@every_shared
@every_size
def test_compress_is_the_vector_on_the_support(case, size):
  values = cases.vector("normal", size)
  for step in range(5):
    expected = np.zeros(size)
    for i in case.support(size, step).numpy():
      expected[i] = values[i]
    np.testing.assert_array_equal(case.compress(values, step), expected)


@every_shared
def test_support_is_one_for_every_kind_of_step(case):
  expected = case.support(1001, 7)
  run = tf.function(lambda step: case.support(1001, step))
  for dtype in (tf.int32, tf.int64):
    step = tf.constant(7, dtype)
    np.testing.assert_array_equal(case.support(1001, step), expected)
    np.testing.assert_array_equal(run(step), expected)
    np.testing.assert_array_equal(
      case.support(1001, tf.Variable(step)), expected
    )
  np.testing.assert_array_equal(case.support(1001, np.int64(7)), expected)


@every_shared
def test_support_takes_steps_above_32_bits(case):
  step = 2**40 + 7
  np.testing.assert_array_equal(
    case.support(1001, step), case.support(1001, tf.constant(step, tf.int64))
  )


@every_shared
def test_support_is_one_on_every_device(case):
  expected = case.support(1001, 7)
  for device in tf.config.list_logical_devices("CPU"):
    with tf.device(device.name):
      np.testing.assert_array_equal(case.support(1001, 7), expected)


@every_shared
def test_all_workers_keep_the_same(case):
  values = cases.vector("normal", 1001)
  expected = case.compress(values, 5)
  for worker in (1, 2, tf.constant(3)):
    np.testing.assert_array_equal(case.compress(values, 5, worker), expected)


@every_shared
@every_size
def test_compressing_twice_is_compressing_once(case, size):
  values = cases.vector("normal", size)
  once = case.compress(values, 5)
  np.testing.assert_array_equal(case.compress(once, 5), once)


@every_shared
@every_size
def test_mean_of_compressed_is_compressed_mean(case, size):
  rows = np.random.default_rng(1).normal(size=(5, size))
  compressed = [case.compress(row, 5, i) for i, row in enumerate(rows)]
  np.testing.assert_allclose(
    np.mean(compressed, axis=0),
    case.compress(rows.mean(axis=0), 5),
    rtol=1e-12,
  )


@every_shared
def test_non_finite_values_are_kept_or_dropped_as_others(case):
  values = cases.vector("normal", 1001)
  values[::3] = np.nan
  values[1::3] = np.inf
  kept = np.zeros(1001, bool)
  kept[case.support(1001, 2).numpy()] = True
  result = case.compress(values, 2).numpy()
  np.testing.assert_array_equal(result[kept], values[kept])
  np.testing.assert_array_equal(result[~kept], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 2, 100])
@every_gathered
def test_non_finite_value_is_never_hidden(case, bad, size):
  for others in (0.0, 1.0):
    values = np.full(size, others)
    values[size // 2] = bad
    assert not np.isfinite(case.compress(values, 2).numpy()[size // 2])


@every_case
def test_one_coordinate_is_enough(case):
  if isinstance(case, compressors.GRBS) and case.ratio > 1:
    pytest.skip("a block of one coordinate cannot be kept in part")
  values = np.array([-1.75])
  expected = case.delta(1) * values
  if isinstance(case, compressors.ScaledSign | compressors.TopK):
    expected = values
  np.testing.assert_allclose(case.compress(values, 0), expected, rtol=1e-12)
