"""The transcriptions have the properties that the papers prove or state.

Float64, so what is equal in theory is equal to 1e-12 here: models are of order
1, and some hundred operations round each to 1e-16.
"""

import functools
import itertools

import numpy as np
import pytest

from tests.robust_tf import local_oracles as oracles
from tests.robust_tf import multi_worker_problem as network

TOLERANCE = 1e-12
SIZE = 23
COMPRESSORS = {
  "identity": oracles.identity,
  "zero": oracles.zero,
  "top_k": oracles.top_k(4),
  "scaled_sign": oracles.scaled_sign,
  "blocks": oracles.blocks(4, 8, seed=1),
}
PAIRS = tuple(itertools.product(COMPRESSORS, COMPRESSORS))
C1 = COMPRESSORS["blocks"]
C2 = oracles.blocks(8, 8, seed=2)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)


def quadratic(workers=4, steps=13, rate=lambda step: 0.1, seed=0):
  """Returns 0.5 (x - a_i)' D_i (x - a_i) with noisy gradients."""
  random = np.random.default_rng(seed)
  curvature = random.uniform(0.2, 2.0, (workers, SIZE))
  optimum = random.normal(size=(workers, SIZE))
  noise = random.normal(size=(steps, workers, SIZE))
  return oracles.Problem(
    random.normal(size=SIZE),
    workers,
    steps,
    lambda i, x, step: curvature[i] * (x - optimum[i]) + noise[step, i],
    rate,
  )


def classifier(steps=7):
  """Returns a network of one hidden layer that learns four classes."""
  data = [network.worker_data(i) for i in range(network.NUM_WORKERS)]

  def gradient(i, x, step):
    points, labels = data[i]
    return network.gradient(network.unflatten(x), points[step], labels[step])

  x0 = np.concatenate([x.ravel() for x in network.initial_variables()])
  return oracles.Problem(
    x0, network.NUM_WORKERS, steps, gradient, lambda step: 0.2
  )


def trajectory(states, name="models"):
  return np.stack([state[name] for state in states])


def common(states):
  """Returns x_i - e_i, [T, n, d]."""
  states = list(states)
  return trajectory(states) - trajectory(states, "error")


def spread(x):
  """Returns how far workers are from worker 0, at most."""
  return np.abs(x - x[..., :1, :]).max()


def schedule(step):
  return 0.2 / (1 + step)


@pytest.mark.parametrize("make", [quadratic, classifier])
def test_momentum_zero_is_cser(make):
  close(
    trajectory(oracles.m_cser(make(), C1, C2, 3)),
    trajectory(oracles.cser(make(), C1, C2, 3)),
  )


@pytest.mark.parametrize("h", [1, 3])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_p1_model_minus_error_is_common(first, second, h):
  c1, c2 = COMPRESSORS[first], COMPRESSORS[second]
  for states in (
    oracles.cser(quadratic(), c1, c2, h),
    oracles.m_cser(quadratic(), c1, c2, h, beta=0.9, wd=0.01),
  ):
    assert spread(common(states)) < TOLERANCE


def test_p1_holds_for_a_network():
  states = oracles.m_cser(
    classifier(), oracles.scaled_sign, oracles.top_k(8), 3, beta=0.9
  )
  assert spread(common(states)) < TOLERANCE


