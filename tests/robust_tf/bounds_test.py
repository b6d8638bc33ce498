"""The papers' bounds in expectation, and where tolerance ends."""

import numpy as np
import pytest

from tests.robust_tf import contracts
from tests.robust_tf.contracts import by_name
from tests.robust_tf.contracts import DIMENSIONAL
from tests.robust_tf.contracts import ROBUST
from tests.tensorflow_setup import tf

N, D, DRAWS = 20, 50, 40  # noise of deviation 1 in D coordinates: V = D

ATTACKS = {
  "gaussian": lambda rng, c: 200 * rng.normal(size=(N - len(c), c.shape[1])),
  "omniscient": lambda rng, c: -1e20 * c.sum(axis=0),
  "inner_product": lambda rng, c: -0.5 * c.mean(axis=0),
  "hidden": lambda rng, c: c.mean(axis=0) - 1.5 * c.std(axis=0),
  "extreme": lambda rng, c: c.min(axis=0),
}


def attacked(attack, q, g):
  """Returns DRAWS draws of updates around g, side by side: [N, DRAWS * D].

  Coordinate-wise rules cannot tell them from one draw of many coordinates.
  """
  rng = np.random.default_rng(q)
  v = g + rng.normal(size=(N, DRAWS * D))
  byzantine = rng.permutation(N)[:q]
  v[byzantine] = ATTACKS[attack](rng, np.delete(v, byzantine, axis=0))
  return tf.constant(v, tf.float32)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("q, b", [(1, 1), (1, 8), (4, 4), (4, 8), (8, 8)])
def test_trimmed_mean_and_phocas_keep_their_bounds_in_expectation(attack, q, b):
  # Xie et al., Phocas, 2018: E ||R - g||^2 is at most the factor times V.
  updates = attacked(attack, q, g=0.5)
  factor = (b + 1) * (N - q) / (N - b - q) ** 2
  for name, bound in (
    ("trimmed_mean", 2 * factor),
    ("phocas", 4 + 12 * factor),
  ):
    result = by_name(name).bind(b)(updates).numpy().reshape(DRAWS, D)
    error = np.square(result - 0.5).sum(axis=1)
    margin = 3 * error.std() / np.sqrt(DRAWS)
    assert error.mean() + margin <= bound * D, name


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("q", [1, 4, 8])
def test_krum_keeps_to_the_gradients_direction_in_expectation(attack, q):
  # Blanchard et al., NeurIPS 2017: <E Krum, g> >= (1 - sin a) ||g||^2, where
  # sin a = eta sqrt(d) sigma / ||g||: here 1/2.
  eta_squared = 2 * (
    N - q + (q * (N - q - 2) + q**2 * (N - q - 1)) / (N - 2 * q - 2)
  )
  g = 2 * np.sqrt(eta_squared)
  draws = tf.split(attacked(attack, q, g), DRAWS, axis=1)
  krum = by_name("krum").bind(q)
  inner = np.array([g * krum(updates).numpy().sum() for updates in draws])
  margin = 3 * inner.std() / np.sqrt(DRAWS)
  assert inner.mean() - margin >= D * g**2 / 2


@pytest.mark.parametrize(
  "rule", [rule for rule in ROBUST if rule.name != "zeno"], ids=str
)
def test_majority_of_liars_moves_the_result_anywhere(rule):
  # All but Zeno, whose server has a loss to tell the liars by.
  n = 11
  v = contracts.gradients(0, n, d=6)
  v[: n // 2 + 1] = 1e6
  assert np.abs(rule.bind(rule.max_byzantine(n))(v)).max() > 1e5


@pytest.mark.parametrize(
  "name", ["mean", "krum", "multi_krum", "geometric_median", "zeno"]
)
def test_whole_vectors_withstand_no_liar_in_every_coordinate(name):
  # Xie et al., Generalized Byzantine-tolerant SGD, 2018: one value is wrong in
  # each coordinate, and every worker is hit.
  n = 11
  v = contracts.gradients(0, n, d=n)
  v[np.arange(n), np.arange(n)] = 1e12
  assert np.abs(by_name(name).bind(2 if name != "mean" else 0)(v)).max() > 1e9
  for rule in DIMENSIONAL:
    assert np.abs(rule.bind(2)(v)).max() < 10, rule
