"""Every rule against its definition, for many numbers of workers and dtypes."""

import numpy as np
import pytest

from robust_tf import aggregators
from robust_tf import attacks
from tests.robust_tf import contracts
from tests.robust_tf import oracles
from tests.robust_tf.contracts import assert_close
from tests.robust_tf.contracts import RULES
from tests.robust_tf.contracts import TOLERANCE
from tests.tensorflow_setup import tf
from tests.tiers import tiers

each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def cast(v, dtype):
  """Returns v as a tensor, and the float64 values that it then has."""
  tensor = tf.cast(tf.constant(v), dtype)
  return tensor, tf.cast(tensor, tf.float64).numpy()


def test_table_of_rules_is_the_packages():
  assert aggregators.AGGREGATORS == {
    rule.name: getattr(aggregators, rule.name) for rule in RULES
  }


def test_table_of_attacks_is_the_packages():
  functions = {
    name: getattr(attack, "func", attack)
    for name, attack in contracts.ATTACKS.items()
  }
  assert functions == attacks.ATTACKS


@pytest.mark.parametrize("n", tiers([1, 3, 8, 11], [1, 11]))
@each_rule
def test_rule_equals_its_definition(rule, n):
  most = rule.max_byzantine(n)
  if most < 0:
    pytest.skip("too few workers for the rule")
  for q in {0, most}:
    # Twelve: fewer do not tell Krum from Krum of other powers or neighbors.
    for seed in range(12):
      tensor, v = cast(contracts.gradients(seed, n, d=7), tf.float32)
      assert_close(rule.bind(q)(tensor), rule.bind_oracle(q)(v))


@pytest.mark.parametrize("n", [23, pytest.param(103, marks=pytest.mark.slow)])
@each_rule
def test_rule_of_many_workers_equals_its_definition(rule, n):
  q = rule.max_byzantine(n) // 2
  tensor, v = cast(contracts.gradients(0, n, d=5), tf.float32)
  assert_close(rule.bind(q)(tensor), rule.bind_oracle(q)(v))


@pytest.mark.parametrize("dtype", tiers(TOLERANCE, ["bfloat16", "float64"]))
@each_rule
def test_rule_keeps_the_dtype(rule, dtype):
  q = rule.max_byzantine(7) // 2
  tensor, v = cast(contracts.gradients(1, n=7, d=5), dtype)
  result = rule.bind(q)(tensor)
  assert result.dtype == dtype
  assert result.shape == [5]
  assert_close(result, rule.bind_oracle(q)(v), TOLERANCE[dtype])


@each_rule
def test_rule_of_half_precision_computes_in_float32(rule):
  # Sums of these values and squared distances between them overflow float16.
  v = 9000 * contracts.gradients(2, n=7, d=5)
  tensor, v = cast(v, tf.float16)
  expected = rule.bind_oracle(1 if rule.workers else 0)(v)
  result = rule.bind(1 if rule.workers else 0)(tensor)
  assert_close(result, expected, TOLERANCE["float16"])


def test_median_of_many_workers_of_half_precision_computes_in_float32():
  # The sum of the middle two overflows float16.
  v = 40000 + contracts.gradients(2, n=102, d=5)
  tensor, v = cast(v, tf.float16)
  result = aggregators.median(tensor)
  assert_close(result, np.median(v, axis=0), TOLERANCE["float16"])


@pytest.mark.parametrize("far", [1.0, 1e3, 1e8, 1e15])
def test_geometric_median_reaches_its_optimum(far):
  v = contracts.gradients(8, n=11, d=6)
  v[3:8] *= far
  z = aggregators.geometric_median(v)
  # A step of 1e-4 would take this pull away.
  assert np.linalg.norm(oracles.pull(v, z)) < 1e-4
  assert_close(z, oracles.geometric_median(v))


def test_geometric_median_that_is_a_row_is_found():
  # The others pull on row 5 with less than its own weight.
  v = contracts.gradients(9, n=11, d=6)
  v[5] = oracles.geometric_median(v)
  assert_close(aggregators.geometric_median(v), v[5])


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_zeno_penalty_may_be_the_mean_of_squares(rho):
  v = contracts.gradients(10, n=9, d=8)
  result = aggregators.zeno(
    v, contracts.quadratic_loss, 0.1, num_suspected=4, rho=rho, penalty="mean"
  )
  expected = oracles.zeno(
    v, contracts.numpy_quadratic_loss, 0.1, num_suspected=4, rho=rho / 8
  )
  assert_close(result, expected)


@pytest.mark.parametrize("seed", range(20))
def test_zeno_plus_plus_equals_its_definition(seed):
  rng = np.random.default_rng(seed)
  g, v = rng.normal(size=(2, 6))
  g *= 10.0 ** rng.integers(-3, 4)
  arguments = (0.1, rng.choice([0.001, 0.05]), rng.choice([0.0, 1.0]))
  accepted, scaled = aggregators.zeno_plus_plus(g, v, *arguments)
  expected_accepted, expected = oracles.zeno_plus_plus(g, v, *arguments)
  assert bool(accepted) == expected_accepted
  assert_close(scaled, expected)
