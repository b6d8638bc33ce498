"""Whatever bits Byzantine workers send, the result is finite and bounded."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from robust_tf import aggregators
from tests.robust_tf import bounds
from tests.robust_tf import contracts
from tests.robust_tf.contracts import DIMENSIONAL
from tests.robust_tf.contracts import ROBUST
from tests.robust_tf.contracts import TOLERANCE
from tests.tensorflow_setup import tf

N, D = 11, 6
HONEST = contracts.gradients(0, N, D)

# Bits by name. What a dtype cannot hold becomes an infinity or a zero of it.
BITS = {
  "nan": np.nan,
  "inf": np.inf,
  "-inf": -np.inf,
  "1e38": 1e38,
  "-1e38": -1e38,
  "-1e20": -1e20,
  "-1e12": -1e12,
  "1e8": 1e8,
  "1e4": 1e4,
  "-1e4": -1e4,
  "1e-30": 1e-30,
  "0": 0.0,
  "-0": -0.0,
}
MAX = {
  "float16": 65504.0,
  "bfloat16": 2.0**128 - 2.0**120,
  "float32": 2.0**128 - 2.0**104,
  "float64": 2.0**1023 * (2 - 2.0**-52),
}
SMALLEST = {  # denormals
  "float16": 2.0**-24,
  "bfloat16": 2.0**-133,
  "float32": 2.0**-149,
  "float64": 2.0**-1074,
}
NAMES = (*BITS, "max", "-max", "denormal", "-denormal")

few_examples = hypothesis.settings(
  max_examples=30, deadline=None, derandomize=True, database=None
)


def bits(name: str, dtype: str) -> float:
  own = {
    "max": MAX[dtype],
    "-max": -MAX[dtype],
    "denormal": SMALLEST[dtype],
    "-denormal": -SMALLEST[dtype],
  }
  return own[name] if name in own else BITS[name]


def as_updates(v, dtype: str) -> tf.Tensor:
  with np.errstate(over="ignore", under="ignore"):
    return tf.constant(v.astype(tf.as_dtype(dtype).as_numpy_dtype))


@st.composite
def rows(draw, num_rows):
  """Draws what some workers send instead: bits, copies of others, mixtures."""
  sent = {}
  for row in draw(st.permutations(range(N)))[:num_rows]:
    kind = draw(st.sampled_from(["copy", "same", "mixed", "one"]))
    if kind == "copy":
      sent[row] = [f"of {draw(st.integers(0, N - 1))}"] * D
    elif kind == "same":
      sent[row] = [draw(st.sampled_from(NAMES))] * D
    elif kind == "mixed":
      sent[row] = draw(st.lists(st.sampled_from(NAMES), min_size=D, max_size=D))
    else:
      k = draw(st.integers(0, D - 1))
      sent[row] = ["own"] * D
      sent[row][k] = draw(st.sampled_from(NAMES))
  return sent


def with_rows(sent, dtype):
  """Returns the updates where some workers send what `rows` drew."""
  v = HONEST.copy()
  honest = np.ones((N, D), bool)
  for row, names in sent.items():
    honest[row] = False
    for k, name in enumerate(names):
      if name.startswith("of "):
        v[row, k] = HONEST[int(name.removeprefix("of ")), k]
      elif name != "own":
        v[row, k] = bits(name, dtype)
  return as_updates(v, dtype), honest


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_any_bits_in_tolerated_rows_leave_the_result_bounded(rule, dtype):
  q = rule.max_byzantine(N)

  @few_examples
  @hypothesis.given(rows(q))
  def run(sent):
    updates, honest = with_rows(sent, dtype)
    bounds.check(rule, updates, honest, q)

  run()


@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_rows_that_are_all_alike_leave_the_result_bounded(rule):
  q = rule.max_byzantine(N)
  for name in NAMES:
    for liars in (range(q), range(N - q, N)):
      updates, honest = with_rows({i: [name] * D for i in liars}, "float32")
      bounds.check(rule, updates, honest, q)


@pytest.mark.parametrize("value", [1e3, -1e5, 1e8, -1e20, np.inf, np.nan])
@pytest.mark.parametrize(
  "rule", [rule for rule in ROBUST if rule.whole_vector], ids=str
)
def test_one_value_somewhere_in_a_long_update_is_seen(rule, value):
  # A distance from a sample of the coordinates, or from a row that only looks
  # like the others, would miss it or drown in it.
  d = 3001
  q = rule.max_byzantine(N)
  v = contracts.gradients(1, N, d)
  honest = np.ones((N, d), bool)
  for liar, k in zip(range(q), (0, 1, 776, 1499, 2999), strict=False):
    v[liar] = v[N - 1] + 1e-3  # otherwise nearer to it than anybody
    v[liar, k] = value
    honest[liar] = False
  bounds.check(rule, as_updates(v, "float32"), honest, q)


@st.composite
def values(draw, num_values):
  """Draws what is sent in each coordinate, by other workers in each."""
  name = st.sampled_from(NAMES)
  return [
    [(row, draw(name)) for row in draw(st.permutations(range(N)))[:num_values]]
    for _ in range(D)
  ]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rule", DIMENSIONAL, ids=str)
def test_any_bits_in_tolerated_values_leave_the_result_bounded(rule, dtype):
  q = rule.max_byzantine(N)

  @few_examples
  @hypothesis.given(values(q))
  def run(sent):
    v = HONEST.copy()
    honest = np.ones((N, D), bool)
    for k, replaced in enumerate(sent):
      for row, name in replaced:
        v[row, k] = bits(name, dtype)
        honest[row, k] = False
    bounds.check(rule, as_updates(v, dtype), honest, q)

  run()


@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_trimming_more_than_there_are_liars_keeps_the_bounds(rule):
  # Told to withstand q, and fewer are there.
  q = rule.max_byzantine(N)
  for num_liars in range(q):
    sent = {2 * i % N: ["nan", "1e38", "0"] * 2 for i in range(num_liars)}
    bounds.check(rule, *with_rows(sent, "float32"), q)


@pytest.mark.parametrize("attack", contracts.ATTACKS)
@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_every_attack_leaves_the_result_bounded(rule, attack):
  # Five are what a_little_is_enough can hide among eleven.
  q = min(rule.max_byzantine(N), 5)
  liars = (0, 3, 4, 7, 10)[:q]
  v = as_updates(HONEST, "float32")
  updates = contracts.ATTACKS[attack](v, liars, (1, 2))
  honest = np.ones((N, D), bool)
  honest[list(liars)] = False
  bounds.check(rule, updates, honest, q)


@pytest.mark.parametrize("attack", ["bit_flip", "gambler"])
@pytest.mark.parametrize("rule", DIMENSIONAL, ids=str)
def test_dimensional_attack_leaves_the_result_bounded(rule, attack):
  q = rule.max_byzantine(N)
  v = as_updates(HONEST, "float32")
  updates = contracts.ATTACKS[attack](v, range(N), (1, 2))
  honest = (updates == v).numpy()
  assert 1 <= (~honest).sum(axis=0).max() <= q
  assert (~honest).any(axis=1).sum() > 2  # other workers in other coordinates
  bounds.check(rule, updates, honest, q)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", DIMENSIONAL, ids=str)
def test_more_broken_values_than_tolerated_leave_the_median_of_the_rest(
  rule, value
):
  v = HONEST.copy()
  v[3:9, 2] = value  # six, one more than any rule for eleven is told of
  result = rule.bind(rule.max_byzantine(N))(v)
  np.testing.assert_allclose(
    result[2], np.median(np.delete(v[:, 2], range(3, 9)))
  )
  others = [0, 1, 3, 4, 5]
  expected = rule.bind(rule.max_byzantine(N))(HONEST)
  np.testing.assert_allclose(result[others], expected[others])


def test_mean_hides_no_broken_value():
  v = HONEST.copy()
  v[3, 2] = np.nan
  np.testing.assert_array_equal(
    np.isnan(aggregators.mean(v)), np.arange(D) == 2
  )


@pytest.mark.parametrize(
  "rule", [rule for rule in contracts.RULES if rule.name != "zeno"], ids=str
)
def test_honest_values_near_the_largest_overflow_nowhere(rule):
  rng = np.random.default_rng(0)
  v = (rng.uniform(0.5, 1, size=(N, D)) * MAX["float32"]).astype(np.float32)
  v[:, ::2] *= -1
  q = rule.max_byzantine(N) // 2
  contracts.assert_close(rule.bind(q)(v), rule.bind_oracle(q)(v.astype(float)))
