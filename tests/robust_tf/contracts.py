"""The tables of rules and of attacks, and how batteries run them.

Every rule of `robust_tf.aggregators.AGGREGATORS` is in `RULES` and every
attack of `robust_tf.attacks.ATTACKS` in `ATTACKS`; a test fails when one is
missing. What the tables say (how many workers a rule needs, what it tolerates,
which equations it keeps) is from the papers, never from the code.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from robust_tf import aggregators
from robust_tf import attacks
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf

# What rounding a value, and little more, may change in it.
TOLERANCE = {
  "float64": 1e-12,
  "float32": 1e-5,
  "float16": 4e-3,
  "bfloat16": 3e-2,
}

LEARNING_RATE = 0.1
RHO = 0.01


def quadratic_loss(step) -> tf.Tensor:
  """Returns f(x - step) for f(x) = ||x - x*||^2 / 2, where x - x* is all 1."""
  total = 0.0
  for part in step if isinstance(step, list | tuple) else [step]:
    dtype = tf.float64 if part.dtype == tf.float64 else tf.float32
    total += tf.reduce_sum(tf.square(1 - tf.cast(part, dtype))) / 2
  return total


def numpy_quadratic_loss(step: np.ndarray) -> float:
  """Returns what `quadratic_loss` does, in NumPy."""
  return 0.5 * np.square(1 - step).sum()


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule, and what the papers say of it.

  Attributes:
    name: its name in `robust_tf.aggregators`.
    oracle: its definition in NumPy.
    count: the argument that says how many workers to withstand; None for rules
      that have no such argument.
    workers: (a, b) where the rule needs n >= a q + b workers to withstand q
      arbitrary ones.
    whole_vector: whether a worker is judged by its whole update; the others
      are coordinate-wise, and q may be other workers in every coordinate.
    permutation: whether the order of the workers cannot matter.
    affine: whether R(c V + z) = c R(V) + z for c > 0.
    negation: whether R(-V) = -R(V).
    rotation: whether R(V Q) = R(V) Q for orthogonal Q.
    options: more arguments of the rule.
    oracle_options: more arguments of the oracle.
  """

  name: str
  oracle: Callable[..., np.ndarray]
  count: str | None = None
  workers: tuple[int, int] | None = (2, 1)
  whole_vector: bool = False
  permutation: bool = True
  affine: bool = True
  negation: bool = True
  rotation: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  oracle_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    return self.name

  def max_byzantine(self, n: int) -> int:
    """Returns how many of n workers the rule can withstand; -1 for none."""
    if self.workers is None:
      return 0
    a, b = self.workers
    return max((n - b) // a, -1)

  def bind(self, num_byzantine: int) -> Callable:
    """Returns the rule, as a function of the updates alone."""
    function = getattr(aggregators, self.name)
    counts = {} if self.count is None else {self.count: num_byzantine}
    return functools.partial(function, **counts, **self.options)

  def bind_oracle(self, num_byzantine: int) -> Callable:
    """Returns the rule's definition, as a function of V alone."""
    counts = {} if self.count is None else {self.count: num_byzantine}
    return functools.partial(self.oracle, **counts, **self.oracle_options)


RULES = (
  Rule("mean", oracles.mean, workers=None, rotation=True),
  Rule("median", oracles.median),
  Rule("trimmed_mean", oracles.trimmed_mean, count="trim"),
  Rule("phocas", oracles.phocas, count="trim"),
  Rule("meamed", oracles.meamed, count="num_byzantine"),
  Rule(
    "geometric_median",
    oracles.geometric_median,
    whole_vector=True,
    rotation=True,
  ),
  Rule(
    "krum",
    oracles.krum,
    count="num_byzantine",
    workers=(2, 3),
    whole_vector=True,
    rotation=True,
  ),
  Rule(
    "multi_krum",
    oracles.multi_krum,
    count="num_byzantine",
    workers=(2, 3),
    whole_vector=True,
    rotation=True,
  ),
  Rule(
    "bulyan",
    oracles.bulyan,
    count="num_byzantine",
    workers=(4, 3),
    whole_vector=True,
    permutation=False,  # the last rounds of its selection hold exact ties
  ),
  Rule(
    "zeno",
    oracles.zeno,
    count="num_suspected",
    workers=(1, 1),
    whole_vector=True,
    affine=False,  # its score weighs a loss against a squared length
    negation=False,
    options={
      "loss": quadratic_loss,
      "learning_rate": LEARNING_RATE,
      "rho": RHO,
    },
    oracle_options={
      "loss": numpy_quadratic_loss,
      "learning_rate": LEARNING_RATE,
      "rho": RHO,
    },
  ),
)

ROBUST = tuple(rule for rule in RULES if rule.workers is not None)
DIMENSIONAL = tuple(rule for rule in ROBUST if not rule.whole_vector)


# Every attack as published, as a function of (updates, byzantine, seed). The
# probability of the gambler is raised, or it would hit none of few values.
ATTACKS = {
  "a_little_is_enough": attacks.a_little_is_enough,
  "bit_flip": attacks.bit_flip,
  "gambler": functools.partial(
    attacks.gambler, probability=0.15, num_servers=2
  ),
  "gaussian": attacks.gaussian,
  "inner_product": functools.partial(attacks.inner_product, epsilon=0.5),
  "mimic": attacks.mimic,
  "non_finite": attacks.non_finite,
  "omniscient": attacks.omniscient,
  "sign_flip": functools.partial(attacks.sign_flip, scale=10.0, copies=True),
  "worst_case": functools.partial(
    attacks.worst_case, aggregator=aggregators.median
  ),
}


def by_name(name: str) -> Rule:
  """Returns the rule of that name."""
  (rule,) = (rule for rule in RULES if rule.name == name)
  return rule


def gradients(seed: int, n: int, d: int) -> np.ndarray:
  """Returns n honest updates [n, d]: a common direction, and noise."""
  rng = np.random.default_rng([seed, n, d])
  return 0.5 + rng.normal(size=(n, d))


def assert_close(result, expected: np.ndarray, rtol: float = 1e-5) -> None:
  """Asserts that a result is near to what is expected, as a vector is.

  Args:
    result: a tensor or ndarray of any floating dtype.
    expected: of the same shape.
    rtol: the tolerance, relative to the greatest value expected.
  """
  np.testing.assert_allclose(
    tf.cast(result, tf.float64).numpy(),
    expected,
    rtol=rtol,
    atol=rtol * np.abs(expected).max(),
  )
