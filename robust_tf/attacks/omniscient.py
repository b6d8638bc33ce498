"""The omniscient attack: a huge vector against the honest workers' sum.

Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv
1802.10116).
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import check_positive
from robust_tf.attacks.rows import honest_rows
from robust_tf.attacks.rows import replace_rows


def omniscient(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  scale: float | tf.Tensor = 1e20,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are `-scale * sum(honest)`.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    scale: above 0; a scalar tensor is not checked.

  Returns:
    `[n, d]`, of the updates' dtype; in float16 the attack is infinite.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `scale` is not above 0; or see `rows.as_updates`.
  """
  del seed
  check_positive("scale", scale)
  updates = as_updates(updates, byzantine)
  total = tf.reduce_sum(honest_rows(updates, byzantine), axis=0)
  return replace_rows(
    updates, byzantine, -as_scalar(scale, total.dtype) * total
  )
