"""What a report counts."""

import json

import pytest

from robust_tf.federated.events import Event
from robust_tf.federated.events import FederatedReport
from robust_tf.federated.server import LATE
from robust_tf.federated.server import NOT_FINITE
from robust_tf.federated.server import Receipt
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of

TASKS = [device_tasks().task(i, 3 * i, i // 2) for i in range(4)]
NUM_BYTES = 4 * (12 + 5 + 1)  # of a push: float32 of these shapes

EVENTS = (
  *(Event.started(task) for task in TASKS[:2]),
  Event.retried(TASKS[1], 0),
  Event.arrived(
    push_of(TASKS[0]), Receipt(None, 0, 0.5, advanced=True), server_version=1
  ),
  *(Event.started(task) for task in TASKS[2:]),
  Event.overdue(TASKS[2], 1),
  Event.arrived(
    push_of(TASKS[1]), Receipt(None, 1, 0.25, advanced=True), server_version=2
  ),
  Event.arrived(push_of(TASKS[2]), Receipt(LATE, 1), server_version=2),
  Event.arrived(push_of(TASKS[2]), Receipt(NOT_FINITE, 1), server_version=2),
  Event.arrived(push_of(TASKS[3]), Receipt(None, 1), server_version=2),
)
EXPECTED = {
  "started": 4,
  "accepted": 3,
  "overdue": 1,
  "retried": 1,
  "refused": {"late": 1, "not finite": 1},
  "staleness": {"0": 1, "1": 2},
  "mixing_weight": {"count": 2, "sum": 0.75, "min": 0.25, "max": 0.5},
  "pushes_per_device": {"0": 1, "3": 1, "6": 2, "9": 1},
  "bytes_pushed": 5 * NUM_BYTES,
  "bytes_pulled": 5 * 100,
  "bytes_published": 3 * 100,
  "model_bytes": 100,
  "server_version": 2,
}


def report_of(events):
  report = FederatedReport(100)
  for event in events:
    report.add(event)
  return report


def test_report_adds_up_the_events():
  assert report_of(EVENTS).to_json() == EXPECTED


@pytest.mark.parametrize("stop", range(len(EVENTS) + 1))
def test_report_goes_on_from_what_it_wrote(stop):
  written = json.dumps(report_of(EVENTS[:stop]).to_json(), allow_nan=False)
  report = FederatedReport.from_json(json.loads(written))
  for event in EVENTS[stop:]:
    report.add(event)
  assert report.to_json() == EXPECTED


def test_event_says_what_the_push_and_its_receipt_say():
  event = EVENTS[6 + 1]
  assert (event.kind, event.serial, event.device) == ("accepted", 1, 3)
  assert (event.version, event.server_version, event.staleness) == (0, 2, 1)
  assert (event.mixing_weight, event.reason) == (0.25, None)
  assert event.num_bytes == NUM_BYTES
  assert EVENTS[8].reason == LATE and EVENTS[8].kind == "refused"


def test_numbers_are_listed_in_order():
  tasks = [device_tasks(20).task(i, i, 0) for i in (10, 9, 11)]
  report = report_of(
    Event.arrived(push_of(x), Receipt(None, x.serial), 0) for x in tasks
  )
  assert list(report.to_json()["staleness"]) == ["9", "10", "11"]
  assert list(report.to_json()["pushes_per_device"]) == ["9", "10", "11"]
