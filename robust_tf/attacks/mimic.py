"""Mimic: all Byzantine workers copy one honest worker.

Nothing they send is unusual, but one worker's data count many times, which
hurts where workers' data differ. Karimireddy, He and Jaggi, Byzantine-Robust
Learning on Heterogeneous Datasets via Bucketing, ICLR 2022.
"""

from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import replace_rows


def mimic(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  target: int | None = None,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are a copy of an honest one.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    target: the honest worker to copy; None stands for the first.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `target` is no honest worker; or see `rows.as_updates`.
  """
  del seed
  updates = as_updates(updates, byzantine)
  honest = [i for i in range(updates.shape[0]) if i not in byzantine]
  if target is None:
    target = honest[0]
  if target not in honest:
    raise ValueError(f"target={target} is none of the honest workers {honest}")
  return replace_rows(updates, byzantine, updates[target])
