"""Drives a server: what it asks goes to devices, what they push comes back.

The same loop runs the paper's experiments in one process and a cluster of
many. Only this thread changes the server, so each update is atomic: devices
read a model of one version, never half of two.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from robust_tf.federated.events import Event
from robust_tf.federated.server import Server
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task


class ParameterServerLostError(RuntimeError):
  """A process that holds the published model is gone, or hangs.

  This process cannot reach another in its place: the run goes on in a new one,
  from its latest checkpoint.
  """


class TrainingStalledError(RuntimeError):
  """The server has refused all that came for a long time."""


class Devices(Protocol):
  """Those who do tasks.

  Attributes:
    gives_update: whether they push x_tau - x_new, not x_new.
  """

  gives_update: bool

  def publish(self, weights: Sequence[np.ndarray], version: int) -> None:
    """Makes a model the one that tasks start from.

    Raises:
      ParameterServerLostError: it cannot be had any more.
    """

  def start(self, task: Task) -> None:
    """Has a task done; returns at once."""

  def next_push(self, timeout_s: float | None) -> Push | None:
    """Returns the next push to arrive; None if there is none in time.

    Args:
      timeout_s: how long to wait; None for as long as it takes.

    Raises:
      ParameterServerLostError: the published model is gone.
    """

  def retried(self) -> list[Task]:
    """Returns the tasks that were begun anew since this was last asked.

    Those whose process was lost; a task is in it once for each time.
    """


def run(
  server: Server,
  devices: Devices,
  versions: int,
  *,
  deadline_s: float | None = None,
  patience: int = 1000,
  on_event: Callable[[Event], None] = lambda event: None,
  on_version: Callable[[int], None] = lambda version: None,
) -> None:
  """Trains until the server's model was updated so often.

  Args:
    server: makes tasks and takes pushes.
    devices: do the tasks.
    versions: T, at which the run ends.
    deadline_s: how long a task may take before the server gives it up; None
      for as long as it takes.
    patience: after how many pushes in a row that were refused the run ends.
    on_event: is told of each event, in order.
    on_version: is called after each update, once devices can read it.

  Raises:
    ParameterServerLostError: the run cannot go on in this process.
    TrainingStalledError: `patience` pushes in a row were refused.
    ValueError: devices push models, and the server wants updates, or the other
      way round.
  """
  if devices.gives_update != server.wants_updates:
    raise ValueError(
      f"{type(server).__name__} wants"
      f" {'updates' if server.wants_updates else 'models'}: make LocalTraining"
      f" with gives_update={server.wants_updates}"
    )
  out: dict[int, tuple[Task, float]] = {}  # by serial, with when it is due
  refused = 0  # in a row
  devices.publish(server.weights, server.version)
  while server.version < versions:
    for task in server.assign():
      due = np.inf if deadline_s is None else time.monotonic() + deadline_s
      out[task.serial] = task, due
      on_event(Event.started(task))
      devices.start(task)
    push = devices.next_push(_time_left(out))
    for task in devices.retried():
      on_event(Event.retried(task, server.version))
    if push is None:
      for task in _overdue(out):
        del out[task.serial]
        server.give_up(task)
        on_event(Event.overdue(task, server.version))
      continue
    out.pop(push.task.serial, None)
    receipt = server.receive(push)
    if receipt.advanced:
      devices.publish(server.weights, server.version)
    on_event(Event.arrived(push, receipt, server.version))
    if receipt.advanced:
      on_version(server.version)
    refused = 0 if receipt.refused is None else refused + 1
    if refused == patience:
      raise TrainingStalledError(
        f"version {server.version}: the last {refused} pushes were refused, the"
        f" latest of device {push.task.device} as {receipt.refused}"
      )


def _time_left(out: dict[int, tuple[Task, float]]) -> float | None:
  first = min((due for _, due in out.values()), default=np.inf)
  return None if first == np.inf else max(0.0, first - time.monotonic())


def _overdue(out: dict[int, tuple[Task, float]]) -> list[Task]:
  now = time.monotonic()
  return [task for task, due in out.values() if due <= now]
