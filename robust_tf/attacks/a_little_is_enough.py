"""A little is enough: a shift within the honest workers' own spread.

All Byzantine workers send the honest mean, moved in every coordinate by as
many standard deviations as still leave enough honest workers further out that
the attack looks like one of them. Baruch, Baruch and Goldberg, A Little Is
Enough: Circumventing Defenses For Distributed Learning, NeurIPS 2019,
Algorithm 3.

The shift is `-z` deviations, against the direction of positive coordinates;
Blades and ByzFL add where we subtract, which a negative `z` does. The deviation
is the population's, which divides by the number of rows (ByzFL's divides by one
less).
"""

import statistics
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.rows import as_scalar
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import honest_rows
from robust_tf.attacks.rows import replace_rows


def derived_z(num_workers: int, num_byzantine: int) -> float:
  """Returns how many standard deviations n and q allow.

  Baruch et al., NeurIPS 2019, Algorithm 3: `s = floor(n / 2 + 1) - q` honest
  workers must side with the attack for a majority, and `z` is the normal
  quantile of `(n - q - s) / (n - q)`.

  Args:
    num_workers: n.
    num_byzantine: q.

  Raises:
    ValueError: the Byzantine workers are a majority already; or they need half
      of the honest workers or more, so that `z` is not positive: Byzantine
      workers would send the honest mean, or push the other way.
  """
  num_honest = num_workers - num_byzantine
  supporters = num_workers // 2 + 1 - num_byzantine
  if not 0 < 2 * supporters < num_honest:
    raise ValueError(
      f"no z above 0 follows from {num_byzantine} Byzantine workers of"
      f" {num_workers} (they need {supporters} of {num_honest} honest ones on"
      " their side; the attack is for at least one and fewer than half): give"
      " z"
    )
  quantile = (num_honest - supporters) / num_honest
  return statistics.NormalDist().inv_cdf(quantile)


def a_little_is_enough(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  z: float | tf.Tensor | None = None,
) -> tf.Tensor:
  """Returns updates whose Byzantine rows are `mean - z * deviation`.

  Mean and standard deviation are those of the honest rows, in every coordinate
  by itself; the deviation is the population's (it divides by n - q). Attackers
  in the paper know only what they computed themselves; these know all rows.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: not used, nothing is random.
    z: how many standard deviations; None stands for `derived_z`. A negative
      one moves the other way.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: `z` is None and none can be derived; or see `rows.as_updates`.
  """
  del seed
  updates = as_updates(updates, byzantine)
  honest = honest_rows(updates, byzantine)
  if z is None:
    z = derived_z(honest.shape[0] + len(byzantine), len(byzantine))
  mean = tf.reduce_mean(honest, axis=0)
  deviation = tf.math.reduce_std(honest, axis=0)
  row = mean - as_scalar(z, mean.dtype) * deviation
  return replace_rows(updates, byzantine, row)
