"""Inner product manipulation: all push against the honest workers' mean.

The aggregate of a tolerant rule must not point away from the true gradient. A
small `epsilon` hides among honest vectors and defeats rules that go by
distances (Krum); a large one defeats the mean and the median. Xie, Koyejo and
Gupta, Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
Manipulation, UAI 2019.
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import check_positive
from robust_tf.attacks.rows import honest_rows
from robust_tf.attacks.rows import replace_rows


def inner_product(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  epsilon: float | tf.Tensor,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are `-epsilon * mean(honest)`.

  Xie et al., UAI 2019. Other libraries write the same row as
  `mean + factor * (-mean)`, so their `factor` is `1 + epsilon`.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    epsilon: the strength, above 0; a scalar tensor is not checked.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `epsilon` is not above 0; or see `rows.as_updates`.
  """
  del seed
  check_positive("epsilon", epsilon)
  updates = as_updates(updates, byzantine)
  mean = tf.reduce_mean(honest_rows(updates, byzantine), axis=0)
  return replace_rows(
    updates, byzantine, -as_scalar(epsilon, mean.dtype) * mean
  )
