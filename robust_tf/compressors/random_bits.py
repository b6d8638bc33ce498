"""Randomness that all workers share, or that is a worker's own.

It is a function of a seed, the step and at most the worker: no state, nothing
to keep in step. The bits come from Philox wherever they are drawn, so a CPU, a
GPU and XLA draw the same ones.
"""

import tensorflow as tf


def step_seed(seed: int, step: int | tf.Tensor) -> tf.Tensor:
  """Returns the seed of a step, int64 `[2]`.

  Raises:
    TypeError: `step` is no integer and no integer tensor.
  """
  step = tf.convert_to_tensor(step)
  if not step.dtype.is_integer:
    raise TypeError(f"step must be an integer, got {step.dtype.name}")
  return tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])


def worker_seed(
  seed: int, step: int | tf.Tensor, worker: int | tf.Tensor
) -> tf.Tensor:
  """Returns the seed of one worker at a step, int64 `[2]`."""
  return _fold_in(step_seed(seed, step), worker)


def sample(population: int, count: int, seed: tf.Tensor) -> tf.Tensor:
  """Returns `count` of the integers below `population`, int32, ascending.

  Every subset of that many is as likely as any other, but for equal ones among
  `population` random numbers of 32 bits. The draw depends on `count`, lest a
  small sample be part of each greater one of the same seed.
  """
  if count == population:
    return tf.range(population)
  bits = _bits(population, _fold_in(seed, count))
  return tf.sort(tf.math.top_k(bits, count, sorted=False).indices)


def uniform(count: int, seed: tf.Tensor) -> tf.Tensor:
  """Returns float32 `[count]` in (0, 1), one of 2^23 equally spaced ones each.

  They are made from the bits here because TensorFlow's own floats differ
  between a graph and XLA.
  """
  upper = tf.bitwise.right_shift(tf.bitcast(_bits(count, seed), tf.uint32), 9)
  return (tf.cast(upper, tf.float32) + 0.5) * 2.0**-23


def _fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
  """Returns the seed of one of many streams, int64 `[2]`.

  TensorFlow's `stateless_fold_in` leaves the choice of the generator open, and
  gives another seed under XLA where the seed is negative or large.
  """
  return tf.stack(
    [tf.bitcast(_bits(2, seed), tf.int64), tf.cast(number, tf.int64)]
  )


def _bits(count: int, seed: tf.Tensor) -> tf.Tensor:
  """Returns random int32 `[count]`, all 2^32 of them equally likely."""
  return tf.random.stateless_uniform(
    [count], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
  )
