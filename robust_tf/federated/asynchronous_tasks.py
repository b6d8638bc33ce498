"""Tasks of servers that keep a number of devices at work at any time.

Serials count the draws of devices. A device that is drawn while it is at work
is passed over, so serials ascend, with gaps. A task that is given up makes
room for another one, and is still awaited: its push counts if it comes.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from robust_tf.federated import server
from robust_tf.federated.sampling import Sample
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task


class AsynchronousTasks:
  """Which tasks are out, and which come next."""

  def __init__(
    self,
    tasks: DeviceTasks,
    concurrency: int,
    max_staleness: int | None,
    sample: Sample,
  ):
    """Begins with no task.

    Args:
      tasks: makes them.
      concurrency: how many devices are at work at a time.
      max_staleness: the staleness up to which pushes are taken; None for any.
      sample: draws the devices, see `sampling`.

    Raises:
      ValueError: `concurrency` is below 1 or more than there are devices, or
        `max_staleness` is below 0.
    """
    if not 1 <= concurrency <= tasks.num_devices:
      raise ValueError(
        f"concurrency={concurrency} must be at least 1, and at most the"
        f" {tasks.num_devices} devices that there are"
      )
    if max_staleness is not None and max_staleness < 0:
      raise ValueError(f"max_staleness={max_staleness} must be at least 0")
    self._tasks = tasks
    self._concurrency = concurrency
    self._max_staleness = max_staleness
    self._sample = sample
    self._next_serial = 0
    self._awaited: set[int] = set()
    self._at_work: dict[int, int] = {}  # device by serial, but for overdue ones

  def assign(self, version: int) -> list[Task]:
    """Returns as many tasks as there is room for."""
    started = []
    while len(self._at_work) < self._concurrency:
      serial = self._next_serial
      self._next_serial += 1
      (device,) = self._sample(
        self._tasks.num_devices, 1, serial, self._tasks.seed
      )
      if device not in self._at_work.values():
        self._awaited.add(serial)
        self._at_work[serial] = device
        started.append(self._tasks.task(serial, device, version))
    return started

  def refusal(
    self, push: Push, weights: Sequence[np.ndarray], version: int
  ) -> str | None:
    """Ends a push's task; returns why the push is refused, None if it is not.

    Args:
      push: which came from anywhere.
      weights: of the server's model.
      version: of the server's model.
    """
    serial = push.task.serial
    if serial not in self._awaited:
      return server.NOT_AWAITED
    self._awaited.remove(serial)
    self._at_work.pop(serial, None)
    refused = server.refusal(push, weights, version)
    if refused is not None or self._max_staleness is None:
      return refused
    if server.staleness(push, version) > self._max_staleness:
      return server.TOO_STALE
    return None

  def give_up(self, task: Task) -> None:
    """Makes room for another task; the push of this one may still come."""
    self._at_work.pop(task.serial, None)

  def state(self) -> dict[str, int]:
    """Returns what a run that goes on needs, as JSON."""
    return {"next_serial": self._next_serial}

  def restore(self, state: Mapping[str, int]) -> None:
    """Becomes what it was when it said this; no task is awaited any more."""
    self._next_serial = int(state["next_serial"])
    self._awaited.clear()
    self._at_work.clear()
