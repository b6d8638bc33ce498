"""Rows of NaN or infinity, which one overflow on one worker can also make."""

import math
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import replace_rows


def non_finite(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  value: float = math.nan,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows hold nothing but `value`.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    value: NaN, infinity or minus infinity.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `value` is finite; or see `rows.as_updates`.
  """
  del seed
  if math.isfinite(value):
    raise ValueError(f"value={value} is finite: choose nan, inf or -inf")
  updates = as_updates(updates, byzantine)
  row = tf.fill([tf.shape(updates)[1]], as_scalar(value, updates.dtype))
  return replace_rows(updates, byzantine, row)
