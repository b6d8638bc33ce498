"""The equations that rules keep (and that some must not keep)."""

import numpy as np
import pytest

from robust_tf import aggregators
from tests.robust_tf import contracts
from tests.robust_tf.contracts import assert_close
from tests.robust_tf.contracts import RULES
from tests.tensorflow_setup import tf

N, D = 11, 6


def rules(condition):
  chosen = [rule for rule in RULES if condition(rule)]
  return pytest.mark.parametrize("rule", chosen, ids=str)


def make_updates(seed, dtype=np.float32):
  """Returns updates of which a few are far off, on a grid of 2^-16.

  Sums of them with whole numbers up to 100 are exact in float32.
  """
  v = contracts.gradients(seed, N, D)
  v[[2, 7]] *= -4
  return (np.round(v * 2**16) / 2**16).astype(dtype)


def run(rule, v):
  """Returns the rule's result for half as many liars as it tolerates."""
  return rule.bind(rule.max_byzantine(N) // 2)(v)


@pytest.mark.parametrize("seed", range(3))
@rules(lambda rule: rule.permutation)
def test_order_of_workers_does_not_matter(rule, seed):
  v = make_updates(seed)
  order = np.random.default_rng(seed).permutation(N)
  assert_close(run(rule, v[order]), run(rule, v))


@pytest.mark.parametrize("offset", [3, 100])
@rules(lambda rule: rule.affine)
def test_translation_translates(rule, offset):
  v = make_updates(0)
  z = np.array([1, -1, 0, 1, 1, -1], np.float32) * offset
  np.testing.assert_allclose(
    run(rule, v + z), run(rule, v) + z, rtol=0, atol=2e-6 * (5 + offset)
  )


@rules(lambda rule: rule.affine and rule.whole_vector)
def test_far_offset_does_not_blur_distances(rule):
  # ||a||^2 + ||b||^2 - 2 a b would lose every digit of distances of 1e-3.
  v = np.round(make_updates(1) * 4) / 2**12
  far = run(rule, v + np.float32(512))
  np.testing.assert_allclose(far - 512, run(rule, v), rtol=0, atol=1e-4)


@pytest.mark.parametrize("exponent", [-40, -10, 1, 10, 40])
@rules(lambda rule: rule.affine)
def test_scaling_scales_exactly(rule, exponent):
  v = make_updates(2)
  factor = np.float32(2.0**exponent)
  np.testing.assert_array_equal(run(rule, v * factor), run(rule, v) * factor)


@rules(lambda rule: rule.negation)
def test_negation_negates(rule):
  v = make_updates(3)
  assert_close(run(rule, -v), -run(rule, v))


def rotated(rule):
  v = make_updates(4, np.float64)
  q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(D, D)))
  return run(rule, v @ q), run(rule, v) @ q


@rules(lambda rule: rule.rotation)
def test_rotation_rotates(rule):
  assert_close(*rotated(rule), rtol=1e-6)


@rules(lambda rule: not rule.rotation)
def test_coordinate_wise_result_depends_on_the_axes(rule):
  of_rotated, rotated_result = rotated(rule)
  assert np.abs(of_rotated - rotated_result).max() > 1e-2


@rules(lambda rule: True)
def test_order_of_coordinates_does_not_matter(rule):
  v = make_updates(5)
  order = np.random.default_rng(5).permutation(D)
  assert_close(run(rule, v[:, order]), run(rule, v)[order])


@rules(lambda rule: not rule.whole_vector)
def test_each_coordinate_may_have_its_own_scale_and_offset(rule):
  v = make_updates(6)
  scale = np.float32([1, 2, 4, 0.5, 8, 0.25])
  offset = np.float32([0, 1, -2, 3, 0, 5])
  assert_close(run(rule, v * scale + offset), run(rule, v) * scale + offset)


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
@rules(lambda rule: True)
def test_identical_updates_give_that_update(rule, scale):
  if rule.name == "zeno" and scale > 1:
    pytest.skip("the loss after such a step is not finite")
  u = (make_updates(7)[0] * scale).astype(np.float32)
  assert_close(run(rule, np.tile(u, (N, 1))), u, rtol=1e-6)


@pytest.mark.parametrize(
  "name", ["trimmed_mean", "phocas", "meamed", "bulyan", "zeno"]
)
def test_withstanding_nobody_is_the_mean(name):
  v = make_updates(8)
  assert_close(contracts.by_name(name).bind(0)(v), v.mean(axis=0))


def test_trimming_all_but_the_middle_is_the_median():
  v = make_updates(9)
  np.testing.assert_array_equal(
    aggregators.trimmed_mean(v, trim=(N - 1) // 2), aggregators.median(v)
  )


def test_multi_krum_of_one_row_is_krum():
  v = make_updates(10)
  np.testing.assert_array_equal(
    aggregators.multi_krum(v, num_byzantine=3, num_selected=1),
    aggregators.krum(v, num_byzantine=3),
  )


def test_zeno_of_an_infinite_penalty_takes_the_shortest_updates():
  v = make_updates(12)
  shortest = np.argsort(np.linalg.norm(v, axis=1))[:7]
  result = aggregators.zeno(
    v,
    loss=lambda step: tf.reduce_sum(step),
    learning_rate=0.1,
    num_suspected=4,
    rho=1e12,
  )
  assert_close(result, v[shortest].mean(axis=0))
