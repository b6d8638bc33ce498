"""Where inner product manipulation breaks a rule, and where it does not.

Xie et al., Fall of Empires, UAI 2019: n = 25 workers, q = 11 Byzantine ones,
d = 200, honest updates g + N(0, I) with g = r in every coordinate. A rule is
broken when its result points away from g. The signs, and where they switch,
were computed from the definitions beforehand; cosines of less than 0.2 are too
near to a switch to be asked for.
"""

import functools

import numpy as np
import pytest

from robust_tf import aggregators
from robust_tf import attacks
from tests.robust_tf import oracles
from tests.robust_tf.contracts import by_name
from tests.tensorflow_setup import tf

N, Q, D, DRAWS = 25, 11, 200, 60
BYZANTINE = tuple(range(3, 25, 2))  # never the first q rows
EPSILONS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)

# The signs of the cosine for each of EPSILONS; "?" is near to a switch.
#   .05 .1 .2 .5 1 2 5 10 100
SIGNS = {
  ("mean", 0.5): "+++++----",
  ("mean", 1.0): "+++++----",
  ("mean", 2.0): "+++++----",
  ("median", 0.5): "---------",
  ("median", 1.0): "+??------",
  ("median", 2.0): "+++++++++",
  ("trimmed_mean", 0.5): "---------",
  ("trimmed_mean", 2.0): "+++++++++",
  ("phocas", 0.5): "-------++",
  ("phocas", 2.0): "+++++++++",
  ("meamed", 0.5): "-------++",
  ("meamed", 2.0): "+++++++++",
  ("krum", 0.5): "------+++",
  ("krum", 1.0): "------+++",
  ("krum", 2.0): "----+++++",
  ("multi_krum", 0.5): "??-----++",
  ("multi_krum", 2.0): "+?--+++++",
  ("geometric_median", 0.5): "---------",
}


def honest_updates(r):
  rng = np.random.default_rng(0)
  return (r + rng.normal(size=(DRAWS, N, D))).astype(np.float32)


@functools.cache
def mean_cosines(rule, r):
  """Returns the mean over the draws of cos(result, g) for each epsilon."""
  aggregate = by_name(rule).bind(Q)

  @tf.function
  def results(updates, epsilon):
    def one_draw(v):
      attacked = attacks.inner_product(v, BYZANTINE, (0, 0), epsilon)
      return aggregate(attacked)

    return tf.map_fn(one_draw, updates)

  updates = tf.constant(honest_updates(r))
  cosines = []
  for epsilon in EPSILONS:
    result = results(updates, tf.constant(epsilon)).numpy()
    inner = result.sum(axis=1) / np.sqrt(D)
    cosines.append(np.mean(inner / np.linalg.norm(result, axis=1)))
  return cosines


@pytest.mark.parametrize("rule, r", SIGNS)
def test_rule_breaks_where_the_paper_says(rule, r):
  for epsilon, cosine, sign in zip(
    EPSILONS, mean_cosines(rule, r), SIGNS[rule, r], strict=True
  ):
    if sign != "?":
      assert cosine * (1 if sign == "+" else -1) > 0.1, (epsilon, cosine)


@pytest.mark.parametrize("r", [1.0, 2.0])
def test_krum_switches_where_the_liars_score_is_an_honest_ones(r):
  # For n = 2q + 3 Krum takes a liar while (1 + eps)^2 r^2 < q, about.
  switch = np.sqrt(Q) / r - 1
  cosines = np.array(mean_cosines("krum", r))
  epsilons = np.array(EPSILONS)
  assert (cosines[epsilons < 0.9 * switch] < 0).all()
  assert (cosines[epsilons > 1.1 * switch] > 0).all()


def test_mean_switches_at_the_ratio_of_honest_to_byzantine():
  v = honest_updates(2.0)[0]
  switch = (N - Q) / Q
  for epsilon, sign in ((0.95 * switch, 1), (1.05 * switch, -1)):
    attacked = attacks.inner_product(v, BYZANTINE, (0, 0), epsilon)
    assert sign * aggregators.mean(attacked).numpy().sum() > 0


@pytest.mark.parametrize("epsilon", [0.1, 10.0])
def test_attack_equals_its_definition(epsilon):
  v = honest_updates(1.0)[0]
  np.testing.assert_allclose(
    attacks.inner_product(v, BYZANTINE, (0, 0), epsilon),
    oracles.inner_product(v.astype(np.float64), BYZANTINE, epsilon),
    rtol=1e-5,
    atol=1e-6 * epsilon,
  )
