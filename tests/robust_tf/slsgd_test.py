"""SLSGD against Algorithm 1 in float64, and what its rounds wait for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from robust_tf.federated import server
from robust_tf.federated.sampling import permutation
from robust_tf.federated.sampling import uniform
from robust_tf.federated.slsgd import fed_avg
from robust_tf.federated.slsgd import mean
from robust_tf.federated.slsgd import SLSGD
from tests.robust_tf.fake_devices import assert_close
from tests.robust_tf.fake_devices import deliveries
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of
from tests.robust_tf.fake_devices import values

TRIM = 1


def trimmed_mean(updates):
  if len(updates) <= 2 * TRIM:
    raise ValueError(f"trim={TRIM} needs at least 3, got {len(updates)}")
  columns = [np.sort(np.stack(rows), 0) for rows in zip(*updates, strict=True)]
  return [x[TRIM : len(x) - TRIM].mean(0) for x in columns]


RULES = {"mean": mean, "trimmed_mean": trimmed_mean}


def option(name, models):
  """Options I and II of Algorithm 1, on models."""
  columns = [np.stack(rows) for rows in zip(*models, strict=True)]
  if name == "mean":
    return [x.sum(0) / len(x) for x in columns]
  return [np.sort(x, 0)[TRIM : len(x) - TRIM].mean(0) for x in columns]


def replay(pushes, k, alpha, rule):
  """Algorithm 1 on the first k pushes of each round, each serial once."""
  x = [v.astype(np.float64) for v in values(0)]
  t, seen, models, devices = 0, set(), [], set()
  for push in pushes:
    serial, device = push.task.serial, push.task.device
    if serial in seen:
      continue
    seen.add(serial)
    if push.version != t or push.task.version != t or device in devices:
      continue
    devices.add(device)
    # What was pushed is x_{t-1} - x_i.
    models.append([v - u for v, u in zip(x, push.values, strict=True)])
    if len(models) == k:
      x = [
        (1 - alpha(t)) * v + alpha(t) * new
        for v, new in zip(x, option(rule, models), strict=True)
      ]
      t, models, devices = t + 1, [], set()
  return x, t


def slsgd(m=4, k=None, num_devices=10, **arguments):
  return SLSGD(
    values(0),
    device_tasks(num_devices),
    devices_per_round=m,
    arrivals_per_round=k,
    **arguments,
  )


def run_rounds(server, until):
  """Runs rounds in which all push at once, in order."""
  while server.version < until:
    for task in server.assign():
      server.receive(push_of(task))
  return server


@pytest.mark.parametrize("rule", RULES)
@given(
  seed=st.integers(0, 2**32),
  alpha=st.floats(0.01, 1),
  sizes=st.integers(3, 10).flatmap(
    lambda m: st.tuples(st.just(m), st.integers(3, m))
  ),
)
@settings(max_examples=20, deadline=None)
def test_model_is_that_of_the_algorithm(rule, seed, alpha, sizes):
  m, k = sizes
  ours = slsgd(m, k, mixing_weight=alpha, aggregator=RULES[rule])
  received, weights = [], []
  for push in deliveries(ours, np.random.default_rng(seed), 200):
    version = ours.version
    receipt = ours.receive(push)
    received.append(push)
    assert receipt.advanced == (ours.version == version + 1)
    if receipt.advanced:
      weights.append(receipt.mixing_weight)
    else:
      assert receipt.mixing_weight is None
  expected, rounds = replay(received, k, lambda t: alpha, rule)
  assert ours.version == rounds > 3
  assert weights == [alpha] * rounds
  assert_close(ours.weights, expected, (k + 1) * rounds)


def test_mixing_weight_may_follow_the_version():
  def alpha(t):
    return 1.0 if t < 3 else 0.6

  ours = slsgd(4, 3, mixing_weight=alpha)
  received = []
  for push in deliveries(ours, np.random.default_rng(0), 60):
    ours.receive(push)
    received.append(push)
  expected, rounds = replay(received, 3, alpha, "mean")
  assert rounds > 5
  assert_close(ours.weights, expected, 4 * rounds)


def test_rule_gets_the_updates_in_order_of_serial():
  seen = []

  def rule(updates):
    seen.append(updates)
    return mean(updates)

  ours = slsgd(4, 3, aggregator=rule)
  tasks = ours.assign()
  for i in (3, 0, 2):
    ours.receive(push_of(tasks[i]))
  expected = [push_of(tasks[i]).values for i in (0, 2, 3)]
  for update, values_pushed in zip(seen[-1], expected, strict=True):
    for x, y in zip(update, values_pushed, strict=True):
      np.testing.assert_array_equal(x, y)


def test_mixing_weight_0_leaves_the_model_as_it_is():
  ours = run_rounds(slsgd(mixing_weight=lambda t: 0.0), 3)
  for x, y in zip(ours.weights, values(0), strict=True):
    np.testing.assert_array_equal(x, y)


def test_fed_avg_is_the_mean_model_of_all_in_a_round():
  ours = fed_avg(values(0), device_tasks(), devices_per_round=10)
  (*others, last) = ours.assign()
  for task in others:
    ours.receive(push_of(task))
  assert ours.receive(push_of(last)).mixing_weight == 1.0
  models = [
    [x - u for x, u in zip(values(0), push_of(task).values, strict=True)]
    for task in [*others, last]
  ]
  assert_close(ours.weights, option("mean", models), 10)


def test_mean_of_large_updates_is_finite():
  large = [np.full(3, 3e38, np.float32)]
  np.testing.assert_array_equal(mean([large, large])[0], large[0])


def test_trimmed_model_is_within_what_the_others_pushed():
  ours = slsgd(4, aggregator=trimmed_mean)
  tasks = ours.assign()
  honest = [push_of(task).values for task in tasks[1:]]
  lie = [np.full_like(x, 1e6) for x in values(0)]
  ours.receive(push_of(tasks[0], content=lie))
  for task in tasks[1:]:
    ours.receive(push_of(task))
  for x, old, *updates in zip(ours.weights, values(0), *honest, strict=True):
    slack = 4 * np.finfo(np.float32).eps * 8
    models = old - np.stack(updates)
    assert (x >= models.min(0) - slack).all()
    assert (x <= models.max(0) + slack).all()


@pytest.mark.parametrize("sample", [permutation, uniform])
def test_devices_of_a_round_are_those_that_are_drawn(sample):
  ours = slsgd(4, sample=sample)
  for number in range(6):
    tasks = ours.assign()
    assert [x.device for x in tasks] == sample(10, 4, number, 0)
    assert [x.serial for x in tasks] == [4 * number + i for i in range(4)]
    assert ours.assign() == []
    for task in tasks:
      ours.receive(push_of(task))


def test_round_ends_with_the_first_k_and_the_others_are_late():
  ours = slsgd(4, 2)
  tasks = ours.assign()
  assert not ours.receive(push_of(tasks[3])).advanced
  assert ours.receive(push_of(tasks[1])).advanced
  after = ours.weights
  ours.assign()
  for task in (tasks[0], tasks[2]):
    receipt = ours.receive(push_of(task))
    assert (receipt.refused, receipt.staleness) == (server.LATE, 1)
    assert ours.receive(push_of(task)).refused == server.NOT_AWAITED
  assert ours.weights is after and ours.version == 1


def test_second_push_of_a_serial_is_not_awaited():
  ours = slsgd(4)
  task, *_ = ours.assign()
  assert ours.receive(push_of(task)).refused is None
  assert ours.receive(push_of(task)).refused == server.NOT_AWAITED
  assert ours.version == 0


def test_overdue_device_is_replaced_and_counts_if_it_comes_in_time():
  ours = slsgd(3)
  tasks = ours.assign()
  ours.give_up(tasks[0])
  ours.give_up(tasks[0])
  (other,) = ours.assign()
  assert other.device not in {x.device for x in tasks}
  assert other.version == 0
  ours.receive(push_of(tasks[0]))
  ours.receive(push_of(other))
  assert ours.receive(push_of(tasks[1])).advanced
  ours.assign()
  assert ours.receive(push_of(tasks[2])).refused == server.LATE
  ours.give_up(tasks[2])
  assert ours.assign() == []


def test_overdue_device_is_asked_again_if_all_were_asked():
  ours = slsgd(3, num_devices=3)
  tasks = ours.assign()
  ours.give_up(tasks[0])
  (again,) = ours.assign()
  assert again.device == tasks[0].device and again.serial > tasks[2].serial
  ours.receive(push_of(again))
  # The device counts once, whichever of its pushes comes first.
  assert ours.receive(push_of(tasks[0])).refused == server.LATE
  ours.receive(push_of(tasks[1]))
  assert ours.receive(push_of(tasks[2])).advanced


@pytest.mark.parametrize(
  ("content", "version", "reason"),
  [
    ([np.full_like(x, np.nan) for x in values(1)], 1, server.NOT_FINITE),
    (values(1)[1:], 1, server.WRONG_SHAPES),
    (values(1), 2, server.WRONG_VERSION),
    (values(1), 0, server.LATE),  # it started from the model before
  ],
)
def test_refused_device_is_replaced(content, version, reason):
  ours = run_rounds(slsgd(3), 1)
  tasks = ours.assign()
  before = ours.weights
  receipt = ours.receive(push_of(tasks[0], version, content))
  assert (receipt.refused, receipt.advanced) == (reason, False)
  assert ours.weights is before
  (other,) = ours.assign()
  assert other.device not in {x.device for x in tasks}
  for task in (other, *tasks[1:]):
    receipt = ours.receive(push_of(task))
  assert receipt.advanced


NAN = [np.full_like(x, np.nan) for x in values(0)]


def test_round_does_with_what_there_is_if_nobody_is_left():
  ours = slsgd(3, num_devices=3)
  tasks = ours.assign()
  ours.receive(push_of(tasks[0]))
  ours.receive(push_of(tasks[1], content=NAN))
  assert ours.assign() == []
  receipt = ours.receive(push_of(tasks[2]))
  assert (receipt.advanced, receipt.mixing_weight) == (True, 1.0)
  models = [
    [x - u for x, u in zip(values(0), push_of(tasks[i]).values, strict=True)]
    for i in (0, 2)
  ]
  assert_close(ours.weights, option("mean", models), 3)


def test_round_without_an_arrival_leaves_the_model_as_it_is():
  ours = slsgd(2, num_devices=2)
  before = ours.weights
  for task in ours.assign():
    receipt = ours.receive(push_of(task, content=NAN))
  assert (receipt.refused, receipt.advanced) == (server.NOT_FINITE, True)
  assert receipt.mixing_weight is None
  assert ours.version == 1 and ours.weights is before


def test_model_stays_as_it_is_if_the_rule_gives_nothing_finite():
  ours = slsgd(2, aggregator=lambda updates: NAN)
  before = ours.weights
  for task in ours.assign():
    receipt = ours.receive(push_of(task))
  assert (receipt.advanced, receipt.mixing_weight) == (True, 0.0)
  assert ours.version == 1 and ours.weights is before


def test_rule_that_does_not_work_with_what_is_left_says_so():
  ours = slsgd(3, num_devices=3, aggregator=trimmed_mean)
  tasks = ours.assign()
  ours.receive(push_of(tasks[0], content=NAN))
  ours.receive(push_of(tasks[1]))
  with pytest.raises(ValueError, match="has only 2 arrivals of 3.*trim=1"):
    ours.receive(push_of(tasks[2]))


def test_rule_may_follow_model_and_version():
  seen = []

  def aggregator_at(weights, version):
    seen.append((weights, version))
    return lambda updates: updates[version % len(updates)]

  ours = slsgd(2, aggregator_at=aggregator_at)
  for version in range(3):
    before = ours.weights
    tasks = ours.assign()
    for task in tasks:
      ours.receive(push_of(task))
    assert seen[-1][0] is before and seen[-1][1] == version
    update = push_of(tasks[version % 2]).values
    expected = [x - u for x, u in zip(before, update, strict=True)]
    assert_close(ours.weights, expected, 1)


@given(seed=st.integers(0, 2**32), stop=st.integers(1, 19))
@settings(max_examples=10, deadline=None)
def test_run_goes_on_as_if_it_had_not_stopped(seed, stop):
  def new():
    return SLSGD(values(0), device_tasks(seed=seed), devices_per_round=4)

  whole, half, rest = run_rounds(new(), 20), run_rounds(new(), stop), new()
  # It stopped in the middle of a round.
  (task, *_) = half.assign()
  half.receive(push_of(task))
  rest.restore(half.state(), half.weights)
  run_rounds(rest, 20)
  for x, y in zip(whole.weights, rest.weights, strict=True):
    np.testing.assert_array_equal(x, y)
  assert whole.state() == rest.state()


def test_run_that_goes_on_awaits_no_late_push():
  ours = slsgd(4, 2)
  tasks = ours.assign()
  for task in tasks[:2]:
    ours.receive(push_of(task))
  again = slsgd(4, 2)
  again.restore(ours.state(), ours.weights)
  again.assign()
  assert again.receive(push_of(tasks[3])).refused == server.NOT_AWAITED


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"m": 0}, "devices_per_round=0 must be at least 1"),
    ({"m": 11}, "devices_per_round=11 must be at least 1, and at most the 10"),
    ({"k": 0}, "arrivals_per_round=0 must be at least 1"),
    ({"k": 5}, "arrivals_per_round=5 .* at most devices_per_round=4"),
    ({"mixing_weight": 0.0}, "mixing_weight=0.0 must be above 0"),
    ({"mixing_weight": lambda t: -1}, r"mixing_weight\(0\) is -1.0"),
    (
      {"m": 5, "k": 2, "aggregator": trimmed_mean},
      "does not work with arrivals_per_round=2 of devices_per_round=5: trim=1",
    ),
  ],
)
def test_argument_out_of_bounds_is_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    slsgd(**arguments)
