"""Processes that are lost, hang or lie take nothing from a run but time."""

import collections

import numpy as np
import pytest

from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import OVERDUE
from robust_tf.federated.events import REFUSED
from robust_tf.federated.events import RETRIED
from robust_tf.federated.events import STARTED
from tests.robust_tf import federated_replay as replay
from tests.robust_tf import oracles

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns where the runs with lost, hung and lying workers were written."""
  folder = tmp_path_factory.mktemp("faults")
  replay.run_module("tests.robust_tf.federated_faults", folder, timeout_s=300)
  return folder


def of_kind(recording, kind):
  return [event for event in recording.events if event.kind == kind]


def test_pushes_of_liars_are_refused_and_counted(folder):
  recording = replay.Recording.load(folder / "liars.pickle")
  replay.assert_replayed(recording, replay.fed_async(recording))
  assert all(np.isfinite(x).all() for x in recording.models.values())
  reasons = collections.defaultdict(set)
  for event in of_kind(recording, REFUSED):
    reasons[event.device].add(event.reason)
  assert reasons == {
    0: {"not finite"},
    1: {"wrong shapes"},
    2: {"wrong version"},
  }
  assert not {0, 1, 2} & {event.device for event in recording.accepted()}


def test_failure_of_a_device_says_whose_it_is(folder):
  message = (folder / "failure.txt").read_text()
  assert "of device 3 failed" in message
  assert "no class" in message


def test_late_push_is_mixed_with_its_true_staleness(folder):
  recording = replay.Recording.load(folder / "hung_fed_async.pickle")
  replay.assert_replayed(recording, replay.fed_async(recording))
  overdue = {event.serial for event in of_kind(recording, OVERDUE)}
  late = [event for event in recording.accepted() if event.serial in overdue]
  assert late
  for event in recording.accepted():
    assert event.staleness == event.server_version - 1 - event.version


def test_late_push_is_dropped_where_rounds_are_over(folder):
  recording = replay.Recording.load(folder / "hung_slsgd.pickle")
  expected = replay.slsgd(recording, lambda v, x, t: oracles.mean(v))
  replay.assert_replayed(recording, expected)
  overdue = {event.serial for event in of_kind(recording, OVERDUE)}
  late = of_kind(recording, REFUSED)
  assert {event.reason for event in late} == {"late"}
  assert overdue & {event.serial for event in late}


def test_lost_work_is_done_again_and_taken_once(folder):
  recording = replay.Recording.load(folder / "killed.pickle")
  replay.assert_replayed(recording, replay.fed_async(recording))
  retried = [event.serial for event in of_kind(recording, RETRIED)]
  accepted = [event.serial for event in recording.accepted()]
  # One or two tasks of either worker that was lost.
  assert len(retried) >= 2
  assert set(retried) <= set(accepted)
  assert {event.kind for event in recording.events} == {
    STARTED,
    ACCEPTED,
    RETRIED,
  }
