"""Zeno and Zeno++: the updates that make a held-out loss descend.

Xie, Koyejo and Gupta, Zeno: Distributed Stochastic Gradient Descent with
Suspicion-based Fault-tolerance, ICML 2019.
"""

from collections.abc import Callable

import tensorflow as tf

from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import Updates


def zeno(
  updates: Updates,
  loss: Callable,
  learning_rate,
  num_suspected: int,
  rho: float = 5e-4,
  penalty: str = "sum",
):
  """Returns the mean of the n - b updates of the highest descendant scores.

  Args:
    updates: n > b updates, in any form of `updates`.
    loss: f_r(x - step) for a step in the form of one update.
    learning_rate: gamma.
    num_suspected: b.
    rho: weight of the penalty for long updates.
    penalty: "sum", of squares, as in the paper; or their "mean".

  Returns:
    One update, in the form and the dtypes of the updates.

  Raises:
    TypeError: updates in none of the forms, or `num_suspected` no integer.
    ValueError: an argument out of range.
  """
  return combine(
    updates,
    zeno_weights(updates, loss, learning_rate, num_suspected, rho, penalty),
  )


def zeno_weights(
  updates: Updates,
  loss: Callable,
  learning_rate,
  num_suspected: int,
  rho: float = 5e-4,
  penalty: str = "sum",
) -> tf.Tensor:
  """Returns the weights of the updates in `zeno`: [n] float32."""
  n = num_workers(updates)
  check_count("num_suspected", num_suspected, num_suspected + 1, n)
  if penalty not in ("sum", "mean"):
    raise ValueError(f"penalty={penalty!r} must be 'sum' or 'mean'")
  as_lists = isinstance(updates, list | tuple)
  rows = (
    [[tf.convert_to_tensor(x) for x in row] for row in updates]
    if as_lists
    else [[row] for row in tf.unstack(tf.convert_to_tensor(updates))]
  )

  def loss_after(row, scale):
    step = [tf.cast(scale, x.dtype) * x for x in row]
    return tf.cast(loss(step if as_lists else step[0]), tf.float32)

  before = loss_after([tf.zeros_like(x) for x in rows[0]], 1.0)
  scores = []
  for row in rows:
    squares = tf.add_n(
      [tf.reduce_sum(tf.square(tf.cast(x, tf.float32))) for x in row]
    )
    if penalty == "mean":
      squares /= tf.cast(tf.add_n([tf.size(x) for x in row]), tf.float32)
    scores.append(before - loss_after(row, learning_rate) - rho * squares)
  scores = tf.stack(scores)
  scores = tf.where(tf.math.is_finite(scores), scores, -float("inf"))
  best = tf.argsort(-scores, stable=True)[: n - num_suspected]
  kept = tf.reduce_sum(tf.one_hot(best, n), axis=0)
  kept = tf.where(tf.math.is_finite(scores), kept, 0.0)
  return tf.math.divide_no_nan(kept, tf.reduce_sum(kept))