@pytest.mark.parametrize("name", COMPRESSORS)
def test_p2_partial_synchronisation_keeps_the_mean(name):
  v = np.random.default_rng(0).normal(size=(5, SIZE))
  synced, _ = oracles.psync(v, COMPRESSORS[name], 1)
  close(synced.mean(axis=0), v.mean(axis=0))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_p2_mean_model_follows_the_mean_update(first, second):
  problem = quadratic()
  c1, c2 = COMPRESSORS[first], COMPRESSORS[second]
  states = list(oracles.m_cser(problem, c1, c2, 3, beta=0.9, wd=0.01))
  means = trajectory(states).mean(axis=1)
  before = np.vstack([problem.x0, means[:-1]])
  close(means, before - trajectory(states, "updates").mean(axis=1))


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("h", [1, 3])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_p3_identity_gradient_compressor_is_synchronous_sgd(name, h, beta):
  states = list(
    oracles.m_cser(
      quadratic(), COMPRESSORS[name], oracles.identity, h, beta, wd=0.01
    )
  )
  close(trajectory(states), trajectory(oracles.sgd(quadratic(), beta, 0.01)))
  assert np.all(trajectory(states, "error") == 0)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_p3_identity_reset_at_each_step_is_synchronous_sgd(beta):
  states = oracles.m_cser(
    quadratic(), oracles.identity, oracles.zero, 1, beta, wd=0.01
  )
  close(trajectory(states), trajectory(oracles.sgd(quadratic(), beta, 0.01)))


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("h", [2, 4])
def test_p3_identity_reset_alone_is_local_sgd(h, beta):
  states = oracles.m_cser(
    quadratic(), oracles.identity, oracles.zero, h, beta, wd=0.01
  )
  expected = oracles.local_sgd(quadratic(), h, beta, wd=0.01)
  close(trajectory(states), trajectory(expected))


@pytest.mark.parametrize("h", [1, 4])
def test_p3_block_reset_alone_averages_the_models_block(h):
  # CSEA and CSER-PL; the released code does that, and keeps no error.
  for beta in (0.0, 0.9):
    close(
      trajectory(oracles.m_cser(quadratic(), C1, oracles.zero, h, beta)),
      trajectory(oracles.released_cser(quadratic(), C1, oracles.zero, h, beta)),
    )


@pytest.mark.parametrize("name", COMPRESSORS)
def test_p3_assimilated_error_takes_the_steps_of_error_feedback(name):
  c = COMPRESSORS[name]
  problem = quadratic()
  csea = list(oracles.cser(problem, c, oracles.zero, 1))
  x = common(csea)[:, 0]
  e = np.vstack(
    [np.zeros_like(csea[0]["error"])[None], trajectory(csea, "error")]
  )
  updates = trajectory(csea, "updates")
  for t in range(1, problem.num_steps):
    sent = oracles.compressed(e[t] - updates[t], c, t + 1)
    close(x[t], x[t - 1] + sent.mean(axis=0))


def test_error_feedback_of_gradients_at_one_point_is_assimilation():
  # Where the gradient does not depend on the model, where it is taken does
  # not matter, and the common model of CSEA is that of EF-SGD; so is e, but
  # for its sign.
  random = np.random.default_rng(3)
  gradients = random.normal(size=(9, 4, SIZE))
  problem = oracles.Problem(
    random.normal(size=SIZE),
    4,
    9,
    lambda i, x, step: gradients[step, i],
    lambda step: 0.1,
  )
  c = oracles.top_k(4)
  csea = list(oracles.m_cser(problem, c, oracles.zero, 1, beta=0.9))
  feedback = list(oracles.ef_sgd(problem, c, beta=0.9))
  close(common(csea), trajectory(feedback))
  close(trajectory(csea, "error"), -trajectory(feedback, "error"))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_p4_identity_reset_leaves_no_error(name):
  h = 3
  states = list(
    oracles.m_cser(
      quadratic(), oracles.identity, COMPRESSORS[name], h, beta=0.9
    )
  )
  for state in states[h - 1 :: h]:
    assert np.all(state["error"] == 0)
    assert spread(state["models"]) < TOLERANCE


def test_p5_block_is_synced_and_the_rest_is_left():
  v = np.random.default_rng(0).normal(size=(5, SIZE))
  synced, residual = oracles.psync(v, C1, 1)
  block = oracles.compressed(np.ones_like(v), C1, 1)[0] == 1
  assert 0 < block.sum() < SIZE
  close(synced[:, block], np.tile(v[:, block].mean(axis=0), (5, 1)))
  np.testing.assert_array_equal(synced[:, ~block], v[:, ~block])
  np.testing.assert_array_equal(residual[:, ~block], v[:, ~block])
  assert np.all(residual[:, block] == 0)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_p6_one_worker_is_sgd(name):
  c = COMPRESSORS[name]
  states = oracles.m_cser(quadratic(1), c, c, 3, beta=0.9, wd=0.01)
  close(trajectory(states), trajectory(oracles.sgd(quadratic(1), 0.9, 0.01)))


