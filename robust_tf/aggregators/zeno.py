"""Zeno: the updates that promise to lower a loss which the server can compute.

An update u is scored by how much a step along it lowers the loss f_r on a few
fresh samples of the server's own, less a penalty for its length:

    Score(u, x) = f_r(x) - f_r(x - gamma u) - rho ||u||^2.

As each update is judged by itself, more than half of them may be Byzantine.

Xie, Koyejo and Gupta, Zeno: Distributed Stochastic Gradient Descent with
Suspicion-based Fault-tolerance, ICML 2019 (arXiv 1805.10032); Zeno++: Robust
Fully Asynchronous SGD, ICML 2020 (arXiv 1903.07020).
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from robust_tf.aggregators.updates import accumulation_dtype
from robust_tf.aggregators.updates import block_dtype
from robust_tf.aggregators.updates import check_count
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import from_blocks
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import to_blocks
from robust_tf.aggregators.updates import Updates
from robust_tf.ordered_sum import ordered_sum

PENALTIES = ("sum", "mean")


def zeno(
  updates: Updates,
  loss: Callable[[Any], tf.Tensor],
  learning_rate: float | tf.Tensor,
  num_suspected: int,
  rho: float = 5e-4,
  penalty: str = "sum",
):
  """Returns the mean of the n - b updates of the highest scores.

  Args:
    updates: n > b updates, in any form of `updates`: gradients of the mean
      loss, in no other scale.
    loss: `loss(step)` is f_r(x - step), a scalar; it is called n + 1 times, on
      the same samples in inference mode. A step has the form of one update.
    learning_rate: gamma, that of the step to be made.
    num_suspected: b, how many updates to leave out.
    rho: how much an update's squared length counts against it.
    penalty: "sum": rho ||u||^2, as in the paper; "mean": rho ||u||^2 / d, as
      in the code that its authors released.

  Returns:
    One update, in the form and the dtypes of the updates; of equal scores, the
    first are taken. An update whose score is not finite is never taken: where
    less than n - b have finite scores, the mean is that of these; where none
    has, NaN.

  Raises:
    TypeError: updates in none of the forms, or `num_suspected` no integer.
    ValueError: `num_suspected` below 0 or not below n, `rho` below 0, a
      penalty of another name, or a loss that is no scalar.
  """
  return combine(
    updates,
    zeno_weights(updates, loss, learning_rate, num_suspected, rho, penalty),
  )


def zeno_weights(
  updates: Updates,
  loss: Callable[[Any], tf.Tensor],
  learning_rate: float | tf.Tensor,
  num_suspected: int,
  rho: float = 5e-4,
  penalty: str = "sum",
) -> tf.Tensor:
  """Returns 1 / (n - b) for the updates that `zeno` takes, else 0.

  Args, Raises: as in `zeno`.

  Returns:
    [n] float64.
  """
  n = num_workers(updates)
  check_count("num_suspected", num_suspected, 1, 1, n)
  if not rho >= 0:
    raise ValueError(f"rho={rho} must be at least 0")
  if penalty not in PENALTIES:
    raise ValueError(f"penalty={penalty!r} must be one of {PENALTIES}")
  scores = _scores(updates, loss, learning_rate, rho, penalty)
  finite = tf.math.is_finite(scores)
  # A NaN would sort as the best or as the worst of all.
  scores = tf.where(finite, scores, tf.constant(float("-inf"), tf.float64))
  ranks = tf.argsort(tf.argsort(-scores, stable=True), stable=True)
  selected = tf.cast(finite & (ranks < n - num_suspected), tf.float64)
  return selected / tf.reduce_sum(selected)


def zeno_plus_plus(
  update: Any,
  validation_gradient: Any,
  learning_rate: float | tf.Tensor,
  rho: float = 0.001,
  epsilon: float = 0.0,
) -> tuple[tf.Tensor, Any]:
  """Returns whether to accept an update, and the update scaled.

  With g~ the update u scaled to the length of v, a gradient of the server's
  own samples, maybe a few steps old, it is accepted when

      gamma <v, g~> - rho ||g~||^2 >= -gamma epsilon.

  Args:
    update: u, one worker's gradient: a tensor or ndarray [d], or a list over
      variables.
    validation_gradient: v, in the form and the dtypes of the update.
    learning_rate: gamma.
    rho: how much the length counts against the update.
    epsilon: how much the loss may rise, as far as v can tell.

  Returns:
    accepted: a bool scalar; False where the update or v is not finite.
    scaled: g~, in the form and the dtypes of the update; zero where the update
      is zero or not finite.

  Raises:
    TypeError, ValueError: the update in none of the forms, or other than v.
  """
  flat = not isinstance(update, list | tuple)
  rows = [update, validation_gradient]
  if flat:
    rows = [[row] for row in rows]
  blocks = to_blocks(rows)
  u, v = zip(*[tf.unstack(tf.cast(b, tf.float64)) for b in blocks], strict=True)
  gamma = tf.cast(learning_rate, tf.float64)
  length = tf.sqrt(_dot(u, u))
  finite = tf.math.is_finite(length)
  ratio = tf.math.divide_no_nan(tf.sqrt(_dot(v, v)), length)
  scaled = [tf.where(finite, ratio * part, tf.zeros_like(part)) for part in u]
  score = gamma * _dot(v, scaled) - rho * _dot(scaled, scaled)
  accepted = finite & (score >= -gamma * epsilon)
  parts = [
    tf.cast(part, block_dtype(block))
    for part, block in zip(scaled, blocks, strict=True)
  ]
  result = from_blocks(parts, like=rows)
  return accepted, result[0] if flat else result


def _dot(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
  return ordered_sum([tf.tensordot(x, y, 1) for x, y in zip(a, b, strict=True)])


def _scores(updates, loss, learning_rate, rho, penalty) -> tf.Tensor:
  """Returns the stochastic descendant scores, [n] float64."""
  blocks = to_blocks(updates)
  learning_rate = tf.cast(learning_rate, tf.float64)

  def loss_after(update):
    step = [_scaled(part, learning_rate) for part in update]
    value = tf.cast(loss(from_blocks(step, like=updates)), tf.float64)
    if value.shape.rank:
      raise ValueError(
        f"the loss has shape {value.shape}, not that of a scalar: reduce it"
      )
    return value

  before = loss_after([tf.zeros_like(block[0]) for block in blocks])
  scores = []
  for worker in range(num_workers(updates)):
    update = [block[worker] for block in blocks]
    length = ordered_sum([_squared_norm(part) for part in update])
    if penalty == "mean":
      length /= ordered_sum([tf.size(part, tf.float64) for part in update])
    scores.append(before - loss_after(update) - rho * length)
  return tf.stack(scores)


def _scaled(part: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns factor * part in the part's dtype, rounded once."""
  dtype = accumulation_dtype(part.dtype)
  return tf.cast(tf.cast(factor, dtype) * tf.cast(part, dtype), part.dtype)


def _squared_norm(part: tf.Tensor) -> tf.Tensor:
  part = tf.cast(part, accumulation_dtype(part.dtype))
  return 2 * tf.cast(tf.nn.l2_loss(part), tf.float64)
