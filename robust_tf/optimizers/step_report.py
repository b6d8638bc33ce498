"""What aggregation did, summed over steps, for a callback to show."""

import functools

import keras
import tensorflow as tf

from robust_tf.aggregators.updates import Block
from robust_tf.aggregators.updates import combine
from robust_tf.aggregators.updates import to_blocks
from robust_tf.aggregators.updates import Updates
from robust_tf.ordered_sum import ordered_sum


class StepReport:
  """Sums of what each step did, since they were last taken to zero.

  Sums, because a function of several steps shows nothing of those in between.
  They are no state of the optimizer and are not saved with it.
  """

  NAMES = ("rows_accepted", "rows_non_finite", "distance_from_mean")

  def __init__(self):
    self._sums = keras.Variable(
      initializer="zeros",
      shape=(1 + len(self.NAMES),),
      dtype="float32",
      trainable=False,
      aggregation="only_first_replica",
      name="aggregation_report",
    )

  def add(self, step: tf.Tensor) -> None:
    """Adds what `measure` returned; not in replica context."""
    self._sums.assign_add(tf.concat([[1.0], step], axis=0))

  def reset(self) -> None:
    """Takes the sums to zero."""
    self._sums.assign(tf.zeros_like(self._sums))

  def means(self) -> dict[str, float]:
    """Returns the means over the steps since the last reset, by name."""
    steps, *sums = self._sums.numpy().tolist()
    return {
      name: total / max(steps, 1.0)
      for name, total in zip(self.NAMES, sums, strict=True)
    }


def measure(
  updates: Updates, aggregate, weights: tf.Tensor | None, scale: int = 1
) -> tf.Tensor:
  """Returns what a step did, in the order of `StepReport.NAMES`.

  Args:
    updates: what the rule saw, in any form of `aggregators.updates`.
    aggregate: what it made of them, in the matching form.
    weights: `[n]`, the weight of each update; None for a rule that has none,
      such as a coordinate-wise one, which accepts every finite row.
    scale: the number that all updates were divided by.

  Returns:
    `[3]`, float32: the rows that were accepted, see `_effective_number`,
    those with a NaN or an infinity, and the distance of the aggregate from the
    mean of the others.
  """
  finite = functools.reduce(
    tf.logical_and, [_finite_rows(block) for block in to_blocks(updates)]
  )
  num_finite = tf.reduce_sum(tf.cast(finite, tf.float32))
  mean = combine(
    updates, tf.cast(finite, tf.float32) / tf.maximum(num_finite, 1.0)
  )
  if weights is None:
    weights = tf.cast(finite, tf.float32)
  return tf.stack(
    [
      _effective_number(weights),
      tf.cast(tf.size(finite), tf.float32) - num_finite,
      scale * _distance(aggregate, mean),
    ]
  )


def _effective_number(weights: tf.Tensor) -> tf.Tensor:
  """Returns (sum_i w_i)^2 / sum_i w_i^2, float32; 0 if all weights are 0.

  It is k for k equal weights and less for k that differ: the number of equal
  ones that average as well (Kish, Survey Sampling, 1965, section 11.7).
  """
  # NaN are the weights of updates none of which is finite.
  weights = tf.where(weights > 0, weights, tf.zeros_like(weights))
  # Equal weights become 1 each, so that k is exact.
  ratios = tf.math.divide_no_nan(weights, tf.reduce_max(weights))
  total, squares = tf.reduce_sum(ratios), tf.reduce_sum(tf.square(ratios))
  return tf.cast(tf.math.divide_no_nan(total**2, squares), tf.float32)


def _finite_rows(block: Block) -> tf.Tensor:
  rows = tf.unstack(block) if isinstance(block, tf.Tensor) else block
  return tf.stack([tf.reduce_all(tf.math.is_finite(row)) for row in rows])


def _distance(update, other) -> tf.Tensor:
  """Returns the distance of two updates, float32."""
  differences = [
    tf.cast(value, tf.float32) - tf.cast(other_value, tf.float32)
    for value, other_value in zip(
      keras.tree.flatten(update), keras.tree.flatten(other), strict=True
    )
  ]
  # The square of a Byzantine 1e20 is infinite: then of it times 2^-64.
  tiny = 2.0**-64
  plain = _half_square(differences)
  scaled = _half_square([x * tiny for x in differences])
  return tf.where(
    tf.math.is_finite(plain),
    tf.sqrt(2.0 * plain),
    tf.sqrt(2.0 * scaled) / tiny,
  )


def _half_square(tensors: list[tf.Tensor]) -> tf.Tensor:
  return ordered_sum([tf.nn.l2_loss(x) for x in tensors])
