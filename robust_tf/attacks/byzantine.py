"""Which workers attack, how, and from when on: a setting of an experiment.

How many Byzantine workers a rule expects is the rule's own setting.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from robust_tf.attacks.rows import check_byzantine
from robust_tf.random_values import fold_in


@dataclasses.dataclass(frozen=True)
class Byzantine:
  """The Byzantine workers of a run.

  Attributes:
    workers: their indices among the n workers.
    attack: what they do, `attack(updates, byzantine, seed) -> updates`; a
      function of `robust_tf.attacks` whose parameters `functools.partial` sets.
    start_step: the first step at which they attack; before, they are honest.
    seed: of all that is random in the attack.
  """

  workers: tuple[int, ...]
  attack: Callable[..., tf.Tensor]
  start_step: int = 0
  seed: int = 0

  def __post_init__(self):
    if self.start_step < 0:
      raise ValueError(f"start_step={self.start_step} must be 0 or more")

  def check(self, num_workers: int) -> None:
    """Checks the workers' indices.

    Raises:
      TypeError: an index is no integer.
      ValueError: there is none, one is out of range, or one is there twice.
    """
    check_byzantine(self.workers, num_workers)

  def __call__(self, updates: tf.Tensor, step: int | tf.Tensor) -> tf.Tensor:
    """Returns the updates as the server receives them.

    Args:
      updates: what each worker would send, `[n, d]`.
      step: an integer scalar; the same step gives the same random numbers.

    Returns:
      `[n, d]`, of the updates' dtype.

    Raises:
      TypeError: see `rows.as_updates`.
      ValueError: the attack refuses its arguments.
    """
    updates = tf.convert_to_tensor(updates)
    seed = fold_in(tf.constant([self.seed, 0], tf.int64), step)
    if self.start_step == 0:
      return self.attack(updates, self.workers, seed)
    return tf.cond(
      tf.cast(step, tf.int64) >= self.start_step,
      lambda: self.attack(updates, self.workers, seed),
      lambda: updates,
    )
