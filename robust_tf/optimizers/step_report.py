"""What aggregation did, summed over steps, for a callback to show."""

import keras
import tensorflow as tf


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


@tf.function(jit_compile=True, autograph=False)
def measure(
  rows: tf.Tensor, aggregate: tf.Tensor, weights: tf.Tensor | None
) -> tf.Tensor:
  """Returns what a step did, in the order of `StepReport.NAMES`.

  Args:
    rows: `[n, d]`, what the rule saw.
    aggregate: `[d]`, what it made of them.
    weights: `[n]`, the weight of each row; None for a rule that has none, such
      as a coordinate-wise one, which accepts every finite row.

  Returns:
    `[3]`, float32: the rows that were accepted, those with a NaN or an
    infinity, and the distance of the aggregate from the mean of the others.
  """
  rows = tf.cast(rows, tf.float32)
  finite = tf.reduce_all(tf.math.is_finite(rows), axis=1)
  accepted = finite if weights is None else weights > 0
  num_finite = tf.reduce_sum(tf.cast(finite, tf.float32))
  total = tf.reduce_sum(tf.where(finite[:, None], rows, 0.0), axis=0)
  mean = total / tf.maximum(num_finite, 1.0)
  return tf.stack(
    [
      tf.reduce_sum(tf.cast(accepted, tf.float32)),
      rows.shape[0] - num_finite,
      tf.norm(tf.cast(aggregate, tf.float32) - mean),
    ]
  )
