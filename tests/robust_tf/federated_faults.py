"""The coordinator of a cluster whose workers are lost, hang and lie.

    python -m tests.robust_tf.federated_faults DIRECTORY

The workers are processes, and lost for real. What happened in each run is
written to NAME.pickle.
"""

import contextlib
import dataclasses
import functools
import gc
import os
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf

from robust_tf import federated
from robust_tf.distribute import parameter_server
from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import OVERDUE
from robust_tf.federated.events import REFUSED
from tests.robust_tf import federated_cluster as cluster
from tests.robust_tf import federated_replay as replay
from tools import federated_servers

START_S = 60
DEADLINE_S = 1.0
PUSHED = (ACCEPTED, REFUSED)
# Long enough for a process to be lost in the middle of a task.
LONG_TASKS = {"local_steps": 400}
NAN, SHAPE, VERSION, FAILS = range(4)  # devices, and what is wrong with them
MARK = 77.0  # of the examples of a device that is to do something else


class Faulty:
  """Local training that goes wrong where the examples say so."""

  def __init__(self, training):
    self._training = training
    self.specs = training.specs
    self.gives_update = training.gives_update

  def __call__(self, start, inputs, labels, seed):
    values = self._training(start, inputs, labels, seed)
    return tf.cond(
      tf.reduce_any(inputs == MARK),
      lambda: [tf.zeros([7] * x.shape.rank, x.dtype) for x in values],
      lambda: values,
    )


class WrongVersion:
  """Devices, of which one says that its model is of another version."""

  def __init__(self, devices):
    self._devices = devices
    self.publish = devices.publish
    self.start = devices.start
    self.retried = devices.retried
    self.gives_update = devices.gives_update

  def next_push(self, timeout_s):
    push = self._devices.next_push(timeout_s)
    if push is None or push.task.device != VERSION:
      return push
    return dataclasses.replace(push, version=push.version + 1000)


def run(server, devices, versions, recording=None) -> replay.Recording:
  """Runs a server; returns what happened, after what is in `recording`."""
  recording = recording or replay.Recording()
  federated.run(
    server,
    cluster.Recorded(devices, recording),
    versions,
    on_event=recording.events.append,
  )
  return recording


def liars(remote) -> replay.Recording:
  """Has some devices push what must be refused."""
  tasks = replay.device_tasks()
  inputs = replay.X.copy()
  inputs[tasks.parts[NAN]] = np.nan
  inputs[tasks.parts[SHAPE]] = MARK
  devices = WrongVersion(remote(inputs, replay.Y, Faulty))
  return run(cluster.fed_async(tasks, concurrency=3), devices, 40)


def failure(remote) -> str:
  """Has a device's work fail; returns what is said of it."""
  labels = replay.Y.copy()
  labels[replay.device_tasks().parts[FAILS]] = replay.CLASSES

  def checked(training):
    def checked_training(start, inputs, labels, seed):
      in_range = tf.debugging.assert_less(labels, replay.CLASSES, "no class")
      with tf.control_dependencies([in_range]):
        return training(start, tf.identity(inputs), labels, seed)

    checked_training.specs = training.specs
    checked_training.gives_update = training.gives_update
    return checked_training

  devices = remote(replay.X, labels, checked)
  try:
    run(cluster.fed_async(replay.device_tasks(), concurrency=3), devices, 40)
  except RuntimeError as error:
    return str(error)
  return ""


def hung(remote, servers, server) -> replay.Recording:
  """Has a worker hang until its task is overdue; ends when its push is there.

  The first task that is overdue is that of the worker, or waits for it.
  """
  recording = replay.Recording()
  ends_at = time.monotonic() + START_S

  def on_version(version):
    if version == 4:
      servers.stop("worker", 0)
      gc.collect()  # what is freed meanwhile must not wait for it
    if overdue(recording):  # and without it a round is over, if there are any
      servers.resume("worker", 0)
    pushed = {x.serial for x in recording.events if x.kind in PUSHED}
    if pushed & overdue(recording):
      raise StopIteration
    if time.monotonic() > ends_at:
      raise TimeoutError(f"no late push in {START_S} s")

  with contextlib.suppress(StopIteration):
    federated.run(
      server,
      cluster.Recorded(remote(), recording),
      10**6,
      deadline_s=DEADLINE_S,
      on_event=recording.events.append,
      on_version=on_version,
    )
  recording.models[server.version] = replay.flat(server.weights)
  return recording


def overdue(recording) -> set[int]:
  """Returns the serials of tasks that were given up."""
  return {x.serial for x in recording.events if x.kind == OVERDUE}


def killed(remote, servers) -> replay.Recording:
  """Loses one worker; then the other, once the first does tasks again."""
  server = cluster.fed_async(replay.device_tasks(**LONG_TASKS), concurrency=4)
  devices = remote()
  recording = replay.Recording()

  def train(versions):
    run(server, devices, server.version + versions, recording)

  train(5)
  servers.kill("worker", 0)
  train(10)
  servers.start("worker", 0)
  done, deadline = devices.tasks_done[0], time.monotonic() + START_S
  while devices.tasks_done[0] == done:
    if time.monotonic() > deadline:
      raise TimeoutError(f"worker 0 did nothing in {START_S} s")
    train(1)
  servers.kill("worker", 1)
  train(10)
  return recording


def main(directory: str) -> None:
  """Runs what goes wrong, one after another."""
  folder = pathlib.Path(directory)
  with federated_servers.run(num_workers=2, num_servers=1) as servers:
    coordinator = parameter_server.connect(servers.cluster, START_S)
    model = cluster.make_model()

    def remote(x=replay.X, y=replay.Y, wrap=lambda x: x, gives_update=False):
      training = cluster.local_training(model, gives_update=gives_update)
      data = federated.DeviceData(x, y, replay.CLASSES)
      return federated.RemoteDevices(coordinator, wrap(training), data)

    liars(remote).save(folder / "liars.pickle")
    (folder / "failure.txt").write_text(failure(remote))
    tasks = replay.device_tasks(**LONG_TASKS)
    server = cluster.fed_async(tasks, concurrency=4)
    hung(remote, servers, server).save(folder / "hung_fed_async.pickle")
    server = federated.SLSGD(replay.INITIAL, tasks, devices_per_round=3)
    updates = functools.partial(remote, gives_update=True)
    hung(updates, servers, server).save(folder / "hung_slsgd.pickle")
    killed(remote, servers).save(folder / "killed.pickle")


if __name__ == "__main__":
  main(sys.argv[1])
  sys.stdout.flush()
  os._exit(0)
