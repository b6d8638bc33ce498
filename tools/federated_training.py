"""Trains one model with FedAsync or SLSGD on simulated devices, for the tables.

A malicious device is that of the code which the authors of SLSGD released: it
starts from a new random model, and learns the labels 9 - y.
"""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np

from robust_tf import federated
from robust_tf.aggregators import trimmed_mean
from robust_tf.federated.partition import by_label
from robust_tf.federated.slsgd import mean
from robust_tf.training.data import Dataset
from tools import federated_cells
from tools.federated_cells import Cell
from tools.federated_cells import DEVICES_PER_ROUND
from tools.federated_cells import Experiment
from tools.federated_cells import FedAsyncCell
from tools.federated_cells import SLSGDCell
from tools.small_models import small_model

LOCAL_STEPS = 10
LEARNING_RATE = 0.1
PROXIMAL_WEIGHT = 0.005  # FedAsync's rho
HIDDEN = 64
# When FedAsync's alpha becomes a half of itself, and SLSGD's another one.
ASYNCHRONOUS_DROP, ROUNDS_DROP = 0.4, 0.5

_MALICIOUS, _START = 8, 9  # set streams of random numbers apart


@dataclasses.dataclass(frozen=True, eq=False)
class MaliciousTasks:
  """`DeviceTasks` of which, in every round, as many are malicious.

  Attributes:
    tasks: the tasks of honest devices.
    num_malicious: q.
  """

  tasks: federated.DeviceTasks
  num_malicious: int

  @property
  def num_devices(self) -> int:
    """How many devices there are."""
    return self.tasks.num_devices

  @property
  def seed(self) -> int:
    """Of all draws."""
    return self.tasks.seed

  def task(self, serial: int, device: int, version: int):
    """Returns a device's next task; that of a malicious one is flipped."""
    task = self.tasks.task(serial, device, version)
    place = serial % DEVICES_PER_ROUND
    rng = np.random.default_rng([self.seed, _MALICIOUS, version])
    malicious = rng.choice(DEVICES_PER_ROUND, self.num_malicious, replace=False)
    return dataclasses.replace(task, flipped=bool(place in malicious))


def train(
  cell: Cell, experiment: Experiment, data: Dataset, seed: int
) -> list[tuple[int, float]]:
  """Returns how well the model does as training goes on.

  Args:
    cell: the method.
    experiment: who learns.
    data: what is learnt: images of 28 x 28 and more by a small convolutional
      network, all else by a perceptron.
    seed: of everything.

  Returns:
    (pushes so far, fraction of test examples with the right answer), in order;
    an answer that is not finite is wrong.
  """
  model = small_model(data, seed, HIDDEN)
  variables = federated.exchanged_variables(model)
  weights = [v.numpy() for v in variables]
  server = _server(cell, experiment, weights, _tasks(experiment, data, seed))
  is_async = isinstance(cell, FedAsyncCell)
  devices = federated.SimulatedDevices(
    federated.LocalTraining(
      model,
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.SGD(LEARNING_RATE),
      proximal_weight=PROXIMAL_WEIGHT if is_async else 0.0,
      gives_update=server.wants_updates,
    ),
    federated.DeviceData(data.x_train, data.y_train, data.num_classes),
    max_staleness=cell.max_staleness if is_async else 0,
    seed=seed,
    start_of=functools.partial(_start_of, weights=weights, seed=seed),
  )
  versions = num_versions(cell, experiment)
  every = max(1, versions // federated_cells.NUM_POINTS)
  pushes_per_version = 1 if is_async else DEVICES_PER_ROUND
  curve = []

  def evaluate(version: int) -> None:
    if version % every == 0:
      for variable, value in zip(variables, server.weights, strict=True):
        variable.assign(value)
      curve.append((version * pushes_per_version, _accuracy(model, data)))

  federated.run(server, devices, versions, on_version=evaluate)
  return curve


def num_versions(cell: Cell, experiment: Experiment) -> int:
  """Returns how often the model is updated."""
  if isinstance(cell, FedAsyncCell):
    return experiment.pushes
  if isinstance(cell, SLSGDCell):
    return experiment.rounds
  return experiment.pushes // DEVICES_PER_ROUND


def _tasks(experiment, data: Dataset, seed: int) -> federated.DeviceTasks:
  labels = data.y_train
  if experiment.examples_per_device is not None:
    labels = labels[: experiment.num_devices * experiment.examples_per_device]
  return federated.DeviceTasks(
    by_label(labels, experiment.num_devices, seed),
    experiment.batch_size,
    LOCAL_STEPS,
    seed,
  )


def _server(cell: Cell, experiment: Experiment, weights, tasks):
  versions = num_versions(cell, experiment)
  if isinstance(cell, FedAsyncCell):
    alpha, first_late = cell.mixing_weight, ASYNCHRONOUS_DROP * versions
    return federated.FedAsync(
      weights,
      tasks,
      mixing_weight=lambda t: alpha if t < first_late else alpha / 2,
      staleness=federated_cells.STALENESS[cell.staleness](),
      concurrency=1,  # the devices make their models stale
    )
  if isinstance(cell, SLSGDCell):
    early, late = cell.mixing_weight, cell.late_mixing_weight
    first_late = ROUNDS_DROP * versions
    return federated.SLSGD(
      weights,
      MaliciousTasks(tasks, cell.num_malicious),
      devices_per_round=DEVICES_PER_ROUND,
      aggregator=(
        functools.partial(trimmed_mean, trim=cell.trim) if cell.trim else mean
      ),
      mixing_weight=lambda t: early if t < first_late else late,
    )
  return federated.fed_avg(weights, tasks, devices_per_round=DEVICES_PER_ROUND)


def _start_of(
  task, weights: Sequence[np.ndarray], seed: int
) -> list[np.ndarray] | None:
  """Returns where a malicious device starts; None where it should."""
  if not task.flipped:
    return None
  rng = np.random.default_rng([seed, _START, task.serial])
  return [
    np.zeros_like(x)
    if x.ndim < 2
    else keras.initializers.HeNormal(int(rng.integers(2**31)))(x.shape).numpy()
    for x in weights
  ]


def _accuracy(model: keras.Model, data: Dataset) -> float:
  logits = model(data.x_test, training=False).numpy()
  finite = np.isfinite(logits).all(axis=1)
  return float(np.mean(finite & (logits.argmax(axis=1) == data.y_test)))
