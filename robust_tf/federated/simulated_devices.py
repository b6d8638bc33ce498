"""Devices of this process, which do one task after another.

They stand in for a cluster: the algorithms' reference, and the way in which
the papers measured them. Where a real device starts from the model that there
is when its turn comes, a simulated one starts from one of the latest models,
drawn at random: so a staleness is chosen, and its effect measured.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from robust_tf.federated.local_training import DeviceData
from robust_tf.federated.local_training import LocalTraining
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task

_STALENESS = 7  # sets the stream of random numbers apart from others

Weights = Sequence[np.ndarray]


class SimulatedDevices:
  """Does tasks in the order in which they are started."""

  def __init__(
    self,
    local_training: LocalTraining,
    data: DeviceData,
    *,
    max_staleness: int = 0,
    seed: int = 0,
    start_of: Callable[[Task], Weights | None] = lambda task: None,
  ):
    """Takes the devices' work and data.

    Args:
      local_training: what a device does.
      data: the examples of all devices.
      max_staleness: K; a task starts from the model of 0 to K versions ago,
        each as likely (Xie, Koyejo and Gupta, Asynchronous Federated
        Optimization, OPT 2020, section 6), or of as many as there were.
      seed: of these draws.
      start_of: where a poisoned device starts; None for where it should.

    Raises:
      ValueError: `max_staleness` is below 0.
    """
    if max_staleness < 0:
      raise ValueError(f"max_staleness={max_staleness} must be at least 0")
    self.gives_update = local_training.gives_update
    self._seed = seed
    self._start_of = start_of
    self._tasks = collections.deque()
    self._models = collections.deque(maxlen=max_staleness + 1)
    self._version = 0
    inputs, labels = tf.constant(data.inputs), tf.constant(data.labels)

    @tf.function(autograph=False, reduce_retracing=True)
    def work(start, center, examples, flipped, seed):
      batches = data.batches(inputs, labels, examples, flipped)
      return local_training(start, *batches, seed, center)

    self._work = work

  def publish(self, weights: Weights, version: int) -> None:
    """Makes a model the one that tasks start from."""
    if not (self._models and version == self._version):
      self._models.append(tuple(weights))
    self._version = version

  def start(self, task: Task) -> None:
    """Lines a task up."""
    self._tasks.append(task)

  def next_push(self, timeout_s: float | None) -> Push:
    """Does the next task, however long it takes.

    Raises:
      RuntimeError: there is none, and so nothing to wait for.
    """
    del timeout_s
    if not self._tasks:
      raise RuntimeError("no task was started that is not done")
    task = self._tasks.popleft()
    staleness = self._staleness(task)
    center = self._models[-1 - staleness]
    start = self._start_of(task)
    values = self._work(
      _tensors(center if start is None else start),
      _tensors(center),
      tf.constant(task.examples),
      tf.constant(task.flipped),
      tf.constant(task.seed),
    )
    return Push(
      task, self._version - staleness, tuple(x.numpy() for x in values)
    )

  def retried(self) -> list[Task]:
    """Returns nothing: no process is lost here that this one survives."""
    return []

  def state(self) -> Mapping[str, object]:
    """Returns what a run that goes on needs: the latest models, as arrays."""
    return {"version": self._version, "models": list(self._models)}

  def restore(self, version: int, models: Sequence[Weights]) -> None:
    """Becomes what it was when `state` returned these."""
    self._tasks.clear()
    self._models.clear()
    self._models.extend(tuple(weights) for weights in models)
    self._version = version

  def _staleness(self, task: Task) -> int:
    if len(self._models) == 1:
      return 0
    rng = np.random.default_rng([self._seed, _STALENESS, task.serial])
    return int(rng.integers(len(self._models)))


def _tensors(weights: Weights) -> list[tf.Tensor]:
  return [tf.constant(x) for x in weights]