def test_p7_values_sent_are_one_over_the_compression_ratio():
  sent = []

  def counted(c):
    def compress(v, step, worker):
      at = c(np.ones_like(v), step, worker)
      sent.append(at.sum() if worker == 0 else 0)
      return c(v, step, worker)

    return compress

  size, steps, h, ratio_1, ratio_2 = 1024, 64, 4, 8, 32
  problem = oracles.Problem(
    np.zeros(size), 2, steps, lambda i, x, step: x - i, lambda step: 0.1
  )
  c1 = oracles.blocks(ratio_1, 128, seed=1)
  c2 = oracles.blocks(ratio_2, 128, seed=2)
  list(oracles.cser(problem, counted(c1), counted(c2), h))
  ratio = 1 / (1 / ratio_2 + 1 / (ratio_1 * h))
  assert ratio == 16
  # Blocks are of one size here, so no draw is larger than another.
  assert sum(sent) / (steps * size) == pytest.approx(1 / ratio, abs=TOLERANCE)


def test_p8_partial_synchronisation_of_blocks_is_idempotent():
  v = np.random.default_rng(0).normal(size=(5, SIZE))
  synced, _ = oracles.psync(v, C1, 1)
  close(oracles.psync(synced, C1, 1)[0], synced)


@pytest.mark.parametrize("seed", range(20))
def test_p9_top_k_keeps_its_share_of_the_norm(seed):
  v = np.random.default_rng(seed).standard_cauchy(size=24)
  kept = oracles.top_k(4)(v, 0, 0)
  assert np.count_nonzero(kept) == 6
  assert ((kept - v) ** 2).sum() <= (1 - 6 / 24) * (v**2).sum()
  assert np.abs(v[kept == 0]).max() <= np.abs(kept[kept != 0]).min()


@pytest.mark.parametrize("seed", range(20))
def test_p9_scaled_sign_loses_exactly_what_the_norms_say(seed):
  v = np.random.default_rng(seed).normal(size=SIZE)
  delta = np.abs(v).sum() ** 2 / (SIZE * (v**2).sum())
  error = ((oracles.scaled_sign(v, 0, 0) - v) ** 2).sum()
  assert error == pytest.approx((1 - delta) * (v**2).sum(), rel=TOLERANCE)


def test_p9_blocks_keep_their_share_on_average():
  v = np.random.default_rng(0).normal(size=24)
  c = oracles.blocks(4, 8, seed=1)
  draws = [((c(v, step, 0) - v) ** 2).sum() for step in range(4000)]
  expected = (1 - 1 / 4) * (v**2).sum()
  # Five standard errors of the mean of 4000 independent draws.
  assert np.mean(draws) == pytest.approx(
    expected, abs=5 * np.std(draws) / 4000**0.5
  )


def test_p10_error_carries_the_learning_rates_of_its_steps():
  problem = quadratic(rate=schedule)
  states = list(oracles.cser(problem, C1, oracles.zero, problem.num_steps + 1))
  total = np.zeros_like(states[0]["models"])
  x = problem.start()[0]
  for t, state in enumerate(states, 1):
    total = total - schedule(t - 1) * problem.gradients(x, t)
    x = state["models"]
    close(state["error"], total)


@pytest.mark.parametrize("second", COMPRESSORS)
def test_p10_schedule_keeps_what_is_common(second):
  states = oracles.m_cser(
    quadratic(rate=schedule), C1, COMPRESSORS[second], 3, beta=0.9
  )
  assert spread(common(states)) < TOLERANCE


