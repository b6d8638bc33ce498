"""Optimizers with local models, each beside the oracle of what it computes."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator

import keras
import numpy as np

import robust_tf
from robust_tf.compressors import GRBS
from robust_tf.compressors import Identity
from robust_tf.compressors import RandomK
from robust_tf.compressors import ScaledSign
from robust_tf.compressors import TopK
from robust_tf.compressors import Zero
from tests.robust_tf import local_oracles as oracles
from tests.robust_tf.local_training import oracle_of
from tests.robust_tf.local_training import SIZE

RATE = 0.1
RESET = GRBS(4, num_blocks=16, seed=1)
GRADIENT = GRBS(8, num_blocks=16, seed=2)
ERROR = ("error",)
MOMENTUM = ("momentum",)
COMMON = ("common",)
SQUARES = ("accumulator", "denominator")


def constant(step: int) -> float:
  """Returns the learning rate of runs without a schedule."""
  del step
  return RATE


def decayed(step: int) -> float:
  """Returns what `decay()` says of a step."""
  return 2 * RATE * 0.8 ** (step / 3)


def decay() -> keras.optimizers.schedules.LearningRateSchedule:
  """Returns a schedule that says something else of every step."""
  return keras.optimizers.schedules.ExponentialDecay(2 * RATE, 3, 0.8)


def payload(compressor, step: int) -> int:
  """Returns the bytes that a worker hands over of a vector at a step."""
  if isinstance(compressor, TopK):
    return (4 + 4) * round(SIZE / compressor.ratio)
  if isinstance(compressor, ScaledSign):
    return -(-SIZE // 8) + 4
  kept = oracle_of(compressor)(np.ones(SIZE), step, 0)
  return 4 * int(kept.sum())


def every(h: int, compressor) -> Callable[[int], int]:
  """Returns the bytes of a step, of what is sent at each h-th one."""
  return lambda step: 0 if (step + 1) % h else payload(compressor, step)


@dataclasses.dataclass(frozen=True)
class Case:
  """An optimizer and its oracle.

  Attributes:
    make: the optimizer, of more of its arguments; to be called in a
      strategy's scope.
    expect: the states of all steps, of a problem.
    states: names of the states that the optimizer keeps.
    rate: the learning rate of a step.
    sent: the bytes that a worker hands over at a step.
    clip: changes a worker's gradients, a list over variables, in place.
  """

  make: Callable[..., keras.optimizers.Optimizer]
  expect: Callable[[oracles.Problem], Iterator[oracles.State]]
  sent: Callable[[int], int]
  states: tuple[str, ...] = ()
  rate: Callable[[int], float] = constant
  clip: Callable[[list[np.ndarray]], None] = lambda gradients: None


def cser(
  c1,
  c2,
  h: int,
  beta=0.0,
  wd=0.0,
  released=False,
  scheduled=False,
  clip=lambda gradients: None,
  **kwargs,
) -> Case:
  """Returns CSER with its oracle; kwargs are the optimizer's.

  Where an all-reduce carries C1, no error needs to be kept.
  """
  keeps_error = not (released or c1.all_reduce)
  at_reset = every(h, c1)

  def sent(step):
    if released:
      return at_reset(step) or payload(c2, step)
    if isinstance(c2, Identity):
      return payload(c2, step)  # and there is no error
    return payload(c2, step) + at_reset(step)

  expect = oracles.released_cser if released else oracles.m_cser
  return Case(
    lambda **more: robust_tf.CSER(
      decay() if scheduled else RATE,
      sync_period=h,
      reset_compressor=c1,
      gradient_compressor=c2,
      momentum=beta,
      weight_decay=wd or None,
      released_code=released,
      **kwargs,
      **more,
    ),
    lambda problem: expect(problem, oracle_of(c1), oracle_of(c2), h, beta, wd),
    sent,
    (ERROR if keeps_error else ()) + (MOMENTUM if beta else ()),
    decayed if scheduled else constant,
    clip,
  )


def clip_each_norm(gradients: list[np.ndarray]) -> None:
  """Shortens what is longer than 0.1, each variable's for itself."""
  for g in gradients:
    g *= 0.1 / max(0.1, np.linalg.norm(g))


