import numpy as np
import pytest

from robust_tf.distribute.packing import pack
from robust_tf.distribute.packing import packed_dtype
from robust_tf.distribute.packing import unpack
from tests.tensorflow_setup import tf


def test_pack_puts_each_workers_variables_side_by_side():
  kernel = np.arange(12).reshape(2, 3, 2)
  bias = np.arange(100, 104).reshape(2, 2)
  packed = pack([tf.constant(x, tf.float32) for x in (kernel, bias)], 2)
  assert packed.dtype == tf.float32
  np.testing.assert_array_equal(
    packed, [[*range(6), 100, 101], [*range(6, 12), 102, 103]]
  )


def test_unpack_gives_back_what_pack_took():
  random = np.random.default_rng(0)
  values = [
    tf.constant(random.normal(size=(3, *shape)), dtype)
    for shape, dtype in [
      ((2, 3), tf.float32),
      ((), tf.float16),
      ((4,), tf.bfloat16),
    ]
  ]
  packed = pack(values, 3)
  assert packed.shape == [3, 11]
  like = [tf.TensorSpec(value.shape[1:], value.dtype) for value in values]
  for row in range(3):
    for value, back in zip(values, unpack(packed[row], like), strict=True):
      assert back.dtype == value.dtype
      np.testing.assert_array_equal(back, value[row])


@pytest.mark.parametrize(
  ("dtypes", "expected"),
  [
    ([tf.bfloat16, tf.bfloat16], tf.bfloat16),
    ([tf.float16, tf.bfloat16], tf.float32),
    ([tf.float32, tf.float16], tf.float32),
    ([tf.float32, tf.float64], tf.float64),
  ],
)
def test_packed_dtype_holds_every_value(dtypes, expected):
  assert packed_dtype(dtypes) == expected
