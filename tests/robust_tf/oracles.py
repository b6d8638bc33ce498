"""Every rule, transcribed from its definition into float64 NumPy.

Slow, short, and written from the papers, never from `robust_tf`: each function
can be checked by eye against the definition that its docstring names. `v` is
the paper's V, shape [n, d]; `v[i]` is what worker i sent. Values are expected
to be finite, but for the three functions that say otherwise.
"""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np


def mean(v: np.ndarray) -> np.ndarray:
  """Returns the arithmetic mean."""
  return v.mean(axis=0)


def median(v: np.ndarray) -> np.ndarray:
  """Returns MarMed: the middle value, or the mean of the two middle ones.

  Xie et al., Generalized Byzantine-tolerant SGD, 2018. A NaN counts as +inf.
  """
  v = np.sort(np.where(np.isnan(v), np.inf, v), axis=0)
  n = len(v)
  return (v[(n - 1) // 2] + v[n // 2]) / 2


def trimmed_mean(v: np.ndarray, trim: int) -> np.ndarray:
  """Returns (1 / (n - 2b)) sum_{i=b+1}^{n-b} v_(i), per coordinate.

  Xie et al., Phocas, 2018, Definition of Trmean. A NaN counts as +inf.
  """
  v = np.sort(np.where(np.isnan(v), np.inf, v), axis=0)
  return v[trim : len(v) - trim].mean(axis=0)


def mean_around(v: np.ndarray, center: np.ndarray, count: int) -> np.ndarray:
  """Returns the mean of the `count` values nearest to the center.

  Values that are equally far from the center and do not all fit share the
  places that are left, so that the order of the rows cannot matter.
  """
  result = np.empty(v.shape[1])
  for k in range(v.shape[1]):
    distance = np.abs(v[:, k] - center[k])
    furthest = np.sort(distance)[count - 1]
    nearer = v[distance < furthest, k]
    tied = v[distance == furthest, k]
    result[k] = (nearer.sum() + (count - len(nearer)) * tied.mean()) / count
  return result


def phocas(v: np.ndarray, trim: int) -> np.ndarray:
  """Returns the mean of the n - b values nearest to Trmean_b.

  Xie et al., Phocas, 2018.
  """
  return mean_around(v, trimmed_mean(v, trim), len(v) - trim)


def meamed(v: np.ndarray, num_byzantine: int) -> np.ndarray:
  """Returns the mean of the n - q values nearest to the median.

  Xie et al., Generalized Byzantine-tolerant SGD, 2018.
  """
  return mean_around(v, median(v), len(v) - num_byzantine)


def geometric_median(v: np.ndarray) -> np.ndarray:
  """Returns argmin_z sum_i ||z - v_i||, with an optimality check.

  A row is the answer when the pull of the others on it is no stronger than
  the number of rows that lie on it; otherwise Weiszfeld's iteration runs until
  the pulls on z cancel, as far as rounding allows.
  """
  for i in range(len(v)):
    if np.linalg.norm(pull(v, v[i])) <= np.sum((v == v[i]).all(axis=1)):
      return v[i]
  z = v.mean(axis=0)
  last = np.inf
  for _ in range(200_000):
    distance = np.linalg.norm(z - v, axis=1)
    length = np.linalg.norm(pull(v, z))
    if length < 1e-9 * len(v) and length >= last:
      return z
    last = length
    z = (v / distance[:, None]).sum(axis=0) / (1 / distance).sum()
  raise ArithmeticError("Weiszfeld's iteration has not converged")


def pull(v: np.ndarray, z: np.ndarray) -> np.ndarray:
  """Returns sum_i (v_i - z) / ||v_i - z|| over the rows that are not z."""
  difference = v - z
  distance = np.linalg.norm(difference, axis=1)
  apart = distance > 0
  return (difference[apart] / distance[apart, None]).sum(axis=0)


def krum_scores(v: np.ndarray, num_neighbors: int) -> np.ndarray:
  """Returns per row the sum of its smallest squared distances to others.

  Rows may hold NaN and infinities: such a row is infinitely far from all.
  """
  scores = np.empty(len(v))
  for i in range(len(v)):
    others = [j for j in range(len(v)) if j != i]
    with np.errstate(invalid="ignore", over="ignore"):
      distance = np.square(v[others] - v[i]).sum(axis=1)
    distance[np.isnan(distance)] = np.inf
    scores[i] = np.sort(distance)[:num_neighbors].sum()
  return scores


def krum(v: np.ndarray, num_byzantine: int) -> np.ndarray:
  """Returns the row whose n - q - 2 nearest others are nearest.

  Blanchard et al., NeurIPS 2017. Of equal scores the first row wins.
  """
  return v[np.argmin(krum_scores(v, len(v) - num_byzantine - 2))]


def multi_krum(
  v: np.ndarray, num_byzantine: int, num_selected: int | None = None
) -> np.ndarray:
  """Returns the mean of the m rows with the smallest scores.

  Blanchard et al., NeurIPS 2017; m = n - q - 2 unless given.
  """
  num_neighbors = len(v) - num_byzantine - 2
  m = num_neighbors if num_selected is None else num_selected
  scores = krum_scores(v, num_neighbors)
  return v[np.argsort(scores, kind="stable")[:m]].mean(axis=0)


def bulyan_selection(v: np.ndarray, num_byzantine: int) -> list[int]:
  """Returns the theta = n - 2q rows that repeated Krum takes, in order.

  El Mhamdi et al., ICML 2018. Each winner leaves before the next round. The
  last rounds of a small q have fewer than q + 3 rows left: one neighbor is the
  least that a score is made of.
  """
  left = list(range(len(v)))
  selected = []
  for _ in range(len(v) - 2 * num_byzantine):
    num_neighbors = max(len(left) - num_byzantine - 2, 1)
    winner = left[np.argmin(krum_scores(v[left], num_neighbors))]
    selected.append(winner)
    left.remove(winner)
  return selected


def bulyan(v: np.ndarray, num_byzantine: int) -> np.ndarray:
  """Returns the mean of the beta = theta - 2q selected nearest their median.

  El Mhamdi et al., ICML 2018; the second step is per coordinate.
  """
  selected = v[bulyan_selection(v, num_byzantine)]
  beta = len(selected) - 2 * num_byzantine
  return mean_around(selected, median(selected), beta)


def zeno_scores(
  v: np.ndarray,
  loss: Callable[[np.ndarray], float],
  learning_rate: float,
  rho: float,
) -> np.ndarray:
  """Returns f_r(x) - f_r(x - gamma u) - rho ||u||^2 for every row u.

  Xie et al., ICML 2019, Definition of the stochastic descendant score;
  `loss(step)` is f_r(x - step). A score that is not finite is -inf.
  """
  before = loss(np.zeros(v.shape[1]))
  with np.errstate(invalid="ignore", over="ignore"):
    scores = np.array(
      [before - loss(learning_rate * u) - rho * np.square(u).sum() for u in v]
    )
  return np.where(np.isfinite(scores), scores, -np.inf)


def zeno(
  v: np.ndarray,
  loss: Callable[[np.ndarray], float],
  learning_rate: float,
  num_suspected: int,
  rho: float,
) -> np.ndarray:
  """Returns the mean of the n - b rows with the highest scores.

  Xie et al., ICML 2019. Of equal scores the first row wins.
  """
  scores = zeno_scores(v, loss, learning_rate, rho)
  best = np.argsort(-scores, kind="stable")[: len(v) - num_suspected]
  return v[best].mean(axis=0)


def zeno_plus_plus(
  g: np.ndarray,
  validation_gradient: np.ndarray,
  learning_rate: float,
  rho: float,
  epsilon: float,
) -> tuple[bool, np.ndarray]:
  """Returns if gamma <v, g~> - rho ||g~||^2 >= -gamma eps, and g~.

  Xie et al., ICML 2020; g~ is g scaled to the validation gradient's length.
  """
  v = validation_gradient
  scaled = g * np.linalg.norm(v) / np.linalg.norm(g)
  score = learning_rate * (v @ scaled) - rho * (scaled @ scaled)
  return bool(score >= -learning_rate * epsilon), scaled


def inner_product(
  v: np.ndarray, byzantine: Sequence[int], epsilon: float
) -> np.ndarray:
  """Returns the updates under inner product manipulation.

  Xie et al., UAI 2019: every Byzantine row becomes -eps times the mean of the
  honest ones.
  """
  attacked = v.copy()
  attacked[list(byzantine)] = -epsilon * np.delete(v, byzantine, axis=0).mean(
    axis=0
  )
  return attacked
