"""Trains by FedAsync for long while workers are killed, hang and push NaN.

    python -m tools.soak_fed_async --updates=20000

Every so many updates, and not before the last one that was away is back, one
of these befalls a worker, drawn at random: its process is killed and started
anew; it hangs for up to twice the deadline of a task; a device that it works
for pushes NaN. Then what became of each task is
added up, and shown with the memory of the coordinator and of the parameter
server. The exit code is 1 if the model is not finite, a push was taken twice,
or a task is missing.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
import threading
import time

import keras
import numpy as np
from absl import app
from absl import flags

from robust_tf import federated
from robust_tf.distribute import parameter_server
from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import Event
from robust_tf.federated.events import OVERDUE
from robust_tf.federated.events import REFUSED
from robust_tf.federated.events import RETRIED
from robust_tf.federated.events import STARTED
from robust_tf.federated.tasks import Task
from robust_tf.training import private_network
from tools import federated_servers

NUM_DEVICES, NUM_EXAMPLES, FEATURES, CLASSES = 100, 2000, 32, 10
NUM_WORKERS, CONCURRENCY = 2, 4
# So many that a process is there again before the next fault is due.
LOCAL_STEPS = 40
START_S, DEADLINE_S = 120.0, 2.0
# Until then processes fill their caches: traces, threads, connections.
WARM_UP = 0.1
FAULTS = ("kill", "hang", "nan")


class SometimesNaN:
  """Devices, one of which works on an example that is no number if told so."""

  def __init__(self, devices: federated.RemoteDevices):
    """Takes the devices; the last of their examples is NaN."""
    self.lies = False
    self._devices = devices
    self.publish = devices.publish
    self.next_push = devices.next_push
    self.retried = devices.retried
    self.gives_update = devices.gives_update

  def start(self, task: Task) -> None:
    """Has a task done, with other examples if one is to lie."""
    if self.lies:
      self.lies = False
      examples = np.full_like(task.examples, NUM_EXAMPLES)
      task = dataclasses.replace(task, examples=examples)
    self._devices.start(task)


class Faults:
  """What befalls workers."""

  def __init__(
    self,
    servers: federated_servers.Servers,
    devices: federated.RemoteDevices,
    liar: SometimesNaN,
    seed: int,
  ):
    """Does nothing yet."""
    self.counts = collections.Counter()
    self._servers = servers
    self._devices = devices
    self._liar = liar
    self._rng = np.random.default_rng(seed)
    self._lost: tuple[int, int] | None = None  # a worker, and its tasks then

  def next(self) -> bool:
    """Has something go wrong, if all workers are there; returns if they are."""
    if self._lost and self._devices.tasks_done[self._lost[0]] == self._lost[1]:
      return False
    fault = FAULTS[self._rng.integers(len(FAULTS))]
    worker = int(self._rng.integers(NUM_WORKERS))
    self.counts[fault] += 1
    if fault == "kill":
      self._servers.kill("worker", worker)
      self._servers.start("worker", worker)
    elif fault == "hang":
      self._servers.stop("worker", worker)
      seconds = float(self._rng.uniform(0, 2 * DEADLINE_S))
      timer = threading.Timer(seconds, self._resume, (worker,))
      timer.daemon = True
      timer.start()
    else:
      self._liar.lies = True
      return True
    self._lost = worker, self._devices.tasks_done[worker]
    return True

  def _resume(self, worker: int) -> None:
    with contextlib.suppress(KeyError, ProcessLookupError):
      self._servers.resume("worker", worker)


class Account:
  """What became of each task."""

  def __init__(self):
    """Knows of no task."""
    self.kinds = collections.Counter()
    self.twice = 0
    self._out: set[int] = set()
    self._overdue: set[int] = set()

  def add(self, event: Event) -> None:
    """Counts an event."""
    self.kinds[event.kind] += 1
    if event.kind == STARTED:
      self._out.add(event.serial)
    elif event.kind == OVERDUE:
      self._out.remove(event.serial)
      self._overdue.add(event.serial)
    elif event.kind in (ACCEPTED, REFUSED):
      where = self._out if event.serial in self._out else self._overdue
      self.twice += event.serial not in where
      where.discard(event.serial)

  def summary(self) -> dict[str, int]:
    """Returns how many tasks ended how; the sum is that of those started."""
    return {
      "started": self.kinds[STARTED],
      "accepted": self.kinds[ACCEPTED],
      "refused": self.kinds[REFUSED],
      "given up, and not pushed since": len(self._overdue),
      "at work at the end": len(self._out),
      "pushed twice": self.twice,
      "given up": self.kinds[OVERDUE],
      "begun anew": self.kinds[RETRIED],
    }

  def is_whole(self) -> bool:
    """Returns whether each task has one end, or is at work."""
    return self.twice == 0 and len(self._out) <= CONCURRENCY


def resident_mib(pid: int) -> float:
  """Returns the memory of a process that is in use."""
  lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
  kib = next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
  return int(kib) / 1024


def make_devices(coordinator) -> tuple[federated.RemoteDevices, list]:
  """Returns the devices, and the initial weights."""
  keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(NUM_EXAMPLES + 1, FEATURES)).astype(np.float32)
  inputs[NUM_EXAMPLES] = np.nan
  labels = rng.integers(0, CLASSES, NUM_EXAMPLES + 1).astype(np.int32)
  model = keras.Sequential(
    [
      keras.Input((FEATURES,)),
      keras.layers.Dense(32, activation="relu"),
      keras.layers.Dense(CLASSES),
    ]
  )
  training = federated.LocalTraining(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.05),
  )
  data = federated.DeviceData(inputs, labels, CLASSES)
  weights = [v.numpy() for v in federated.exchanged_variables(model)]
  return federated.RemoteDevices(coordinator, training, data), weights


def soak(
  servers: federated_servers.Servers, updates: int, fault_every: int, seed: int
) -> dict:
  """Trains; returns what is to be reported.

  Args:
    servers: the processes of the cluster.
    updates: how many.
    fault_every: after how many updates something goes wrong.
    seed: of what does.
  """
  coordinator = parameter_server.connect(servers.cluster, START_S)
  remote, weights = make_devices(coordinator)
  devices = SometimesNaN(remote)
  faults = Faults(servers, remote, devices, seed)
  account = Account()
  parts = np.array_split(np.arange(NUM_EXAMPLES), NUM_DEVICES)
  server = federated.FedAsync(
    weights,
    federated.DeviceTasks(parts, 10, LOCAL_STEPS, seed),
    staleness=federated.polynomial(),
    concurrency=CONCURRENCY,
  )
  memory = []
  due = fault_every
  begun = time.monotonic()

  def on_version(version: int) -> None:
    nonlocal due
    if version in (int(WARM_UP * updates), updates):
      pids = (os.getpid(), servers.pid("ps", 0))
      memory.append([round(resident_mib(pid), 1) for pid in pids])
    if due <= version < updates and faults.next():
      due += fault_every
      print(f"{version}: {account.summary()}", file=sys.stderr, flush=True)

  federated.run(
    server,
    devices,
    updates,
    deadline_s=DEADLINE_S,
    on_event=account.add,
    on_version=on_version,
  )
  finite = all(bool(np.isfinite(x).all()) for x in server.weights)
  return {
    "ok": finite and account.is_whole(),
    "updates": server.version,
    "seconds": round(time.monotonic() - begun, 1),
    "faults": dict(faults.counts),
    "tasks": account.summary(),
    "the model is finite": finite,
    "MiB of coordinator and parameter server, early and late": memory,
  }


def main(argv: list[str]) -> None:
  """Prints a report, and exits."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  logging.getLogger("tensorflow").setLevel(logging.CRITICAL)
  with federated_servers.run(NUM_WORKERS, 1) as servers:
    report = soak(servers, values.updates, values.fault_every, values.seed)
  print(json.dumps(report, indent=1), flush=True)
  os._exit(0 if report["ok"] else 1)  # the servers are gone


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_integer("updates", 20000, "How many.", lower_bound=10)
  flags.DEFINE_integer(
    "fault_every", 500, "After how many updates one is.", lower_bound=1
  )
  flags.DEFINE_integer("seed", 0, "Of the faults, and of the devices' work.")


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  private_network.enter()  # servers ask for no password
  define_flags()
  app.run(main)