def clip_common_norm(gradients: list[np.ndarray]) -> None:
  """Shortens all by as much, if together they are longer than 0.2."""
  norm = np.sqrt(sum((g**2).sum() for g in gradients))
  for g in gradients:
    g *= 0.2 / max(0.2, norm)


def clip_values(gradients: list[np.ndarray]) -> None:
  """Bounds every value by 0.05."""
  for g in gradients:
    np.clip(g, -0.05, 0.05, out=g)


CSER = {
  "grbs": cser(RESET, GRADIENT, 3, beta=0.9),
  "grbs_every_step": cser(RESET, GRADIENT, 1),
  "grbs_scheduled": cser(RESET, GRADIENT, 3, 0.9, wd=0.05, scheduled=True),
  "top_k_reset": cser(TopK(4), GRADIENT, 3, beta=0.9),
  "top_k_gradient": cser(ScaledSign(), TopK(8), 3, beta=0.9, wd=0.05),
  "sign_gradient": cser(TopK(4), ScaledSign(), 1, scheduled=True),
  "random_k": cser(RandomK(4, seed=3), RandomK(8, seed=4), 3),
  "identity_gradient": cser(RESET, Identity(), 3, beta=0.9),
  "identity_reset": cser(Identity(), GRADIENT, 3, beta=0.9),
  "clipnorm": cser(
    RESET, GRADIENT, 3, 0.9, wd=0.05, clip=clip_each_norm, clipnorm=0.1
  ),
  "global_clipnorm": cser(
    RESET, TopK(8), 3, clip=clip_common_norm, global_clipnorm=0.2
  ),
  "clipvalue": cser(RESET, Zero(), 3, clip=clip_values, clipvalue=0.05),
  "released_code": cser(RESET, GRADIENT, 3, 0.9, wd=0.05, released=True),
  "released_code_every_step": cser(RESET, GRADIENT, 1, released=True),
  "released_code_identity": cser(RESET, Identity(), 3, released=True),
}

SPECIAL = {
  "csea": Case(
    lambda **more: robust_tf.CSEA(
      RATE, compressor=GRADIENT, momentum=0.9, **more
    ),
    lambda problem: oracles.m_cser(
      problem, oracle_of(GRADIENT), oracles.zero, 1, 0.9
    ),
    every(1, GRADIENT),
    MOMENTUM,
  ),
  "cser_pl": Case(
    lambda **more: robust_tf.CSER_PL(
      RATE, sync_period=3, compressor=RESET, momentum=0.9, **more
    ),
    lambda problem: oracles.m_cser(
      problem, oracle_of(RESET), oracles.zero, 3, 0.9
    ),
    every(3, RESET),
    MOMENTUM,
  ),
  "csea_top_k": Case(
    lambda **more: robust_tf.CSEA(
      RATE, compressor=TopK(8), momentum=0.0, **more
    ),
    lambda problem: oracles.m_cser(problem, oracles.top_k(8), oracles.zero, 1),
    every(1, TopK(8)),
    ERROR,
  ),
  "local_sgd": Case(
    lambda **more: robust_tf.LocalSGD(
      decay(), sync_period=4, momentum=0.9, weight_decay=0.05, **more
    ),
    lambda problem: oracles.local_sgd(problem, 4, 0.9, 0.05),
    every(4, Identity()),
    MOMENTUM,
    decayed,
  ),
}

