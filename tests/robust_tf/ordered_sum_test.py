"""A sum has the same bits whichever of its tensors is still in use."""

import time

import numpy as np
import pytest

from robust_tf.ordered_sum import ordered_sum
from tests.tensorflow_setup import tf

NUM_TENSORS = 4


def in_use(tensor, seconds):
  """Returns the tensor plus one, which takes a while to be made."""

  def wait(value):
    time.sleep(seconds)
    return value + 1

  result = tf.numpy_function(wait, [tensor], tensor.dtype, stateful=False)
  result.set_shape(tensor.shape)
  return result


@pytest.mark.parametrize("longer", [(), (0,), (0, 1), (0, 1, 2)])
def test_sum_does_not_depend_on_who_is_done_first(longer):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(NUM_TENSORS, 20_000)).astype(np.float32)

  @tf.function(autograph=False)
  def compute(values):
    tensors = [tf.identity(2 * x) for x in tf.unstack(values)]
    tensors[-1] = in_use(tensors[-1], 0.02)
    others = [
      in_use(x, 0.1 * (i in longer)) for i, x in enumerate(tensors[:-1])
    ]
    return ordered_sum(tensors), others

  result, _ = compute(tf.constant(values))
  expected = np.zeros_like(values[0])
  for term in (*(2 * values[:-1]), 2 * values[-1] + 1):
    expected += term
  np.testing.assert_array_equal(result, expected)