def test_plus_sign_of_the_residual_would_break_p1():
  # What P1 is there to see: the test of it must be able to fail.
  problem = quadratic()
  x, e = problem.start()
  synced, residual = oracles.psync(0.1 * problem.gradients(x, 1), C2, 1)
  assert spread((x - synced) - (e - residual)) < TOLERANCE
  assert spread((x - synced) - (e + residual)) > 0.1


def test_identity_makes_error_feedback_synchronous_sgd():
  close(
    trajectory(oracles.ef_sgd(quadratic(), oracles.identity, 0.9, 0.01)),
    trajectory(oracles.sgd(quadratic(), 0.9, 0.01)),
  )


def test_identity_makes_qsparse_local_sgd():
  close(
    trajectory(
      oracles.qsparse_local_sgd(quadratic(), oracles.identity, 3, 0.9, 0.01)
    ),
    trajectory(oracles.local_sgd(quadratic(), 3, 0.9, 0.01)),
  )


@pytest.mark.parametrize("name", ["top_k", "scaled_sign", "blocks"])
def test_qsparse_with_one_local_step_is_error_feedback(name):
  # With the sign of e turned: it holds what is to be added to x.
  c = COMPRESSORS[name]
  sparse = list(oracles.qsparse_local_sgd(quadratic(), c, 1, beta=0.9))
  feedback = list(oracles.ef_sgd(quadratic(), c, beta=0.9))
  close(trajectory(sparse), trajectory(feedback))
  close(trajectory(sparse, "error"), -trajectory(feedback, "error"))


def test_one_local_step_is_synchronous_sgd():
  close(
    trajectory(oracles.local_sgd(quadratic(), 1, 0.9, 0.01)),
    trajectory(oracles.sgd(quadratic(), 0.9, 0.01)),
  )


B0, EPSILON = 0.5, 0.25  # b_0^2 and eps^2


@pytest.mark.parametrize("make", [quadratic, classifier])
@pytest.mark.parametrize("constant", [False, True])
def test_adaalter_p1_one_local_step_is_distributed(make, constant):
  local = list(oracles.local_adaalter(make(), B0, EPSILON, 1, 0.01, constant))
  distributed = list(oracles.adaalter(make(), B0, EPSILON, 0.01))
  for name in ("models", "accumulator"):
    close(trajectory(local, name), trajectory(distributed, name))


def test_adaalter_p2_one_worker_squares_its_mean():
  problem = quadratic(1)
  total = np.full((1, SIZE), B0)
  x = problem.start()[0]
  for t, state in enumerate(oracles.adaalter(problem, B0, EPSILON), 1):
    total = total + problem.gradients(x, t).mean(axis=0) ** 2
    x = state["models"]
    close(state["accumulator"], total)


@pytest.mark.parametrize("h", [1, 3, 4])
def test_adaalter_p3_denominator_is_common_and_frozen(h):
  before = np.full((4, SIZE), B0)
  states = oracles.local_adaalter(quadratic(), B0, EPSILON, h)
  for t, state in enumerate(states, 1):
    assert spread(state["denominator"]) == 0
    if t % h:
      np.testing.assert_array_equal(state["denominator"], before)
      assert spread(state["models"]) > 0.01
    else:
      assert spread(state["models"]) == 0
      assert spread(state["accumulator"]) == 0
    before = state["denominator"]


@pytest.mark.parametrize("h", [1, 3, 4])
def test_adaalter_p4_accumulator_is_the_sum_of_mean_squares(h):
  problem = quadratic()
  total = np.full(SIZE, B0)
  x = problem.start()[0]
  before = total
  states = oracles.local_adaalter(problem, B0, EPSILON, h)
  for t, state in enumerate(states, 1):
    total = total + (problem.gradients(x, t) ** 2).mean(axis=0)
    x = state["models"]
    assert np.all(state["denominator"] >= before)
    before = state["denominator"]
    if t % h == 0:
      # Sums of squares of order 10 are rounded in another order.
      np.testing.assert_allclose(
        state["accumulator"], np.tile(total, (4, 1)), rtol=TOLERANCE
      )