BASELINES = {
  "ef_sgd": Case(
    lambda **more: robust_tf.ErrorFeedbackSGD(
      decay(), compressor=GRADIENT, momentum=0.9, weight_decay=0.05, **more
    ),
    lambda problem: oracles.ef_sgd(problem, oracle_of(GRADIENT), 0.9, 0.05),
    every(1, GRADIENT),
    MOMENTUM + ERROR,
    decayed,
  ),
  "ef_sgd_top_k": Case(
    lambda **more: robust_tf.ErrorFeedbackSGD(
      RATE, compressor=TopK(8), momentum=0.0, **more
    ),
    lambda problem: oracles.ef_sgd(problem, oracles.top_k(8)),
    every(1, TopK(8)),
    ERROR,
  ),
  "ef_sign_sgd": Case(
    lambda **more: robust_tf.ErrorFeedbackSGD(
      RATE, compressor=ScaledSign(), momentum=0.9, **more
    ),
    lambda problem: oracles.ef_sgd(problem, oracles.scaled_sign, 0.9),
    every(1, ScaledSign()),
    MOMENTUM + ERROR,
  ),
  "qsparse": Case(
    lambda **more: robust_tf.QSparseLocalSGD(
      decay(),
      sync_period=3,
      compressor=RESET,
      momentum=0.9,
      weight_decay=0.05,
      **more,
    ),
    lambda problem: oracles.qsparse_local_sgd(
      problem, oracle_of(RESET), 3, 0.9, 0.05
    ),
    every(3, RESET),
    MOMENTUM + ERROR + COMMON,
    decayed,
  ),
  "qsparse_top_k": Case(
    lambda **more: robust_tf.QSparseLocalSGD(
      RATE, sync_period=3, compressor=TopK(4), momentum=0.0, **more
    ),
    lambda problem: oracles.qsparse_local_sgd(problem, oracles.top_k(4), 3),
    every(3, TopK(4)),
    ERROR + COMMON,
  ),
}

B0_SQUARED, EPSILON_SQUARED = 0.5, 0.25

ADAPTIVE = {
  "adaalter": Case(
    lambda **more: robust_tf.AdaAlter(
      decay(),
      initial_accumulator_value=B0_SQUARED,
      epsilon=EPSILON_SQUARED,
      weight_decay=0.05,
      **more,
    ),
    lambda problem: oracles.adaalter(
      problem, B0_SQUARED, EPSILON_SQUARED, 0.05
    ),
    lambda step: 2 * 4 * SIZE,
    SQUARES,
    decayed,
  ),
  "local_adaalter": Case(
    lambda **more: robust_tf.LocalAdaAlter(
      decay(),
      sync_period=3,
      initial_accumulator_value=B0_SQUARED,
      epsilon=EPSILON_SQUARED,
      weight_decay=0.05,
      **more,
    ),
    lambda problem: oracles.local_adaalter(
      problem, B0_SQUARED, EPSILON_SQUARED, 3, 0.05
    ),
    lambda step: 2 * every(3, Identity())(step),
    SQUARES,
    decayed,
  ),
  "local_adaalter_every_step": Case(
    lambda **more: robust_tf.LocalAdaAlter(
      RATE,
      sync_period=1,
      initial_accumulator_value=B0_SQUARED,
      epsilon=EPSILON_SQUARED,
      **more,
    ),
    lambda problem: oracles.adaalter(problem, B0_SQUARED, EPSILON_SQUARED),
    lambda step: 2 * 4 * SIZE,
    SQUARES,
  ),
  "local_adaalter_constant_epsilon": Case(
    lambda **more: robust_tf.LocalAdaAlter(
      RATE,
      sync_period=3,
      initial_accumulator_value=0.0,
      epsilon=EPSILON_SQUARED,
      constant_epsilon=True,
      **more,
    ),
    lambda problem: oracles.local_adaalter(
      problem, 0.0, EPSILON_SQUARED, 3, constant_epsilon=True
    ),
    lambda step: 2 * every(3, Identity())(step),
    SQUARES,
  ),
}

CASES = {**CSER, **SPECIAL, **BASELINES, **ADAPTIVE}
