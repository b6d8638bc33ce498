"""Zeno's scores in closed form, its selection, and Zeno++'s test."""

import functools

import numpy as np
import pytest

from robust_tf.aggregators import zeno
from robust_tf.aggregators import zeno_plus_plus
from robust_tf.aggregators import zeno_weights
from tests.robust_tf import oracles
from tests.tensorflow_setup import tf

GAMMA = 0.1


def quadratic(away):
  """Returns f(x - step) = ||x - step - x*||^2 / 2 where x - x* is `away`."""

  def loss(step):
    return tf.reduce_sum(tf.square(away - step)) / 2

  return loss


def gradients(seed, n, d):
  """Returns away = x - x*, the quadratic's gradient, and n noisy ones."""
  rng = np.random.default_rng(seed)
  away = rng.normal(size=d)
  return away, away + 0.3 * rng.normal(size=(n, d))


def closed_form(u, away, rho):
  """Returns gamma <x - x*, u> - (gamma^2 / 2 + rho) ||u||^2, the scores."""
  return GAMMA * u @ away - (GAMMA**2 / 2 + rho) * np.square(u).sum(axis=1)


def taken(weights):
  return set(np.flatnonzero(np.asarray(weights)).tolist())


@pytest.mark.parametrize("seed", range(20))
def test_best_scores_in_closed_form_are_taken(seed):
  away, u = gradients(seed, n=9, d=6)
  u[: seed % 9] *= -2
  rho = [0.0, 0.01, 1.0][seed % 3]
  best = np.argsort(-closed_form(u, away, rho))[: 9 - 4]
  weights = zeno_weights(u, quadratic(away), GAMMA, 4, rho)
  assert taken(weights) == set(best)
  np.testing.assert_allclose(
    zeno(u, quadratic(away), GAMMA, 4, rho), u[best].mean(axis=0)
  )


def test_most_workers_may_lie():
  away, u = gradients(0, n=9, d=30)
  u[:7] = -10 * u[8]
  weights = zeno_weights(u, quadratic(away), GAMMA, num_suspected=7)
  assert taken(weights) == {7, 8}


@pytest.mark.parametrize("seed", range(10))
def test_selected_scores_dominate_those_of_the_best_honest(seed):
  # Lemma of Xie et al.: with b >= q, the i-th best of the selected scores is
  # no less than the i-th best honest one.
  rng = np.random.default_rng(seed)
  away, u = gradients(seed, n=10, d=5)
  q, b = 4, 6
  u[:q] = rng.normal(size=(q, 5)) * rng.choice([0.1, 1, 100])
  scores = closed_form(u, away, rho=1e-3)
  weights = zeno_weights(u, quadratic(away), GAMMA, b, 1e-3).numpy()
  selected = np.sort(scores[weights > 0])[::-1]
  honest = np.sort(scores[q:])[::-1][: 10 - b]
  assert (selected >= honest).all()


def test_descent_has_a_positive_score_and_ascent_a_negative_one():
  away, _ = gradients(1, n=1, d=5)
  scores = closed_form(np.stack([away, -away]), away, rho=1e-4)
  assert scores[0] > 0 > scores[1]
  updates = np.stack([-away, away])
  weights = zeno_weights(updates, quadratic(away), GAMMA, 1, 1e-4)
  assert taken(weights) == {1}


def test_first_of_equal_scores_are_taken():
  away, u = gradients(2, n=1, d=4)
  weights = zeno_weights(np.repeat(u, 5, axis=0), quadratic(away), GAMMA, 3)
  np.testing.assert_array_equal(weights, [0.5, 0.5, 0, 0, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e20])
def test_score_that_is_not_finite_never_wins(value):
  away, u = gradients(3, n=6, d=4)
  u[:2] = value
  u[2, 1] = value
  u = u.astype(np.float32)
  loss = quadratic(away.astype(np.float32))
  for b in (3, 4):
    assert taken(zeno_weights(u, loss, GAMMA, b)) <= {3, 4, 5}
  # More such than b: the mean of the others.
  np.testing.assert_array_equal(
    zeno_weights(u, loss, GAMMA, 1), [0, 0, 0, 1 / 3, 1 / 3, 1 / 3]
  )
  assert np.isfinite(zeno(u, loss, GAMMA, 1)).all()


def test_row_with_nan_where_the_loss_does_not_look_is_not_taken():
  u = np.ones((3, 2), np.float32)
  u[1, 1] = np.nan

  def loss(step):
    return tf.square(1 - step[0])

  for rho in (0.0, 0.1):
    assert taken(zeno_weights(u, loss, GAMMA, 0, rho)) == {0, 2}


def test_of_no_finite_scores_the_result_is_nan():
  away, u = gradients(4, n=3, d=4)
  result = zeno(u * np.nan, quadratic(away), GAMMA, 1)
  assert np.isnan(result).all()


