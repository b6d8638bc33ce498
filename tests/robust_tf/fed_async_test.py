"""FedAsync against Algorithm 1 in float64, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from robust_tf.federated import server
from robust_tf.federated.fed_async import FedAsync
from robust_tf.federated.sampling import uniform
from robust_tf.federated.staleness import constant
from robust_tf.federated.staleness import hinge
from robust_tf.federated.staleness import polynomial
from robust_tf.federated.tasks import Push
from tests.robust_tf.fake_devices import assert_close
from tests.robust_tf.fake_devices import deliveries
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of
from tests.robust_tf.fake_devices import values

STALENESS = {
  "constant": (constant(), lambda u: 1),
  "polynomial": (polynomial(0.5), lambda u: (u + 1) ** -0.5),
  "hinge": (hinge(10, 2), lambda u: 1 if u <= 2 else 1 / (10 * (u - 2) + 1)),
}


def replay(pushes, alpha, s, max_staleness=np.inf):
  """Algorithm 1 on the pushes in their order, each serial once."""
  x = [v.astype(np.float64) for v in values(0)]
  t, seen, mixed = 0, set(), []
  for push in pushes:
    if push.task.serial in seen:
      continue
    seen.add(push.task.serial)
    if t - push.version > max_staleness:
      continue
    alpha_t = alpha(t) * s(t - push.version)
    x = [
      (1 - alpha_t) * v + alpha_t * new.astype(np.float64)
      for v, new in zip(x, push.values, strict=True)
    ]
    t += 1
    mixed.append((push.task.serial, alpha_t))
  return x, mixed


def receive_all(fed_async, pushes):
  """Returns the pushes, and (serial, weight) of those that were mixed in."""
  received, mixed = [], []
  for push in pushes:
    receipt = fed_async.receive(push)
    received.append(push)
    assert receipt.advanced == (receipt.refused is None)
    if receipt.advanced:
      mixed.append((push.task.serial, receipt.mixing_weight))
  return received, mixed


@pytest.mark.parametrize("name", STALENESS)
@given(
  seed=st.integers(0, 2**32),
  alpha=st.floats(0.01, 1),
  concurrency=st.integers(1, 10),
  max_staleness=st.sampled_from([None, 0, 3]),
)
@settings(max_examples=20, deadline=None)
def test_model_is_that_of_the_algorithm(
  name, seed, alpha, concurrency, max_staleness
):
  ours, oracle = STALENESS[name]
  fed_async = FedAsync(
    values(0),
    device_tasks(),
    mixing_weight=alpha,
    staleness=ours,
    max_staleness=max_staleness,
    concurrency=concurrency,
  )
  pushes = deliveries(fed_async, np.random.default_rng(seed), 100)
  received, mixed = receive_all(fed_async, pushes)
  bound = np.inf if max_staleness is None else max_staleness
  expected, expected_mixed = replay(received, lambda t: alpha, oracle, bound)
  assert [x for x, _ in mixed] == [x for x, _ in expected_mixed]
  assert [w for _, w in mixed] == pytest.approx([w for _, w in expected_mixed])
  assert fed_async.version == len(mixed) == len({x for x, _ in mixed})
  assert_close(fed_async.weights, expected, len(mixed))


def test_mixing_weight_may_follow_the_version():
  def alpha(t):
    return 0.8 if t < 10 else 0.4

  fed_async = FedAsync(values(0), device_tasks(), mixing_weight=alpha)
  pushes = deliveries(fed_async, np.random.default_rng(1), 60)
  received, mixed = receive_all(fed_async, pushes)
  expected, _ = replay(received, alpha, lambda u: 1)
  assert {w for _, w in mixed[:10]} == {0.8}
  assert {w for _, w in mixed[10:]} == {0.4}
  assert_close(fed_async.weights, expected, len(mixed))


@given(alpha=st.floats(0.01, 1), u=st.integers(0, 50))
@settings(deadline=None)
def test_model_is_between_the_old_one_and_the_pushed_one(alpha, u):
  fed_async = FedAsync(
    values(0), device_tasks(), mixing_weight=alpha, staleness=polynomial(0.5)
  )
  fed_async.restore({"version": u, "next_serial": 0}, values(1))
  (task, *_) = fed_async.assign()
  receipt = fed_async.receive(push_of(task, version=0))
  assert receipt.staleness == u
  assert 0 < receipt.mixing_weight <= alpha
  new = push_of(task).values
  for x, old, pushed in zip(fed_async.weights, values(1), new, strict=True):
    low, high = np.minimum(old, pushed), np.maximum(old, pushed)
    slack = 4 * np.finfo(np.float32).eps * (high - low + np.abs(high))
    assert (x >= low - slack).all() and (x <= high + slack).all()


def test_fresh_push_has_staleness_0_and_counts_in_full():
  fed_async = FedAsync(values(0), device_tasks(), mixing_weight=1.0)
  (task, *_) = fed_async.assign()
  receipt = fed_async.receive(push_of(task))
  assert (receipt.staleness, receipt.mixing_weight) == (0, 1.0)
  # alpha = 1: the model is the device's, as in local SGD.
  assert_close(fed_async.weights, push_of(task).values, 1)


def test_arrays_are_replaced_and_never_changed():
  fed_async = FedAsync(values(0), device_tasks())
  published = fed_async.weights
  kept = [x.copy() for x in published]
  (task, *_) = fed_async.assign()
  push = push_of(task)
  fed_async.receive(push)
  for old, copy in zip(published, kept, strict=True):
    np.testing.assert_array_equal(old, copy)
  for sent, again in zip(push.values, push_of(task).values, strict=True):
    np.testing.assert_array_equal(sent, again)


def test_second_push_of_a_serial_is_not_awaited():
  fed_async = FedAsync(values(0), device_tasks())
  (task, *_) = fed_async.assign()
  assert fed_async.receive(push_of(task)).refused is None
  after = fed_async.weights
  receipt = fed_async.receive(push_of(task))
  assert receipt.refused == server.NOT_AWAITED
  assert receipt.staleness == 1 and not receipt.advanced
  assert fed_async.weights is after and fed_async.version == 1


def test_push_of_a_task_that_nobody_was_given_is_not_awaited():
  fed_async = FedAsync(values(0), device_tasks())
  task = device_tasks().task(77, 0, 0)
  assert fed_async.receive(push_of(task)).refused == server.NOT_AWAITED


@pytest.mark.parametrize(
  ("version", "content", "reason"),
  [
    (0, [np.full_like(x, np.nan) for x in values(1)], server.NOT_FINITE),
    (0, [np.full_like(x, 3.4e38) for x in values(1)], server.NOT_FINITE),
    (0, values(1)[1:], server.WRONG_SHAPES),
    (0, values(1, np.float64), server.WRONG_SHAPES),
    (1, values(1), server.WRONG_VERSION),
    (-1, values(1), server.WRONG_VERSION),
  ],
)
def test_refused_push_changes_nothing_and_ends_its_task(
  version, content, reason
):
  fed_async = FedAsync(
    [np.full_like(x, -3.4e38) for x in values(0)],
    device_tasks(),
    mixing_weight=1.0,
  )
  before = fed_async.weights
  (task, *_) = fed_async.assign()
  assert fed_async.assign() == []
  receipt = fed_async.receive(Push(task, version, content))
  assert (receipt.refused, receipt.mixing_weight) == (reason, None)
  assert fed_async.weights is before and fed_async.version == 0
  (other,) = fed_async.assign()
  assert other.serial > task.serial
  assert fed_async.receive(push_of(task)).refused == server.NOT_AWAITED


def test_push_that_is_too_stale_is_refused():
  fed_async = FedAsync(values(0), device_tasks(), max_staleness=1)
  first, second, third, _ = fed_async.assign()
  assert fed_async.receive(push_of(first)).staleness == 0
  assert fed_async.receive(push_of(second)).staleness == 1
  receipt = fed_async.receive(push_of(third))
  assert (receipt.refused, receipt.staleness) == (server.TOO_STALE, 2)


def test_overdue_task_makes_room_and_counts_with_its_staleness_if_it_comes():
  fed_async = FedAsync(
    values(0), device_tasks(), concurrency=1, staleness=polynomial(1.0)
  )
  (slow,) = fed_async.assign()
  fed_async.give_up(slow)
  fed_async.give_up(slow)
  (other,) = fed_async.assign()
  assert fed_async.receive(push_of(other)).mixing_weight == 0.6
  receipt = fed_async.receive(push_of(slow))
  assert (receipt.refused, receipt.staleness) == (None, 1)
  assert receipt.mixing_weight == pytest.approx(0.3)
  assert len(fed_async.assign()) == 1


@pytest.mark.parametrize("sample", [None, uniform])
@given(seed=st.integers(0, 2**32), concurrency=st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_as_many_devices_are_at_work_as_there_is_room_for(
  sample, seed, concurrency
):
  chosen = {} if sample is None else {"sample": sample}
  rng = np.random.default_rng(seed)
  fed_async = FedAsync(
    values(0), device_tasks(seed=seed), concurrency=concurrency, **chosen
  )
  out, serials = [], []
  for _ in range(50):
    started = fed_async.assign()
    serials += [task.serial for task in started]
    out += started
    assert len(out) == concurrency
    assert len({task.device for task in out}) == concurrency
    assert all(task.version == fed_async.version for task in started)
    fed_async.receive(push_of(out.pop(rng.integers(len(out)))))
  assert serials == sorted(set(serials))


def test_all_devices_take_part_before_one_does_again():
  fed_async = FedAsync(values(0), device_tasks(), concurrency=1)
  devices = []
  for _ in range(30):
    (task,) = fed_async.assign()
    devices.append(task.device)
    fed_async.receive(push_of(task))
  for i in range(0, 30, 10):
    assert sorted(devices[i : i + 10]) == list(range(10))


def test_run_that_goes_on_awaits_no_task_of_the_one_before():
  fed_async = FedAsync(values(0), device_tasks())
  (first, *lost) = fed_async.assign()
  fed_async.receive(push_of(first))
  again = FedAsync(values(5), device_tasks())
  again.restore(fed_async.state(), fed_async.weights)
  assert again.version == 1
  for x, y in zip(again.weights, fed_async.weights, strict=True):
    np.testing.assert_array_equal(x, y)
  started = again.assign()
  assert min(x.serial for x in started) > max(x.serial for x in lost)
  for task in lost:
    assert again.receive(push_of(task)).refused == server.NOT_AWAITED


def test_run_of_one_device_at_a_time_goes_on_as_if_it_had_not_stopped():
  def go(fed_async, until):
    while fed_async.version < until:
      (task,) = fed_async.assign()
      fed_async.receive(push_of(task))
    return fed_async

  def new():
    return FedAsync(values(0), device_tasks(), concurrency=1)

  whole, half, rest = go(new(), 40), go(new(), 20), new()
  rest.restore(half.state(), half.weights)
  go(rest, 40)
  for x, y in zip(whole.weights, rest.weights, strict=True):
    np.testing.assert_array_equal(x, y)
  assert whole.state() == rest.state()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"mixing_weight": 0}, "mixing_weight=0 must be above 0 and at most 1"),
    ({"mixing_weight": 1.1}, "mixing_weight=1.1 must be above 0"),
    (
      {"concurrency": 0},
      "concurrency=0 must be at least 1, and at most",
    ),
    ({"concurrency": 11}, "concurrency=11 must be at least 1, and at most"),
    ({"max_staleness": -1}, "max_staleness=-1 must be at least 0"),
  ],
)
def test_argument_out_of_bounds_is_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    FedAsync(values(0), device_tasks(), **arguments)


def test_function_of_staleness_above_1_is_an_error():
  fed_async = FedAsync(values(0), device_tasks(), staleness=lambda u: 2.0)
  (task, *_) = fed_async.assign()
  with pytest.raises(ValueError, match="would be mixed with 1.2"):
    fed_async.receive(push_of(task))


def test_weights_of_another_model_do_not_restore_a_server():
  fed_async = FedAsync(values(0), device_tasks())
  with pytest.raises(ValueError, match="not those of the server's model"):
    fed_async.restore({"version": 1, "next_serial": 4}, values(0)[:2])


def test_servers_of_plain_means_load_no_tensorflow():
  script = (
    "import sys\n"
    "from robust_tf.federated import DeviceTasks, FedAsync, SLSGD\n"
    "from robust_tf.federated import FederatedReport, fed_avg, run\n"
    "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
