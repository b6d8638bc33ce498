"""What happened in a run, event by event, and the report that adds it up."""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from robust_tf.federated.server import Receipt
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task

STARTED = "started"
ACCEPTED = "accepted"
REFUSED = "refused"
OVERDUE = "overdue"
RETRIED = "retried"


@dataclasses.dataclass(frozen=True)
class Event:
  """What happened to a task.

  Attributes:
    kind: `started`, `accepted`, `refused`, `overdue`, or `retried`: given to
      another process, because the one that had it is gone.
    serial: of the task.
    device: who does it.
    version: tau, of the model that the task started from; where that is not
      known yet, of the server's model when the task was made.
    server_version: of the server's model after the event.
    staleness: of a push, in versions; None where its version is none.
    mixing_weight: with which a push was mixed in at once, if it was.
    reason: why a push was refused.
    num_bytes: of a push.
  """

  kind: str
  serial: int
  device: int
  version: int
  server_version: int
  staleness: int | None = None
  mixing_weight: float | None = None
  reason: str | None = None
  num_bytes: int = 0

  @classmethod
  def started(cls, task: Task) -> "Event":
    """Returns the event of a task that is given to a device."""
    return cls(STARTED, task.serial, task.device, task.version, task.version)

  @classmethod
  def overdue(cls, task: Task, server_version: int) -> "Event":
    """Returns the event of a task that the server gives up."""
    return cls(OVERDUE, task.serial, task.device, task.version, server_version)

  @classmethod
  def retried(cls, task: Task, server_version: int) -> "Event":
    """Returns the event of a task that another process begins anew."""
    return cls(RETRIED, task.serial, task.device, task.version, server_version)

  @classmethod
  def arrived(
    cls, push: Push, receipt: Receipt, server_version: int
  ) -> "Event":
    """Returns the event of a push.

    Args:
      push: what came.
      receipt: what the server made of it.
      server_version: of the server's model after that.
    """
    return cls(
      ACCEPTED if receipt.refused is None else REFUSED,
      push.task.serial,
      push.task.device,
      push.version,
      server_version,
      staleness=receipt.staleness,
      mixing_weight=receipt.mixing_weight,
      reason=receipt.refused,
      num_bytes=sum(np.asarray(x).nbytes for x in push.values),
    )


class FederatedReport:
  """The sums over all events of a run."""

  def __init__(self, model_bytes: int):
    """Begins with no event.

    Args:
      model_bytes: how large a model is that devices read.
    """
    self._model_bytes = model_bytes
    self._kinds = collections.Counter()
    self._refused = collections.Counter()  # by reason
    self._staleness = collections.Counter()
    self._pushes = collections.Counter()  # by device
    self._bytes_pushed = 0
    self._versions = 0
    self._server_version = -1
    self._weights = 0
    self._weight_sum = 0.0
    self._weight_min, self._weight_max = np.inf, -np.inf

  def add(self, event: Event) -> None:
    """Counts an event."""
    self._kinds[event.kind] += 1
    if event.server_version > self._server_version:
      self._versions += 1
      self._server_version = event.server_version
    if event.kind in (ACCEPTED, REFUSED):
      self._pushes[event.device] += 1
      self._bytes_pushed += event.num_bytes
    if event.kind == REFUSED:
      self._refused[event.reason] += 1
    if event.kind == ACCEPTED:
      self._staleness[event.staleness] += 1
      if event.mixing_weight is not None:
        self._add_weight(event.mixing_weight)

  def to_json(self) -> dict[str, object]:
    """Returns the report as plain data.

    Returns:
      Counts: `started`, `accepted`, `overdue`, `retried`, and `refused` by
      reason; `staleness`: how many accepted pushes had each; `mixing_weight`:
      of the pushes that were mixed in at once the `count`, and, if there were
      any, the `sum`, `min` and `max` of their weights; `pushes_per_device`:
      how many arrived from each that sent any; `bytes_pushed` by devices;
      `bytes_pulled` by them, a model for each time that a task began;
      `bytes_published`, a model for each version.
    """
    begun = self._kinds[STARTED] + self._kinds[RETRIED]
    weights = {"count": self._weights}
    if self._weights:
      weights |= {
        "sum": self._weight_sum,
        "min": self._weight_min,
        "max": self._weight_max,
      }
    return {
      **{x: self._kinds[x] for x in (STARTED, ACCEPTED, OVERDUE, RETRIED)},
      "refused": dict(sorted(self._refused.items())),
      "staleness": _with_text_keys(self._staleness),
      "mixing_weight": weights,
      "pushes_per_device": _with_text_keys(self._pushes),
      "bytes_pushed": self._bytes_pushed,
      "bytes_pulled": begun * self._model_bytes,
      "bytes_published": self._versions * self._model_bytes,
      "model_bytes": self._model_bytes,
      "server_version": self._server_version,
    }

  @classmethod
  def from_json(cls, content: Mapping[str, object]) -> "FederatedReport":
    """Returns the report that gave these data, to go on with.

    Args:
      content: as `to_json` gives it.
    """
    report = cls(content["model_bytes"])
    for kind in (STARTED, ACCEPTED, OVERDUE, RETRIED):
      report._kinds[kind] = content[kind]
    report._refused.update(content["refused"])
    report._staleness.update(_with_number_keys(content["staleness"]))
    report._pushes.update(_with_number_keys(content["pushes_per_device"]))
    report._bytes_pushed = content["bytes_pushed"]
    if content["model_bytes"]:
      report._versions = content["bytes_published"] // content["model_bytes"]
    report._server_version = content["server_version"]
    weights = content["mixing_weight"]
    report._weights = weights["count"]
    if report._weights:
      report._weight_sum = weights["sum"]
      report._weight_min, report._weight_max = weights["min"], weights["max"]
    return report

  def _add_weight(self, weight: float) -> None:
    self._weights += 1
    self._weight_sum += weight
    self._weight_min = min(self._weight_min, weight)
    self._weight_max = max(self._weight_max, weight)


def _with_text_keys(counter: collections.Counter) -> dict[str, int]:
  return {str(key): counter[key] for key in sorted(counter)}


def _with_number_keys(counts: Mapping[str, int]) -> dict[int, int]:
  return {int(key): count for key, count in counts.items()}
