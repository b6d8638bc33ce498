"""Devices on the workers of a cluster, which are lost, hang and come back.

A task is a function of the published model, the worker's examples and the
task's own numbers: TensorFlow's coordinator gives it to any free worker, and
to another if that one is lost. A push carries the version of the model that
was read, so it does not matter when that was, or how often.
"""

import collections
import queue
import re
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures

import numpy as np
import tensorflow as tf

from robust_tf.distribute import message
from robust_tf.distribute.hooks import worker_calls
from robust_tf.distribute.parameter_server import PublishedModel
from robust_tf.distribute.parameter_server import TORN
from robust_tf.federated.local_training import DeviceData
from robust_tf.federated.local_training import LocalTraining
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task
from robust_tf.federated.training_loop import ParameterServerLostError

# After so long without a push the parameter servers are asked if they live.
_QUIET_S = 2.0


class RemoteDevices:
  """Has the tasks of one run done by the workers of a cluster.

  A worker does one task at a time. Another run needs an object of its own, or
  it would get pushes that the first one did not wait for.

  A worker that is lost and started anew, at the same address, is given tasks
  again as soon as no other one is lost: TensorFlow lets all come back at once.

  Attributes:
    tasks_done: how many tasks each worker has done, by its index.
  """

  def __init__(
    self,
    coordinator: tf.distribute.coordinator.ClusterCoordinator,
    local_training: LocalTraining,
    data: DeviceData,
    *,
    server_timeout_s: float = 60.0,
  ):
    """Sends the work and the examples to the workers.

    Each worker gets the examples of all devices, and again when it comes back.

    Args:
      coordinator: of the cluster.
      local_training: what a device does.
      data: the examples of all devices.
      server_timeout_s: how long a parameter server may take to answer; then it
        counts as lost.
    """
    self.gives_update = local_training.gives_update
    self._coordinator = coordinator
    self._server_timeout_s = server_timeout_s
    self._published = PublishedModel(local_training.specs)
    inputs, labels = tf.constant(data.inputs), tf.constant(data.labels)

    def examples_of_all():
      return tf.data.Dataset.from_tensors((inputs, labels)).repeat()

    self._examples = iter(
      coordinator.create_per_worker_dataset(examples_of_all)
    )
    self._work = _Work(self._published, local_training, data)
    self._arrivals: queue.SimpleQueue[tuple[Task, np.ndarray | Exception]] = (
      queue.SimpleQueue()
    )
    self.tasks_done: collections.Counter[int] = collections.Counter()
    self._lock = threading.Lock()
    self._begun: set[int] = set()  # serials
    self._retried: list[Task] = []
    self._heard = time.monotonic()

  def publish(self, weights: Sequence[np.ndarray], version: int) -> None:
    """Makes a model the one that tasks start from.

    Raises:
      ParameterServerLostError: a parameter server cannot be reached, or does
        not answer.
    """
    self._ask_servers(self._published.write, weights, version)

  def start(self, task: Task) -> None:
    """Has a task done by the next worker that is free; returns at once."""
    request = tf.constant(
      np.concatenate(
        [
          [task.seed, task.flipped, len(task.examples)],
          task.examples.reshape(-1),
        ]
      ).astype(np.int32)
    )
    worker_calls.schedule_call(
      self._coordinator, self._attempt, (task, request, self._examples)
    )

  def next_push(self, timeout_s: float | None) -> Push | None:
    """Returns the next push to arrive; None if there is none in time.

    Args:
      timeout_s: how long to wait; None for as long as it takes.

    Raises:
      ParameterServerLostError: a parameter server cannot be reached, or does
        not answer.
      RuntimeError: a device's work cannot be done.
    """
    deadline = np.inf if timeout_s is None else time.monotonic() + timeout_s
    while True:
      left = max(0.0, deadline - time.monotonic())
      try:
        task, result = self._arrivals.get(timeout=min(left, _QUIET_S))
      except queue.Empty:
        if time.monotonic() - self._heard >= _QUIET_S:
          self._check_published()
        if left <= _QUIET_S:
          return None
        continue
      self._heard = time.monotonic()
      if not isinstance(result, Exception):
        version, values = self._work.pushed(result)
        return Push(task, version, values)
      self._check_published()
      if not worker_calls.is_parameter_server_failure(result):
        raise RuntimeError(
          f"task {task.serial} of device {task.device} failed: {result}"
        ) from result
      self.start(task)  # it was the way there that was lost

  def retried(self) -> list[Task]:
    """Returns the tasks that were begun anew since this was last asked."""
    with self._lock:
      retried, self._retried = self._retried, []
    return retried

  def _attempt(self, task: Task, request: tf.Tensor, examples) -> None:
    """Does a task on the worker whose thread this is."""
    with self._lock:
      if task.serial in self._begun:
        self._retried.append(task)
      self._begun.add(task.serial)
    try:
      result = self._work(examples, request)
    except Exception as error:  # whatever it is, the other thread is told
      if worker_calls.is_worker_failure(error):
        raise  # to be called again
      result = error
    with self._lock:
      self._begun.remove(task.serial)
      self.tasks_done[worker_calls.current_worker()] += 1
    self._arrivals.put((task, result))

  def _check_published(self) -> None:
    self._ask_servers(self._published.check)
    self._heard = time.monotonic()

  def _ask_servers(self, call: Callable, *args) -> None:
    """Calls what ends when all parameter servers have answered."""
    answer: futures.Future[None] = futures.Future()

    def ask():
      try:
        answer.set_result(call(*args))
      except Exception as error:  # whatever it is, the other thread is told
        answer.set_exception(error)

    # No answer comes of a server that hangs, and no process waits for a daemon.
    threading.Thread(target=ask, daemon=True).start()
    try:
      answer.result(self._server_timeout_s)
    except TimeoutError:
      raise ParameterServerLostError(
        f"a parameter server has not answered for {self._server_timeout_s:g} s"
      ) from None
    except tf.errors.OpError as error:
      raise _lost(error) from error


