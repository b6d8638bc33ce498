"""The worst strength of an attack against the very rule in use.

A rule may stand an attack at one strength and fall to it at another, and the
strengths that hurt lie elsewhere for every rule. This attacker knows the rule
and searches for the strength that moves its result furthest, as Guerraoui,
Guirguis, Gupta, Pinot and Stephan (ByzFL's "optimal" attacks) and Shejwalkar
and Houmansadr, Manipulating the Byzantine, NDSS 2021, do.
"""

import itertools
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.attacks.inner_product import inner_product
from robust_tf.attacks.rows import as_updates
from robust_tf.attacks.rows import check_positive
from robust_tf.attacks.rows import honest_rows

Attack = Callable[..., tf.Tensor]


def worst_case(
  updates: tf.Tensor,
  byzantine: Sequence[int],
  seed: tf.Tensor,
  aggregator: Callable[[tf.Tensor], tf.Tensor],
  attack: Attack = inner_product,
  weakest: float = 0.05,
  strongest: float = 100.0,
  num_evaluations: int = 20,
) -> tf.Tensor:
  """Returns updates attacked at the strength that does the most damage.

  The damage is the Euclidean distance between the rule's result and the mean
  of the honest rows; a result that is not finite is infinite damage. Half of
  the evaluations are at strengths spaced evenly in their logarithm, the rest
  go down and up from the best so far, by steps that halve.

  Args:
    updates: what each worker would send, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    seed: passed to the attack.
    aggregator: the rule, `[n, d] -> [d]`; it is run `num_evaluations` times.
    attack: `attack(updates, byzantine, seed, strength)`, the strength a scalar
      tensor: `inner_product`, `a_little_is_enough`, `sign_flip`, `gaussian`.
    weakest: the lowest strength of the first half.
    strongest: the highest.
    num_evaluations: 4 or more.

  Returns:
    `[n, d]`, of the updates' dtype.

  Raises:
    TypeError: see `rows.as_updates`.
    ValueError: not `0 < weakest < strongest`; fewer than 4 evaluations; or see
      `rows.as_updates`.
  """
  check_positive("weakest", weakest)
  if not weakest < strongest:
    raise ValueError(f"weakest={weakest} is not below strongest={strongest}")
  if num_evaluations < 4:
    raise ValueError(f"num_evaluations={num_evaluations} must be 4 or more")
  updates = as_updates(updates, byzantine)
  mean = tf.reduce_mean(honest_rows(updates, byzantine), axis=0)

  def damage(strength):
    attacked = attack(updates, byzantine, seed, strength)
    moved = tf.cast(aggregator(attacked), mean.dtype) - mean
    distance = tf.cast(tf.norm(moved), tf.float32)
    return tf.where(tf.math.is_finite(distance), distance, float("inf"))

  plan = _search_plan(weakest, strongest, num_evaluations)
  strength = _line_search(damage, plan)
  return attack(updates, byzantine, seed, strength)


def _search_plan(
  weakest: float, strongest: float, num_evaluations: int
) -> tuple[list[float], list[bool]]:
  """Returns a factor for each evaluation, and whether it is of the best.

  A factor is the strength itself in the first half of the search, and then
  what the best strength so far is multiplied by.
  """
  num_spread = num_evaluations // 2
  ratio = (strongest / weakest) ** (1 / (num_spread - 1))
  spread = [weakest * ratio**k for k in range(num_spread)]
  exponents = (sign * 0.5**k for k in itertools.count(1) for sign in (-1, 1))
  num_steps = num_evaluations - num_spread
  steps = [ratio**x for x in itertools.islice(exponents, num_steps)]
  return spread + steps, [False] * num_spread + [True] * num_steps


def _line_search(
  damage: Callable[[tf.Tensor], tf.Tensor], plan: tuple[list, list]
) -> tf.Tensor:
  """Returns the strength of the most damage; of equals, the first tried."""
  factors = tf.constant(plan[0], tf.float32)
  of_best = tf.constant(plan[1])

  def evaluate(k, best, most):
    strength = tf.where(of_best[k], best * factors[k], factors[k])
    done = damage(strength)
    better = done > most
    return k + 1, tf.where(better, strength, best), tf.where(better, done, most)

  _, best, _ = tf.while_loop(
    lambda k, best, most: k < len(plan[0]),
    evaluate,
    (0, factors[0], tf.constant(-1.0)),
  )
  return best
