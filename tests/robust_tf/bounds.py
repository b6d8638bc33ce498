"""What the papers promise of every rule, as checks on what it gave.

The deterministic bounds are those of Xie et al., Phocas, 2018, and of the
rules' own papers. They are computed in float64 from the bits that the rule
saw, and hold whatever the Byzantine values are.
"""

import dataclasses

import numpy as np

from robust_tf import aggregators
from tests.robust_tf import contracts
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a rule made of some updates.

  Attributes:
    v: float64 [n, d], the updates.
    honest: bool [n, d], which values are honest: at least n - q in every
      coordinate, and whole rows for the rules that judge whole vectors.
    q: how many the rule was told to withstand.
    result: float64 [d].
    selected: bool [n], the rows that have weight; None where a rule has no
      weights.
    atol: what the rule's rounding may add to a value.
  """

  v: np.ndarray
  honest: np.ndarray
  q: int
  result: np.ndarray
  selected: np.ndarray | None
  atol: float


def check(rule, updates, honest, q: int) -> None:
  """Runs a rule of `contracts.RULES` and asserts the bounds on its result.

  Args:
    rule: the rule.
    updates: a tensor [n, d].
    honest: bool [n, d], as in `Outcome`.
    q: how many the rule is told to withstand.
  """
  v = tf.cast(updates, tf.float64).numpy()
  bound = rule.bind(q)
  weights = aggregators.WEIGHTS.get(bound.func)
  selected = None
  if weights is not None:
    selected = weights(updates, **bound.keywords).numpy() > 0
  outcome = Outcome(
    v=v,
    honest=honest,
    q=q,
    result=tf.cast(bound(updates), tf.float64).numpy(),
    selected=selected,
    atol=contracts.TOLERANCE[updates.dtype.name] * np.abs(v[honest]).max(),
  )
  assert np.isfinite(outcome.result).all()
  CHECKS[rule.name](outcome)


def _check_between(outcome: Outcome, lower, upper) -> None:
  assert (lower - outcome.atol <= outcome.result).all()
  assert (outcome.result <= upper + outcome.atol).all()


def _check_middle(outcome: Outcome, start: int, stop: int) -> None:
  """With h values replaced, c_(i - h) <= v_(i) <= c_(i) of the honest ones."""
  lower, upper = np.empty((2, *outcome.result.shape))
  for k in range(len(lower)):
    c = np.sort(outcome.v[outcome.honest[:, k], k])
    h = len(outcome.v) - len(c)
    lower[k] = c[start - h : stop - h].mean()
    upper[k] = c[start:stop].mean()
  _check_between(outcome, lower, upper)


def _check_median(outcome: Outcome) -> None:
  n = len(outcome.v)
  _check_middle(outcome, (n - 1) // 2, n // 2 + 1)


def _check_trimmed_mean(outcome: Outcome) -> None:
  _check_middle(outcome, outcome.q, len(outcome.v) - outcome.q)


def _check_around(outcome: Outcome, center, rows=slice(None)) -> None:
  """|R - center| <= max over honest c of |c - center|, per coordinate."""
  distance = np.abs(outcome.v[rows] - center)
  radius = np.where(outcome.honest[rows], distance, 0).max(axis=0)
  _check_between(outcome, center - radius, center + radius)


def _check_phocas(outcome: Outcome) -> None:
  _check_around(outcome, oracles.trimmed_mean(outcome.v, outcome.q))


def _check_meamed(outcome: Outcome) -> None:
  _check_around(outcome, oracles.median(outcome.v))


def _check_geometric_median(outcome: Outcome) -> None:
  """||R - z|| <= 2 sum_honest ||v_i - z|| / (n - 2q), for any point z."""
  rows = outcome.v[outcome.honest.all(axis=1)]
  n = len(outcome.v)
  for z in (rows.mean(axis=0), rows[0]):
    radius = 2 * np.linalg.norm(rows - z, axis=1).sum()
    radius /= n - 2 * (n - len(rows))
    assert np.linalg.norm(outcome.result - z) <= radius + outcome.atol


def _check_krum(outcome: Outcome) -> None:
  """One of the rows, and none scores better."""
  scores = oracles.krum_scores(outcome.v, len(outcome.v) - outcome.q - 2)
  same = (outcome.v == outcome.result).all(axis=1)
  assert same.any()
  best = scores.min()
  assert scores[same].min() <= best + outcome.atol * (1 + best)


def _check_multi_krum(outcome: Outcome) -> None:
  expected = oracles.multi_krum(outcome.v, outcome.q)
  _check_between(outcome, expected, expected)


def _check_bulyan(outcome: Outcome) -> None:
  """As near to the selected rows' median as the honest ones of them are."""
  assert outcome.selected.sum() == len(outcome.v) - 2 * outcome.q
  center = oracles.median(outcome.v[outcome.selected])
  _check_around(outcome, center, outcome.selected)


def _check_zeno(outcome: Outcome) -> None:
  """The selected scores dominate those of the best honest rows."""
  num_selected = len(outcome.v) - outcome.q
  assert outcome.selected.sum() == num_selected
  scores = oracles.zeno_scores(
    outcome.v,
    contracts.numpy_quadratic_loss,
    contracts.LEARNING_RATE,
    contracts.RHO,
  )
  best = np.sort(scores[outcome.selected])
  honest = np.sort(scores[outcome.honest.all(axis=1)])[-num_selected:]
  assert (best >= honest - outcome.atol).all()
  expected = outcome.v[outcome.selected].mean(axis=0)
  _check_between(outcome, expected, expected)


CHECKS = {
  "median": _check_median,
  "trimmed_mean": _check_trimmed_mean,
  "phocas": _check_phocas,
  "meamed": _check_meamed,
  "geometric_median": _check_geometric_median,
  "krum": _check_krum,
  "multi_krum": _check_multi_krum,
  "bulyan": _check_bulyan,
  "zeno": _check_zeno,
}
