"""Dimensional attacks: wrong values at other workers in every coordinate.

No worker is wholly honest or wholly Byzantine: in every coordinate at most a
few of the n values are wrong, so a rule that keeps or drops whole vectors has
none to keep. Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018
(arXiv 1802.10116); Phocas: dimensional Byzantine-resilient stochastic gradient
descent, 2018 (arXiv 1805.09682).

`byzantine` names the workers whose values may be hit; all of them may be.
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.random_values import uniform
from robust_tf.random_values import uniform_integers


def bit_flip(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  num_coordinates: int = 1000,
  bits: Sequence[int] = (21, 29, 30, 31),
) -> tf.Tensor:
  """Returns updates with one value a coordinate whose bits are flipped.

  In each of the first coordinates one of the named workers, drawn anew, sends
  its value with some bits of the float32 pattern flipped. The papers count bits
  from 1 (the 22nd, 30th, 31st and 32nd), this function from 0, the lowest.

  Args:
    updates: what each worker would send, `[n, d]`. A value of another dtype is
      hit as the nearest float32.
    byzantine: the indices of the workers that may be hit; all are allowed.
    seed: two integers.
    num_coordinates: how many coordinates are hit; where d is smaller, all.
    bits: which bits, 0 to 31; 31 is the sign.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: a bit is not of 0 to 31, named twice, or there is none;
      `num_coordinates` is below 1; or see `rows.as_updates`.
  """
  mask = _bit_mask(bits)
  if num_coordinates < 1:
    raise ValueError(f"num_coordinates={num_coordinates} must be 1 or more")
  updates = as_updates(updates, byzantine, needs_honest=False)
  width = tf.minimum(num_coordinates, tf.shape(updates)[1])
  drawn = uniform_integers([width], seed, maxval=len(byzantine))
  victims = tf.gather(tf.constant(byzantine, tf.int32), drawn)
  hit = tf.range(updates.shape[0])[:, None] == victims

  values = tf.cast(updates[:, :width], tf.float32)
  flipped = tf.bitwise.bitwise_xor(tf.bitcast(values, tf.uint32), mask)
  wrong = tf.cast(tf.bitcast(flipped, tf.float32), updates.dtype)
  return _replace_first(updates, hit, wrong)


def gambler(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  probability: float = 0.0005,
  num_servers: int = 20,
  scale: float = -1e20,
) -> tf.Tensor:
  """Returns updates of which one of the servers spoils some values.

  The parameters are split over the servers, in order and evenly. The first
  server multiplies each value that it receives by `scale`, at random.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the workers that may be hit; all are allowed.
    seed: two integers.
    probability: of one value to be hit, in [0, 1].
    num_servers: how many share the parameters; the first has `ceil(d / this)`.
    scale: what the values are multiplied by.

  Returns:
    `[n, d]`, of the updates' dtype; in float16 the values become infinite.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `probability` is not in [0, 1], or `num_servers` is below 1; or
      see `rows.as_updates`.
  """
  if not 0 <= probability <= 1:
    raise ValueError(f"probability={probability} must be in [0, 1]")
  if num_servers < 1:
    raise ValueError(f"num_servers={num_servers} must be 1 or more")
  updates = as_updates(updates, byzantine, needs_honest=False)
  num_workers = updates.shape[0]
  width = -(-tf.shape(updates)[1] // num_servers)
  named = [[worker in byzantine] for worker in range(num_workers)]
  hit = (uniform([num_workers, width], seed) < probability) & named

  values = updates[:, :width]
  values = tf.cast(values, tf.float32) if values.dtype.size < 4 else values
  wrong = tf.cast(values * as_scalar(scale, values.dtype), updates.dtype)
  return _replace_first(updates, hit, wrong)


def _bit_mask(bits: Sequence[int]) -> tf.Tensor:
  """Returns the uint32 that has just these bits, after a check of them."""
  if not bits:
    raise ValueError("bits=() flips nothing: name one")
  for bit in bits:
    if not 0 <= bit <= 31:
      raise ValueError(f"bit {bit} is none of a float32's 0 to 31")
    if list(bits).count(bit) > 1:
      raise ValueError(f"bit {bit} is named twice")
  return tf.constant(sum(1 << bit for bit in bits), tf.uint32)


def _replace_first(
  updates: tf.Tensor, hit: tf.Tensor, wrong: tf.Tensor
) -> tf.Tensor:
  """Returns the updates with the wrong values where the first ones are hit.

  Args:
    updates: `[n, d]`.
    hit: bool `[n, k]`, k at most d.
    wrong: `[n, k]`.
  """
  width = tf.shape(hit)[1]
  first = tf.where(hit, wrong, updates[:, :width])
  return tf.ensure_shape(
    tf.concat([first, updates[:, width:]], axis=1), updates.shape
  )