class _Work:
  """A task as a function of what is on a worker and of few numbers."""

  def __init__(
    self,
    published: PublishedModel,
    local_training: LocalTraining,
    data: DeviceData,
  ):
    ranks = []

    def work(examples, request):
      start, version = published.read()
      steps = request[2]
      chosen = tf.reshape(request[3:], [steps, -1])
      # No work for a model that is to be read again.
      chosen = chosen[: tf.where(version == TORN, 0, steps)]
      batches = data.batches(*next(examples), chosen, request[1] > 0)
      values = local_training(start, *batches, request[0])
      ranks.extend(x.shape.rank for x in values)
      return message.bytes_of_tensors(
        [version, *(tf.shape(x, tf.int64) for x in values), *values]
      )

    # Made once: each worker's thread would make it for its own device.
    self._function = tf.function(work, autograph=False).get_concrete_function(
      tf.data.IteratorSpec(
        (
          tf.TensorSpec(data.inputs.shape, data.inputs.dtype),
          tf.TensorSpec(data.labels.shape, data.labels.dtype),
        )
      ),
      tf.TensorSpec([None], tf.int32),
    )
    self._dtypes = [spec.dtype for spec in local_training.specs]
    self._head_specs = [
      tf.TensorSpec([], tf.int64),
      *(tf.TensorSpec([rank], tf.int64) for rank in ranks),
    ]
    self._head_bytes = message.num_bytes(self._head_specs)

  def __call__(self, examples, request: tf.Tensor) -> np.ndarray:
    """Returns the bytes that a worker sends."""
    while True:
      result = self._function(examples, request).numpy()
      if self._head(result)[0] != TORN:
        return result

  def pushed(self, result: np.ndarray) -> tuple[int, tuple[np.ndarray, ...]]:
    """Returns the version and the values that are in these bytes."""
    version, *shapes = self._head(result)
    specs = [
      tf.TensorSpec(shape, dtype)
      for shape, dtype in zip(shapes, self._dtypes, strict=True)
    ]
    values = message.arrays_of_bytes(result[self._head_bytes :], specs)
    return int(version), tuple(values)

  def _head(self, result: np.ndarray) -> list[np.ndarray]:
    """Returns the version and the shapes, as each value comes with its own."""
    return message.arrays_of_bytes(result[: self._head_bytes], self._head_specs)


def _lost(error: tf.errors.OpError) -> ParameterServerLostError:
  named = re.search(r"/job:ps/replica:0/task:(\d+)", error.message)
  which = f"parameter server {named[1]}" if named else "a parameter server"
  return ParameterServerLostError(f"{which} cannot be reached any more")
