"""Random numbers that are the same eagerly, in a graph and under XLA.

TensorFlow's stateless float distributions turn the generator's bits into
floats in another way under XLA, and choose the generator by where they run. An
attack or a compressor should not change with `jit_compile`, so these make the
floats from the bits of the one generator that is everywhere, Philox.
"""

import tensorflow as tf


def uniform_integers(
  shape: list[int], seed: tf.Tensor, maxval: int
) -> tf.Tensor:
  """Returns int32 numbers in [0, maxval), all of them equally likely."""
  return tf.random.stateless_uniform(
    shape, seed, maxval=maxval, dtype=tf.int32, alg="philox"
  )


def bits(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
  """Returns int32 numbers, all 2^32 of them equally likely."""
  return tf.random.stateless_uniform(
    shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
  )


def uniform(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
  """Returns float32 numbers in (0, 1), one of 2^23 equally spaced ones each."""
  upper = tf.bitwise.right_shift(tf.bitcast(bits(shape, seed), tf.uint32), 9)
  return (tf.cast(upper, tf.float32) + 0.5) * 2.0**-23


def normal(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
  """Returns float32 numbers of the normal distribution N(0, 1)."""
  return tf.math.ndtri(uniform(shape, seed))


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
  """Returns the seed of one of many streams, an int64 tensor `[2]`.

  TensorFlow's `stateless_fold_in` leaves the choice of the generator open, and
  gives another seed under XLA where the seed is negative or large.
  """
  return tf.stack(
    [tf.bitcast(bits([2], seed), tf.int64), tf.cast(number, tf.int64)]
  )