def test_penalty_is_the_sum_or_the_mean_of_squares():
  # Scores 1 - (1 - 0.1 u)^2 / ... aside, only the penalty tells u apart: a
  # loss that does not depend on the step leaves -rho ||u||^2.
  u = np.array([[3.0, 0, 0], [0, 1, 0], [0, 0, 2]])
  weights = functools.partial(
    zeno_weights, u, lambda step: tf.constant(1.0), GAMMA, 2
  )
  assert taken(weights(rho=0.1)) == {1}

  # A loss that falls by u_0: 3 - 9 rho against 0 - rho, or a third of each.
  def falls(step):
    return -step[0] / GAMMA

  # 3 - 9 rho < -rho where rho > 3 / 8; with means where rho > 9 / 8.
  for penalty, bound in (("sum", 3 / 8), ("mean", 9 / 8)):
    for rho, best in ((bound - 0.01, 0), (bound + 0.01, 1)):
      result = zeno_weights(u, falls, GAMMA, 2, rho, penalty)
      assert taken(result) == {best}


def test_loss_is_called_once_more_than_there_are_updates():
  away, u = gradients(5, n=4, d=3)
  steps = []

  def loss(step):
    steps.append(step.numpy())
    return quadratic(away)(step)

  zeno_weights(tf.constant(u), loss, GAMMA, 1)
  np.testing.assert_allclose(steps, [np.zeros(3), *(GAMMA * u)])


def test_steps_of_lists_are_lists():
  away, u = gradients(6, n=5, d=7)

  def of_lists(step):
    matrix, vector = step
    assert matrix.shape == (2, 3) and vector.shape == (1,)
    flat = tf.concat([tf.reshape(matrix, [-1]), vector], axis=0)
    return quadratic(away)(flat)

  lists = [
    [tf.constant(row[:6].reshape(2, 3)), tf.constant(row[6:])] for row in u
  ]
  np.testing.assert_array_equal(
    zeno_weights(lists, of_lists, GAMMA, 2),
    zeno_weights(u, quadratic(away), GAMMA, 2),
  )


def test_worker_is_judged_by_all_variables_together():
  # Worker 0 is best on the first variable, worker 1 on the second, worker 2
  # on both together.
  away = np.array([1.0, 1.0])
  u = np.array([[10.0, -12], [-12, 10], [5, 5]])

  def loss(step):
    return quadratic(away)(tf.stack(step))

  lists = [[tf.constant(a), tf.constant(b)] for a, b in u]
  assert taken(zeno_weights(lists, loss, GAMMA, 2, rho=0.0)) == {2}


def test_scores_are_the_same_in_a_function_and_compiled():
  away, u = gradients(7, n=6, d=5)
  run = functools.partial(
    zeno, loss=quadratic(away), num_suspected=3, learning_rate=GAMMA
  )
  expected = run(u)
  for options in ({}, {"jit_compile": True}):
    result = tf.function(run, **options)(tf.constant(u))
    np.testing.assert_allclose(result, expected)


def test_learning_rate_may_be_a_tensor():
  away, u = gradients(8, n=6, d=5)
  loss = quadratic(away)
  np.testing.assert_array_equal(
    zeno_weights(u, loss, tf.constant(GAMMA), 3),
    zeno_weights(u, loss, GAMMA, 3),
  )


def test_update_along_the_validation_gradient_is_accepted():
  v = np.array([3.0, 4.0])
  accepted, scaled = zeno_plus_plus(2 * v, v, GAMMA)
  assert accepted
  np.testing.assert_allclose(scaled, v)
  accepted, scaled = zeno_plus_plus(-2 * v, v, GAMMA)
  assert not accepted
  np.testing.assert_allclose(scaled, -v)


def test_acceptance_changes_where_the_inequality_does():
  # v of length 5, u at a right angle: 0 - 25 rho >= -gamma eps.
  v, u = np.array([3.0, 4.0]), np.array([-8.0, 6.0])
  for epsilon, expected in ((0.024, False), (0.026, True)):
    accepted, _ = zeno_plus_plus(u, v, GAMMA, rho=1e-4, epsilon=epsilon)
    assert accepted == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_update_or_gradient_that_is_not_finite_is_not_accepted(value):
  v = np.array([3.0, 4.0], np.float32)
  bad = np.array([3.0, value], np.float32)
  accepted, scaled = zeno_plus_plus(bad, v, GAMMA, epsilon=1e9)
  assert not accepted
  np.testing.assert_array_equal(scaled, [0, 0])
  accepted, _ = zeno_plus_plus(v, bad, GAMMA, epsilon=1e9)
  assert not accepted


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_length_of_the_update_does_not_matter(scale):
  v = np.array([3.0, 4.0], np.float32)
  u = np.array([4.0, 3.0], np.float32)
  accepted, scaled = zeno_plus_plus(u * np.float32(scale), v, GAMMA)
  assert accepted
  assert scaled.dtype == np.float32
  expected = oracles.zeno_plus_plus(u, v, GAMMA, 0.001, 0.0)[1]
  np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_update_of_zeros_stays_zeros():
  v = np.array([3.0, 4.0])
  accepted, scaled = zeno_plus_plus(0 * v, v, GAMMA)
  assert accepted
  np.testing.assert_array_equal(scaled, [0, 0])
