"""Zeno++ against its algorithm in float64, and what it refuses."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from robust_tf.federated import server
from robust_tf.federated.zeno_plus_plus import ZenoPlusPlus
from tests.robust_tf import oracles
from tests.robust_tf.fake_devices import assert_close
from tests.robust_tf.fake_devices import deliveries
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of
from tests.robust_tf.fake_devices import values
from tests.tensorflow_setup import tf  # noqa: F401  sets up the devices first

RATE, RHO, EPSILON, EVERY = 0.1, 0.02, 0.1, 3


def gradient_of(weights, version):
  """A gradient that is another one at each version."""
  del weights
  return values([9, version])


def zeno_plus_plus(gradient=gradient_of, **arguments):
  defaults = {
    "validation_gradient": gradient,
    "learning_rate": RATE,
    "rho": RHO,
    "epsilon": EPSILON,
    "refresh_every": EVERY,
  }
  return ZenoPlusPlus(values(0), device_tasks(), **{**defaults, **arguments})


def flat(arrays):
  return np.concatenate([np.ravel(x) for x in arrays]).astype(np.float64)


def replay(pushes, max_staleness):
  """The algorithm on the pushes in their order, each serial once."""
  x, t, seen, accepted = flat(values(0)), 0, set(), []
  for push in pushes:
    if push.task.serial in seen:
      continue
    seen.add(push.task.serial)
    if t - push.version > max_staleness:
      continue
    v = flat(gradient_of(None, t - t % EVERY))
    is_taken, scaled = oracles.zeno_plus_plus(
      flat(push.values), v, RATE, RHO, EPSILON
    )
    if is_taken:
      x = x - RATE * scaled
      t += 1
      accepted.append(push.task.serial)
  return x, accepted


@given(seed=st.integers(0, 2**32), max_staleness=st.sampled_from([2, 100]))
@settings(max_examples=8, deadline=None)
def test_model_is_that_of_the_algorithm(seed, max_staleness):
  ours = zeno_plus_plus(max_staleness=max_staleness)
  received, accepted = [], []
  for push in deliveries(ours, np.random.default_rng(seed), 60):
    receipt = ours.receive(push)
    received.append(push)
    assert receipt.advanced == (receipt.refused is None)
    assert receipt.mixing_weight is None
    if receipt.advanced:
      accepted.append(push.task.serial)
  expected, expected_accepted = replay(received, max_staleness)
  assert accepted == expected_accepted
  assert ours.version == len(accepted)
  assert_close([flat(ours.weights).astype(np.float32)], [expected], 60)


def test_gradient_is_computed_anew_every_few_versions_from_the_model_then():
  calls = []

  def gradient(weights, version):
    calls.append((version, weights))
    return gradient_of(weights, version)

  ours = zeno_plus_plus(gradient, epsilon=1e6)  # all pushes are accepted
  models = []
  for _ in range(8):
    models.append(ours.weights)
    task, *_ = ours.assign()
    assert ours.receive(push_of(task)).advanced
  assert [version for version, _ in calls] == [0, 3, 6]
  for version, weights in calls:
    assert weights is models[version]


def test_push_against_the_gradient_is_rejected():
  ours = zeno_plus_plus(epsilon=0.0)
  before = ours.weights
  task, *_ = ours.assign()
  uphill = [-x for x in gradient_of(None, 0)]
  receipt = ours.receive(push_of(task, content=uphill))
  assert (receipt.refused, receipt.advanced) == (server.REJECTED, False)
  assert ours.weights is before and ours.version == 0
  assert ours.receive(push_of(task)).refused == server.NOT_AWAITED
  assert len(ours.assign()) == 1


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_only_the_direction_of_a_push_counts(length):
  ours = zeno_plus_plus(epsilon=0.0)
  task, *_ = ours.assign()
  v = gradient_of(None, 0)
  downhill = [(length * x).astype(np.float32) for x in v]
  assert ours.receive(push_of(task, content=downhill)).advanced
  expected = [x - RATE * y for x, y in zip(values(0), v, strict=True)]
  assert_close(ours.weights, expected, 1)


def test_push_of_nothing_moves_nothing():
  ours = zeno_plus_plus(epsilon=0.0)
  task, *_ = ours.assign()
  ours.receive(push_of(task, content=[0 * x for x in values(0)]))
  for x, y in zip(ours.weights, values(0), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ("content", "version", "reason"),
  [
    ([np.full_like(x, np.inf) for x in values(1)], 0, server.NOT_FINITE),
    (values(1)[1:], 0, server.WRONG_SHAPES),
    (values(1), 5, server.WRONG_VERSION),
  ],
)
def test_refused_push_changes_nothing(content, version, reason):
  ours = zeno_plus_plus()
  before = ours.weights
  task, *_ = ours.assign()
  assert ours.receive(push_of(task, version, content)).refused == reason
  assert ours.weights is before


def test_overdue_task_makes_room():
  ours = zeno_plus_plus(concurrency=1, epsilon=1e6)
  (slow,) = ours.assign()
  ours.give_up(slow)
  (other,) = ours.assign()
  assert ours.receive(push_of(other)).advanced
  assert ours.receive(push_of(slow)).staleness == 1


def test_run_that_goes_on_equals_one_that_never_stopped():
  whole = zeno_plus_plus(concurrency=1, epsilon=1e6)

  def advance(ours):
    (task,) = ours.assign()
    assert ours.receive(push_of(task)).advanced

  again = zeno_plus_plus(concurrency=1, epsilon=1e6)
  for _ in range(EVERY + 1):  # not where v is computed anew
    advance(whole)
  again.restore(json.loads(json.dumps(whole.state())), whole.weights)
  for _ in range(2 * EVERY):
    advance(whole)
    advance(again)
    for a, b in zip(whole.weights, again.weights, strict=True):
      np.testing.assert_array_equal(a, b)


def test_task_of_a_run_that_stopped_is_not_awaited():
  ours = zeno_plus_plus(epsilon=1e6)
  for _ in range(4):
    first, *lost = ours.assign()
    ours.receive(push_of(first))
  again = zeno_plus_plus()
  again.restore(ours.state(), ours.weights)
  started = again.assign()
  for task in lost:
    assert task.serial not in {x.serial for x in started}
    assert again.receive(push_of(task)).refused == server.NOT_AWAITED


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate=0.0 must be a finite number above"),
    ({"rho": -1.0}, "rho=-1.0 must be a finite number of at least 0"),
    ({"epsilon": -0.1}, "epsilon=-0.1 must be"),
    ({"refresh_every": 0}, "refresh_every=0 must be at least 1"),
    ({"concurrency": 0}, "concurrency=0 must be at least 1"),
    ({"max_staleness": -1}, "max_staleness=-1 must be at least 0"),
    (
      {"gradient": lambda weights, version: values(1)[:2]},
      "of the model's 3 exchanged variables only 2 have one",
    ),
    (
      {"gradient": lambda weights, version: values(1, np.float64)},
      r"of weights\[0\] is float64 \[3, 4\], not float32 \[3, 4\]",
    ),
  ],
)
def test_argument_out_of_bounds_is_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    zeno_plus_plus(**arguments)