def test_adaalter_p5_large_epsilon_is_local_sgd():
  h, large = 4, 1e14
  problem = quadratic(rate=lambda step: 1e6)
  equal = quadratic(rate=lambda step: 0.1 / (step % h + 1) ** 0.5)
  adaptive = trajectory(oracles.local_adaalter(problem, B0, large, h))
  # What is left of B^2 under the root is some 100 / 1e14.
  close(adaptive, trajectory(oracles.local_sgd(equal, h)), atol=1e-11)


@pytest.mark.parametrize("h", [1, 4])
def test_adaalter_p6_steps_are_bounded(h):
  problem = quadratic()
  x = problem.start()[0]
  states = oracles.local_adaalter(problem, B0, EPSILON, h)
  for t, state in enumerate(states, 1):
    bound = 0.1 * np.abs(problem.gradients(x, t)) / (B0 + EPSILON) ** 0.5
    if t % h:
      step = state["models"] - x
    else:
      bound = bound.mean(axis=0)
      step = state["models"].mean(axis=0) - x.mean(axis=0)
    assert np.all(np.abs(step) <= bound + TOLERANCE)
    x = state["models"]


def test_adaalter_p7_first_step_does_not_divide_by_its_gradient():
  # Gradient 3 on both workers, b_0^2 = 3, eps^2 = 1, eta = 1.
  problem = oracles.Problem(
    np.zeros(1), 2, 1, lambda i, x, step: np.full(1, 3.0), lambda step: 1.0
  )
  for altered in (
    oracles.adaalter(problem, 3.0, 1.0),
    oracles.local_adaalter(problem, 3.0, 1.0, 2),
  ):
    first = next(altered)
    close(first["models"], -3 / 4**0.5)
    close(first["accumulator"], 12.0)
  close(next(oracles.adagrad(problem, 3.0, 1.0))["models"], -3 / 13**0.5)


def test_local_adaalter_by_hand():
  # Gradients 1 and 3 at every step, b_0^2 = 3, eps^2 = 1, eta = 1, H = 2.
  problem = oracles.Problem(
    np.zeros(1), 2, 3, lambda i, x, step: np.array([1.0 + 2 * i]), lambda s: 1.0
  )
  first, second, third = oracles.local_adaalter(problem, 3.0, 1.0, 2)
  close(first["models"], [[-1 / 2], [-3 / 2]])
  close(first["accumulator"], [[4], [12]])
  close(second["models"], np.full((2, 1), -1 - 2 / 5**0.5))
  close(second["accumulator"], [[13], [13]])
  close(third["models"] - second["models"], [[-1 / 14**0.5], [-3 / 14**0.5]])


@pytest.mark.parametrize("h", [1, 3])
def test_adaalter_p8_coordinates_may_be_permuted_and_turned(h):
  problem = quadratic()
  random = np.random.default_rng(5)
  order = random.permutation(SIZE)
  signs = random.choice([-1.0, 1.0], size=SIZE)
  back = np.argsort(order)

  def there(x):
    return signs * x[..., order]

  def here(x):
    return (signs * x)[..., back]

  turned = oracles.Problem(
    there(problem.x0),
    problem.num_workers,
    problem.num_steps,
    lambda i, x, step: there(problem.gradient(i, here(x), step)),
    problem.learning_rate,
  )
  close(
    trajectory(oracles.local_adaalter(turned, B0, EPSILON, h)),
    there(trajectory(oracles.local_adaalter(problem, B0, EPSILON, h))),
  )


def test_naive_local_adagrad_has_denominators_of_its_own():
  states = list(oracles.naive_local_adagrad(quadratic(), B0, EPSILON, 3))
  assert spread(states[2]["models"]) == 0
  assert spread(states[2]["accumulator"]) > 1


def test_naive_local_adagrad_of_one_worker_is_adagrad():
  close(
    trajectory(oracles.naive_local_adagrad(quadratic(1), B0, EPSILON, 3)),
    trajectory(oracles.adagrad(quadratic(1), B0, EPSILON)),
  )
