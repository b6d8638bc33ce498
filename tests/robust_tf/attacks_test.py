"""Every attack on updates against its definition in NumPy."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from robust_tf import attacks
from tests.tensorflow_setup import tf

N = 9
D = 7
BYZANTINE = (5, 0, 7)
HONEST = [i for i in range(N) if i not in BYZANTINE]
SEED = tf.constant([3, 14], tf.int64)
DTYPES = ("float16", "bfloat16", "float32", "float64")


def rule(updates):
  """A rule for the search: the mean of the rows near the true gradient, 1."""
  near = tf.norm(updates - 1, axis=1, keepdims=True) < 8
  return tf.reduce_mean(tf.where(near, updates, 0), axis=0)


# Each attack as a function of (updates, byzantine, seed).
BOUND = {
  "a_little_is_enough": attacks.a_little_is_enough,
  "bit_flip": functools.partial(attacks.bit_flip, num_coordinates=4),
  "gambler": functools.partial(
    attacks.gambler, probability=0.5, num_servers=2, scale=-100.0
  ),
  "gaussian": attacks.gaussian,
  "inner_product": functools.partial(attacks.inner_product, epsilon=0.5),
  "mimic": attacks.mimic,
  "non_finite": attacks.non_finite,
  "omniscient": functools.partial(attacks.omniscient, scale=100.0),
  "sign_flip": attacks.sign_flip,
  "worst_case": functools.partial(attacks.worst_case, aggregator=rule),
}
RANDOM = ("bit_flip", "gambler", "gaussian")
DIMENSIONAL = ("bit_flip", "gambler")
ABOUT_OWN_GRADIENT = ("sign_flip", "bit_flip", "gambler")

every_attack = pytest.mark.parametrize("name", sorted(BOUND))


def draw(seed=0, n=N, d=D, dtype=np.float32):
  return np.random.default_rng(seed).normal(1.0, 1.0, [n, d]).astype(dtype)


def bits_of(values):
  return np.asarray(values, np.float32).view(np.uint32)


def test_battery_runs_every_attack():
  assert set(BOUND) == set(attacks.ATTACKS)
  assert set(attacks.ATTACKS) < set(attacks.__all__)


@every_attack
def test_attack_leaves_the_honest_rows_alone(name):
  updates = draw()
  attacked = BOUND[name](updates, BYZANTINE, SEED).numpy()
  assert attacked.shape == updates.shape
  np.testing.assert_array_equal(attacked[HONEST], updates[HONEST])
  assert not np.array_equal(attacked, updates)


@every_attack
@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_keeps_the_dtype(name, dtype):
  updates = tf.cast(draw(), dtype)
  attacked = BOUND[name](updates, BYZANTINE, SEED)
  assert attacked.dtype == updates.dtype
  kept = tf.gather(attacked, HONEST) == tf.gather(updates, HONEST)
  assert tf.reduce_all(kept)


@every_attack
@pytest.mark.parametrize("jit_compile", [False, True])
def test_attack_gives_the_same_in_a_function(name, jit_compile):
  updates = draw()
  expected = BOUND[name](updates, BYZANTINE, SEED)
  function = tf.function(
    lambda updates, seed: BOUND[name](updates, BYZANTINE, seed),
    jit_compile=jit_compile,
    input_signature=[
      tf.TensorSpec([N, D if jit_compile else None]),
      tf.TensorSpec([2], tf.int64),
    ],
  )
  # XLA rounds a sum and the normal quantile in another order.
  np.testing.assert_allclose(
    function(updates, SEED), expected, rtol=1e-5, atol=1e-5
  )


@every_attack
def test_attack_depends_on_the_seed_where_it_is_random(name):
  updates = draw(d=40)
  first, again, other = (
    BOUND[name](updates, BYZANTINE, seed).numpy()
    for seed in (SEED, SEED, SEED + 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.array_equal(first, other, equal_nan=True) == (name not in RANDOM)


@pytest.mark.parametrize("name", sorted(set(BOUND) - set(ABOUT_OWN_GRADIENT)))
def test_attack_does_not_use_the_rows_it_replaces(name):
  updates = draw()
  spoiled = updates.copy()
  spoiled[list(BYZANTINE)] = np.nan
  np.testing.assert_array_equal(
    BOUND[name](spoiled, BYZANTINE, SEED), BOUND[name](updates, BYZANTINE, SEED)
  )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 100.0])
def test_inner_product_is_against_the_honest_mean(epsilon):
  updates = draw()
  attacked = attacks.inner_product(updates, BYZANTINE, SEED, epsilon).numpy()
  expected = -epsilon * updates[HONEST].astype(np.float64).mean(axis=0)
  for worker in BYZANTINE:
    np.testing.assert_allclose(attacked[worker], expected, rtol=1e-5)


def test_omniscient_is_against_the_honest_sum():
  updates = draw()
  attacked = attacks.omniscient(updates, BYZANTINE, SEED).numpy()
  expected = -1e20 * updates[HONEST].astype(np.float64).sum(axis=0)
  for worker in BYZANTINE:
    np.testing.assert_allclose(attacked[worker], expected, rtol=1e-5)


@pytest.mark.parametrize("z", [None, 1.5, -0.5])
def test_a_little_is_enough_is_z_deviations_below_the_mean(z):
  updates = draw()
  attacked = attacks.a_little_is_enough(updates, BYZANTINE, SEED, z).numpy()
  honest = updates[HONEST].astype(np.float64)
  if z is None:  # 5 of 9 are a majority: 2 more than the 3, 4 of 6 are nearer
    z = stats.norm.ppf(4 / 6)
  expected = honest.mean(axis=0) - z * honest.std(axis=0)
  for worker in BYZANTINE:
    np.testing.assert_allclose(attacked[worker], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("num_workers", "num_byzantine", "quantile"),
  [(50, 12, 24 / 38), (20, 8, 9 / 12), (25, 11, 12 / 14), (21, 2, 10 / 19)],
)
def test_derived_z_is_the_normal_quantile(num_workers, num_byzantine, quantile):
  updates = draw(n=num_workers, dtype=np.float64)
  byzantine = range(num_byzantine)
  attacked = attacks.a_little_is_enough(updates, byzantine, SEED).numpy()
  honest = updates[num_byzantine:]
  z = (honest.mean(axis=0) - attacked[0]) / honest.std(axis=0)
  np.testing.assert_allclose(z, stats.norm.ppf(quantile), rtol=1e-9)


@pytest.mark.parametrize(
  ("num_workers", "num_byzantine"),
  # A majority attacks; or it needs more honest workers than half, or half.
  [(9, 5), (9, 8), (20, 1), (20, 2), (3, 1)],
)
def test_no_z_follows(num_workers, num_byzantine):
  updates = draw(n=num_workers)
  with pytest.raises(
    ValueError, match=f"from {num_byzantine} .* of {num_workers} .*give z"
  ):
    attacks.a_little_is_enough(updates, range(num_byzantine), SEED)


def test_sign_flip_turns_each_own_gradient():
  updates = draw()
  attacked = attacks.sign_flip(updates, BYZANTINE, SEED, scale=4.0).numpy()
  rows = list(BYZANTINE)
  np.testing.assert_array_equal(attacked[rows], -4 * updates[rows])


def test_sign_flip_copies_send_the_flipped_gradient_of_the_first():
  updates = draw()
  attacked = attacks.sign_flip(updates, BYZANTINE, SEED, copies=True).numpy()
  for worker in BYZANTINE:
    np.testing.assert_array_equal(attacked[worker], -updates[BYZANTINE[0]])


def test_gaussian_has_its_deviation():
  updates = draw(d=20_000)
  attacked = attacks.gaussian(updates, BYZANTINE, SEED, stddev=200.0).numpy()
  noise = attacked[list(BYZANTINE)]
  # 60,000 values: the standard error of the deviation is 0.3 %.
  assert noise.std() == pytest.approx(200, rel=0.02)
  assert abs(noise.mean()) < 5
  _, p_value = stats.kstest(noise.ravel() / 200, "norm")
  assert p_value > 1e-3
  assert abs(np.corrcoef(noise)[0, 1]) < 0.05


def test_gaussian_noise_of_a_worker_does_not_depend_on_the_others():
  updates = draw()
  together = attacks.gaussian(updates, BYZANTINE, SEED).numpy()
  alone = attacks.gaussian(updates, [7], SEED).numpy()
  np.testing.assert_array_equal(together[7], alone[7])


def test_mimic_copies_the_target():
  updates = draw()
  first = attacks.mimic(updates, BYZANTINE, SEED).numpy()
  other = attacks.mimic(updates, BYZANTINE, SEED, target=4).numpy()
  for worker in BYZANTINE:
    np.testing.assert_array_equal(first[worker], updates[1])
    np.testing.assert_array_equal(other[worker], updates[4])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_hold_the_value(value):
  attacked = attacks.non_finite(draw(), BYZANTINE, SEED, value).numpy()
  np.testing.assert_array_equal(
    attacked[list(BYZANTINE)], np.full([3, D], value)
  )


def test_bit_flip_hits_one_value_a_coordinate():
  updates = draw(d=500)
  workers = (1, 2, 6)
  attacked = attacks.bit_flip(
    updates, workers, SEED, num_coordinates=300
  ).numpy()
  changed = bits_of(attacked) ^ bits_of(updates)
  assert set(np.unique(changed)) == {0, 2**21 | 2**29 | 2**30 | 2**31}
  hits = changed != 0
  np.testing.assert_array_equal(hits.sum(axis=0), [1] * 300 + [0] * 200)
  # A binomial of 300 and 1/3: 100 with a deviation of 8.
  counts = hits.sum(axis=1)
  assert counts[list(workers)] == pytest.approx([100] * 3, abs=40)
  assert counts.sum() == counts[list(workers)].sum()


def test_bit_flip_may_hit_any_of_all_workers():
  updates = draw(d=500)
  attacked = attacks.bit_flip(updates, range(N), SEED).numpy()
  hits = bits_of(attacked) != bits_of(updates)
  np.testing.assert_array_equal(hits.sum(axis=0), 1)
  assert (hits.sum(axis=1) > 20).all()


def test_bit_flip_of_another_dtype_flips_the_float32():
  updates = draw(dtype=np.float64)
  attacked = attacks.bit_flip(updates, range(N), SEED, bits=[31]).numpy()
  hits = attacked != updates
  np.testing.assert_array_equal(hits.sum(axis=0), 1)
  flipped = -updates[hits].astype(np.float32)
  np.testing.assert_array_equal(attacked[hits], flipped.astype(np.float64))


def test_gambler_hits_the_share_of_one_server():
  updates = draw(n=20, d=2410)
  attacked = attacks.gambler(updates, range(20), SEED, probability=0.03).numpy()
  hits = attacked != updates
  assert not hits[:, 121:].any()  # ceil(2410 / 20) parameters on a server
  # A binomial of 2,420 and 3 %: 72.6 with a deviation of 8.4.
  assert hits.sum() == pytest.approx(72.6, abs=42)
  np.testing.assert_allclose(attacked[hits], -1e20 * updates[hits], rtol=1e-6)


def test_gambler_hits_the_named_workers_only():
  updates = draw()
  attacked = attacks.gambler(
    updates, BYZANTINE, SEED, probability=1.0, num_servers=1
  ).numpy()
  np.testing.assert_array_equal(attacked[HONEST], updates[HONEST])
  rows = list(BYZANTINE)
  np.testing.assert_allclose(attacked[rows], -1e20 * updates[rows], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(BOUND) - set(DIMENSIONAL)))
def test_attack_without_an_honest_worker_raises(name):
  with pytest.raises(ValueError, match="all 9 workers are Byzantine"):
    BOUND[name](draw(), range(N), SEED)


def distance_to_honest_mean(rule, attacked):
  honest = np.asarray(attacked)[HONEST].mean(axis=0)
  return np.linalg.norm(np.asarray(rule(tf.constant(attacked))) - honest)


@pytest.mark.parametrize("attack", ["inner_product", "a_little_is_enough"])
def test_worst_case_does_at_least_the_damage_of_a_grid(attack):
  updates = draw(n=N)
  attack = attacks.ATTACKS[attack]
  worst = attacks.worst_case(
    updates, BYZANTINE, SEED, rule, attack, num_evaluations=40
  )
  damages = [
    distance_to_honest_mean(rule, attack(updates, BYZANTINE, SEED, x))
    for x in np.geomspace(0.05, 100, 200)
  ]
  # The search's grid is coarser, and it halves its steps around its best.
  assert distance_to_honest_mean(rule, worst) > 0.95 * max(damages)
  assert max(damages) > 2 * damages[-1]  # the strongest is not the worst


def test_worst_case_against_a_rule_that_breaks_is_what_breaks_it():
  def breaks_above_ten(updates):
    far = tf.reduce_max(tf.abs(updates)) > 10
    return tf.where(far, math.nan, tf.reduce_mean(updates, axis=0))

  worst = attacks.worst_case(draw(), BYZANTINE, SEED, breaks_above_ten)
  assert np.abs(worst).max() > 10


def test_worst_case_runs_the_rule_once_an_evaluation():
  calls = tf.Variable(0)

  def counting(updates):
    calls.assign_add(1)
    return tf.reduce_mean(updates, axis=0)

  function = tf.function(
    lambda: attacks.worst_case(
      draw(), BYZANTINE, SEED, counting, num_evaluations=7
    )
  )
  function()
  assert calls.numpy() == 7


@pytest.mark.parametrize(
  ("attack", "options", "message"),
  [
    ("inner_product", {"epsilon": 0}, "epsilon=0 must be above 0"),
    ("inner_product", {"epsilon": math.nan}, "epsilon=nan must be above 0"),
    ("omniscient", {"scale": -1.0}, "scale=-1.0 must be above 0"),
    ("sign_flip", {"scale": 0.0}, "scale=0.0 must be above 0"),
    ("gaussian", {"stddev": 0.0}, "stddev=0.0 must be above 0"),
    ("mimic", {"target": 5}, "target=5 is none of the honest .*1, 2"),
    ("mimic", {"target": 9}, "target=9 is none of the honest"),
    ("non_finite", {"value": 0.0}, "value=0.0 is finite"),
    ("bit_flip", {"bits": [32]}, "bit 32 is none of a float32's 0 to 31"),
    ("bit_flip", {"bits": [-1]}, "bit -1 is none"),
    ("bit_flip", {"bits": [3, 3]}, "bit 3 is named twice"),
    ("bit_flip", {"bits": []}, "flips nothing"),
    ("bit_flip", {"num_coordinates": 0}, "num_coordinates=0 must be 1"),
    ("gambler", {"probability": 1.5}, r"probability=1.5 must be in \[0, 1\]"),
    ("gambler", {"probability": -0.1}, "probability=-0.1 must be"),
    ("gambler", {"num_servers": 0}, "num_servers=0 must be 1 or more"),
    ("worst_case", {"weakest": 0.0}, "weakest=0.0 must be above 0"),
    ("worst_case", {"strongest": 0.01}, "weakest=0.05 is not below strongest"),
    ("worst_case", {"num_evaluations": 3}, "num_evaluations=3 must be 4"),
  ],
)
def test_bad_parameter_raises(attack, options, message):
  if attack == "worst_case":
    options = {"aggregator": rule, **options}
  with pytest.raises(ValueError, match=message):
    attacks.ATTACKS[attack](draw(), BYZANTINE, SEED, **options)


@every_attack
@pytest.mark.parametrize(
  ("byzantine", "message"),
  [
    ([9], "worker 9 is not one of the 9 workers 0 to 8"),
    ([-1], "worker -1 is not one of the 9"),
    ([2, 2], "worker 2 is named twice"),
    ([], "names no worker"),
  ],
)
def test_bad_workers_raise(name, byzantine, message):
  with pytest.raises(ValueError, match=message):
    BOUND[name](draw(), byzantine, SEED)


def test_integer_updates_raise():
  with pytest.raises(TypeError, match="must be floating, got int64"):
    attacks.sign_flip(np.ones([3, 2], np.int64), [0], SEED)


@pytest.mark.parametrize("shape", [[3], [3, 2, 2]])
def test_updates_that_are_no_matrix_raise(shape):
  with pytest.raises(ValueError, match=r"must have the shape \[n, d\]"):
    attacks.sign_flip(np.ones(shape), [0], SEED)


def test_updates_of_unknown_number_raise():
  function = tf.function(
    lambda updates: attacks.sign_flip(updates, [0], SEED),
    input_signature=[tf.TensorSpec([None, 2])],
    autograph=False,
  )
  with pytest.raises(ValueError, match="n known when the function is traced"):
    function(np.ones([3, 2], np.float32))


def test_fractional_worker_raises():
  with pytest.raises(TypeError, match="float"):
    attacks.sign_flip(draw(), [0.5], SEED)
