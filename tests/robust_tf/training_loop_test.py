import numpy as np
import pytest

from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import OVERDUE
from robust_tf.federated.events import REFUSED
from robust_tf.federated.events import RETRIED
from robust_tf.federated.events import STARTED
from robust_tf.federated.fed_async import FedAsync
from robust_tf.federated.server import LATE
from robust_tf.federated.server import NOT_FINITE
from robust_tf.federated.slsgd import SLSGD
from robust_tf.federated.training_loop import run
from robust_tf.federated.training_loop import TrainingStalledError
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of
from tests.robust_tf.fake_devices import values


class Prompt:
  """Devices that push in the order in which they were asked."""

  def __init__(self, server, silent=(), pushed=push_of):
    """Takes the serials of tasks that are never done, and what is pushed."""
    self.gives_update = server.wants_updates
    self.published = []
    self.out = []
    self._silent = silent
    self._pushed = pushed

  def publish(self, weights, version):
    self.published.append((version, [x.copy() for x in weights]))

  def start(self, task):
    if task.serial not in self._silent:
      self.out.append(task)

  def retried(self):
    return []

  def next_push(self, timeout_s):
    if self.out:
      return self._pushed(self.out.pop(0))
    assert timeout_s is not None, "it would wait for ever"
    return None


def test_every_model_is_published_once_before_its_tasks():
  server = FedAsync(values(0), device_tasks(), concurrency=3)
  devices, versions, events = Prompt(server), [], []
  run(
    server,
    devices,
    10,
    on_event=events.append,
    on_version=lambda version: versions.append((version, len(events))),
  )
  assert [version for version, _ in devices.published] == list(range(11))
  assert [version for version, _ in versions] == list(range(1, 11))
  for x, y in zip(devices.published[-1][1], server.weights, strict=True):
    np.testing.assert_array_equal(x, y)
  # A version is told of after the push that made it.
  for version, count in versions:
    assert events[count - 1].server_version == version
  counts = [sum(e.kind == kind for e in events) for kind in (STARTED, ACCEPTED)]
  assert counts == [12, 10]  # two are still out


def test_devices_that_push_what_the_server_does_not_want_are_refused():
  rounds = SLSGD(values(0), device_tasks(), devices_per_round=3)
  asynchronous = FedAsync(values(0), device_tasks())
  with pytest.raises(ValueError, match="with gives_update=True"):
    run(rounds, Prompt(asynchronous), 1)
  with pytest.raises(ValueError, match="FedAsync wants models"):
    run(asynchronous, Prompt(rounds), 1)


def test_run_of_which_all_is_refused_ends():
  server = FedAsync(values(0), device_tasks())
  devices = Prompt(
    server,
    pushed=lambda task: push_of(task, content=[x * np.nan for x in values(0)]),
  )
  events = []
  with pytest.raises(
    TrainingStalledError, match="last 30 pushes were refused.*as not finite"
  ):
    run(server, devices, 10, patience=30, on_event=events.append)
  assert sum(e.kind == REFUSED for e in events) == 30


def test_run_ends_at_once_if_there_is_nothing_to_do():
  server = FedAsync(values(0), device_tasks())
  run(server, Prompt(server), 0)
  assert server.version == 0


def test_overdue_task_is_given_up_and_another_device_asked():
  server = SLSGD(values(0), device_tasks(), devices_per_round=3)
  events = []
  # A deadline that has passed at once for whoever does not push first.
  run(
    server,
    Prompt(server, silent={1}),
    2,
    deadline_s=0.0,
    on_event=events.append,
  )
  assert server.version == 2
  assert [e.serial for e in events if e.kind == OVERDUE] == [1]
  started = [e.serial for e in events if e.kind == STARTED]
  assert started == list(range(7))  # three a round, and one in place of 1


def test_late_push_counts_if_the_server_takes_it():
  events = []

  class Late(Prompt):
    """The only push is that of a task that was given up."""

    def next_push(self, timeout_s):
      return push_of(self.out[0]) if len(self.out) > 1 else None

  asynchronous = FedAsync(values(0), device_tasks(), concurrency=1)
  run(
    asynchronous, Late(asynchronous), 1, deadline_s=0.0, on_event=events.append
  )
  kinds = [(e.kind, e.serial) for e in events[:4]]
  assert kinds == [(STARTED, 0), (OVERDUE, 0), (STARTED, 1), (ACCEPTED, 0)]


def test_push_of_a_round_that_is_over_is_late():
  class Reordered(Prompt):
    """The first round's first task is done last."""

    def next_push(self, timeout_s):
      if len(self.out) == 3 and self.out[0].serial == 0:
        self.out.append(self.out.pop(0))
      return super().next_push(timeout_s)

  server = SLSGD(
    values(0), device_tasks(), devices_per_round=3, arrivals_per_round=2
  )
  events = []
  run(server, Reordered(server), 2, on_event=events.append)
  refused = {e.serial: e.reason for e in events if e.kind == REFUSED}
  assert refused[0] == LATE


def test_task_that_was_begun_anew_is_told_of():
  class Restarted(Prompt):
    """Devices of which the second task's lost its process."""

    def retried(self):
      return [x for x in self.out if x.serial == 1]

  server = SLSGD(values(0), device_tasks(), devices_per_round=2)
  events = []
  run(server, Restarted(server), 1, on_event=events.append)
  kinds = [(e.kind, e.serial) for e in events[2:]]
  assert kinds == [(RETRIED, 1), (ACCEPTED, 0), (ACCEPTED, 1)]


def test_refused_device_is_replaced_and_the_round_ends():
  def pushed(task):
    if task.serial == 0:
      return push_of(task, content=[x * np.nan for x in values(0)])
    return push_of(task)

  server = SLSGD(values(0), device_tasks(), devices_per_round=3)
  events = []
  run(server, Prompt(server, pushed=pushed), 1, on_event=events.append)
  refused = [e for e in events if e.kind == REFUSED]
  assert [(e.serial, e.reason) for e in refused] == [(0, NOT_FINITE)]
  assert all(np.isfinite(x).all() for x in server.weights)
  assert sum(e.kind == ACCEPTED for e in events) == 3
