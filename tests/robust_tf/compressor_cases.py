"""The compressors that batteries run, and the vectors that they run on.

Every compressor of `robust_tf.compressors.COMPRESSORS` is in `CASES`; a test
fails when one is missing.
"""

import functools

import numpy as np

from robust_tf import compressors
from tests.tensorflow_setup import tf

CASES = (
  compressors.Identity(),
  compressors.Zero(),
  compressors.GRBS(1),
  compressors.GRBS(1.5, num_blocks=7, seed=3),
  compressors.GRBS(2, num_blocks=64),
  compressors.RandomK(1),
  compressors.RandomK(2.5, seed=-1),
  compressors.RandomK(8),
  compressors.TopK(1),
  compressors.TopK(2.5),
  compressors.TopK(8),
  compressors.ScaledSign(),
  compressors.QSGD(1),
  compressors.QSGD(5, seed=-2),
  compressors.QSGD(),
)
SHARED = tuple(case for case in CASES if case.all_reduce)
GATHERED = tuple(case for case in CASES if not case.all_reduce)

DTYPES = ("float16", "bfloat16", "float32", "float64")

# 64 divides 128 and not 1001, whose blocks differ in size; 2 and 7 have fewer
# coordinates than most cases have blocks.
SIZES = (2, 7, 128, 1001)

VECTORS = ("normal", "spike", "constant", "alternating", "geometric", "zero")


def vector(name: str, size: int) -> np.ndarray:
  """Returns a float64 vector [size] of that name."""
  i = np.arange(size)
  if name == "normal":
    return np.random.default_rng(size).normal(size=size)
  if name == "spike":  # one coordinate is all of it
    return np.where(i == size // 2, -3.0, 0.0)
  if name == "constant":
    return np.full(size, 0.7)
  if name == "alternating":
    return np.where(i % 2 == 0, 2.0, -2.0)
  if name == "geometric":  # from 1 to 1e-6, with both signs
    return (-1.0) ** i * 10.0 ** (-6 * i / size)
  return np.zeros(size)


def steps_of(compressor, values: np.ndarray, num_steps: int) -> np.ndarray:
  """Returns C(v) at steps 0, 1, ..., float64 [num_steps, d]."""

  run = _over_steps(compressor)
  return run(tf.constant(values), tf.range(num_steps)).numpy()


@functools.cache
def _over_steps(compressor):
  """Returns a function of a vector and steps, traced once for each shape."""

  @tf.function
  def run(values, steps):
    return tf.map_fn(
      lambda step: compressor.compress(values, step),
      steps,
      fn_output_signature=values.dtype,
    )

  return run
