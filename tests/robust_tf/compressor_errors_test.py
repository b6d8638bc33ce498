"""What compressors refuse, and what they say then."""

import numpy as np
import pytest

from robust_tf.compressors import GRBS
from robust_tf.compressors import QSGD
from robust_tf.compressors import RandomK
from robust_tf.compressors import TopK
from tests.robust_tf import compressor_cases as cases
from tests.tensorflow_setup import tf

with_ratio = pytest.mark.parametrize("kind", [GRBS, RandomK, TopK])
every_case = pytest.mark.parametrize("case", cases.CASES, ids=str)


@with_ratio
@pytest.mark.parametrize(
  "ratio", [0.5, 0, -8, float("nan"), float("inf"), -float("inf")]
)
def test_ratio_that_is_none_is_refused(kind, ratio):
  with pytest.raises(ValueError, match=rf"at least 1.*got {ratio}"):
    kind(ratio)


@with_ratio
@pytest.mark.parametrize("ratio", ["8", None, True, [8], 8j])
def test_ratio_that_is_no_number_is_refused(kind, ratio):
  with pytest.raises(TypeError, match="ratio must be a number"):
    kind(ratio)


@with_ratio
@pytest.mark.parametrize("ratio", [np.float64(8), np.int64(8), 8, 8.0])
def test_ratio_may_be_any_real_number(kind, ratio):
  assert kind(ratio).delta(1024) == 1 / 8


def test_fewer_blocks_than_the_ratio_are_refused():
  message = (
    "num_blocks=1024 blocks allow a ratio of at most 1024, got ratio=2048;"
    " raise num_blocks to at least 2048, or lower the ratio"
  )
  with pytest.raises(ValueError, match=message):
    GRBS(2048)


def test_as_many_blocks_as_the_ratio_are_enough():
  assert GRBS(1024).delta(5000) == 1 / 1024


@pytest.mark.parametrize("method", ["support", "delta", "payload_bytes"])
def test_fewer_coordinates_than_the_ratio_are_refused(method):
  second = {"support": (0,), "delta": (), "payload_bytes": (tf.float32,)}
  with pytest.raises(
    ValueError,
    match="ratio=32 needs a vector of at least as many coordinates, got 7;"
    " lower the ratio to at most 7",
  ):
    getattr(GRBS(32), method)(7, *second[method])


@pytest.mark.parametrize("num_blocks", [0, -1])
def test_num_blocks_below_one_are_refused(num_blocks):
  with pytest.raises(
    ValueError, match=f"num_blocks must be at least 1, got {num_blocks}"
  ):
    GRBS(8, num_blocks=num_blocks)


@pytest.mark.parametrize("value", [8.0, "8", None, True])
@pytest.mark.parametrize(
  "name, make",
  [
    ("num_blocks", lambda value: GRBS(2, num_blocks=value)),
    ("seed", lambda value: GRBS(2, seed=value)),
    ("seed", lambda value: RandomK(2, seed=value)),
    ("seed", lambda value: QSGD(2, seed=value)),
    ("levels", QSGD),
  ],
)
def test_what_is_no_integer_is_refused(name, make, value):
  with pytest.raises(TypeError, match=f"{name} must be an integer"):
    make(value)


@pytest.mark.parametrize("levels", [0, -3])
def test_levels_below_one_are_refused(levels):
  with pytest.raises(
    ValueError, match=f"levels must be at least 1, got {levels}"
  ):
    QSGD(levels)


def test_levels_that_a_byte_does_not_hold_are_refused():
  with pytest.raises(ValueError, match="at most 127, .* got 128"):
    QSGD(128)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
@pytest.mark.parametrize("kind", [GRBS, RandomK, QSGD])
def test_seed_of_more_than_64_bits_is_refused(kind, seed):
  with pytest.raises(ValueError, match=f"below 2.63, got {seed}"):
    kind(2, seed=seed)


@every_case
@pytest.mark.parametrize("size", [0, -1])
def test_size_below_one_is_refused(case, size):
  with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
    case.payload_bytes(size, tf.float32)
  with pytest.raises(ValueError, match="size must be at least 1, got 0"):
    case.compress(tf.zeros([0]), 0)


@every_case
def test_size_that_no_int32_holds_is_refused(case):
  with pytest.raises(ValueError, match="size must be at most 2147483647"):
    case.payload_bytes(2**31, tf.float32)


@every_case
@pytest.mark.parametrize("shape", [[], [4, 4]])
def test_what_is_no_vector_is_refused(case, shape):
  with pytest.raises(ValueError, match="needs a vector"):
    case.compress(tf.zeros(shape), 0)


@every_case
def test_vector_of_unknown_size_is_refused(case):
  signature = [tf.TensorSpec([None], tf.float32)]
  run = tf.function(
    lambda vector: case.compress(vector, 0), input_signature=signature
  )
  with pytest.raises(ValueError, match=r"of known size, got shape \(None,\)"):
    run.get_concrete_function()


@every_case
@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_vector_that_is_not_floating_is_refused(case, dtype):
  with pytest.raises(TypeError, match=f"must be floating, got {dtype}"):
    case.compress(tf.zeros([8], dtype), 0)


@pytest.mark.parametrize("case", [GRBS(2), RandomK(2), QSGD()], ids=str)
@pytest.mark.parametrize("step", [0.5, True])
def test_step_that_is_no_integer_is_refused(case, step):
  with pytest.raises(TypeError, match="step must be an integer"):
    case.compress(tf.zeros([8]), step)
