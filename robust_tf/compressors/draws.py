"""What all workers draw alike, or a worker for itself.

It is a function of a seed, the step and at most the worker: no state, nothing
to keep in step.
"""

import tensorflow as tf

from robust_tf.random_values import bits
from robust_tf.random_values import fold_in


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
  return fold_in(step_seed(seed, step), worker)


def sample(population: int, count: int, seed: tf.Tensor) -> tf.Tensor:
  """Returns `count` of the integers below `population`, int32, ascending.

  Every subset of that many is as likely as any other, but for equal ones among
  `population` random numbers of 32 bits. The draw depends on `count`, lest a
  small sample be part of each greater one of the same seed.
  """
  if count == population:
    return tf.range(population)
  drawn = bits([population], fold_in(seed, count))
  return tf.sort(tf.math.top_k(drawn, count, sorted=False).indices)
