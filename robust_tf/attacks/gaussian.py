"""Gaussian noise instead of a gradient.

Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv
1802.10116).
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import check_positive
from robust_tf.attacks.rows import replace_rows
from robust_tf.random_values import fold_in
from robust_tf.random_values import normal


def gaussian(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  stddev: float | tf.Tensor = 200.0,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are noise, N(0, stddev^2).

  A worker's noise depends on the seed and its index, not on who else attacks.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: two integers.
    stddev: above 0; a scalar tensor is not checked.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `stddev` is not above 0; or see `rows.as_updates`.
  """
  check_positive("stddev", stddev)
  updates = as_updates(updates, byzantine)
  shape = [tf.shape(updates)[1]]
  noise = [normal(shape, fold_in(seed, worker)) for worker in byzantine]
  rows = as_scalar(stddev, tf.float32) * tf.stack(noise)
  return replace_rows(updates, byzantine, rows)
