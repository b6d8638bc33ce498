"""Sign flip: a worker's own gradient, turned round.

Xie, Koyejo and Gupta, Zeno: Distributed Stochastic Gradient Descent with
Suspicion-based Fault-tolerance, ICML 2019, where the flipped vector of one
faulty worker is sent by all of them: the worst case for Krum, which takes
vectors near each other for honest ones.
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import check_positive
from robust_tf.attacks.rows import replace_rows


def sign_flip(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  scale: float | tf.Tensor = 1.0,
  copies: bool = False,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are `-scale` times their own.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    scale: above 0; a scalar tensor is not checked.
    copies: all send the flipped row of the first of the Byzantine workers.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `scale` is not above 0; or see `rows.as_updates`.
  """
  del seed
  check_positive("scale", scale)
  updates = as_updates(updates, byzantine)
  own = updates[byzantine[0]] if copies else tf.gather(updates, byzantine)
  return replace_rows(updates, byzantine, -as_scalar(scale, own.dtype) * own)
