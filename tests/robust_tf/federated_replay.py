"""A small problem for federated runs, and NumPy that replays what they did.

A run records its tasks, its events and its models; the replay computes, in
float64 and from the definitions alone, what the models must have been.
"""

import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np

from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import Event
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Task
from robust_tf.federated.validation_examples import validation_examples
from robust_tf.training import child_processes
from tests.robust_tf import oracles
from tests.robust_tf.server_network import server_network

CLASSES, FEATURES, EXAMPLES = 3, 5, 200
RATE, RHO = 0.2, 0.3  # of the local steps
MIXING, DECAY = 0.6, 0.5  # of FedAsync
SERVER_BATCH, SERVER_SEED, REFRESH = 16, 5, 10  # of Zeno and Zeno++
SCORE_RHO, SERVER_RATE = 1e-3, 0.1

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
Y = _RNG.integers(0, CLASSES, EXAMPLES).astype(np.int32)
INITIAL = [
  _RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32),
  _RNG.normal(size=CLASSES).astype(np.float32),
]
# A push and an update round float32 a few times; the models stay below 4 and
# contract, so that errors do not add up without bound.
TOLERANCE = 1e-5


def run_module(name: str, *args, timeout_s: float) -> None:
  """Runs a module that is the coordinator of a cluster, and checks its end."""
  with server_network() as prefix:
    ended = subprocess.run(
      [*prefix, sys.executable, "-m", name, *map(str, args)],
      env={
        **child_processes.peer_environment(os.environ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
      },
      capture_output=True,
      text=True,
      timeout=timeout_s,
      check=False,
    )
  assert ended.returncode == 0, ended.stderr[-4000:]


def device_tasks(num_devices=10, **arguments) -> DeviceTasks:
  """Returns tasks of devices that share the examples."""
  parts = np.array_split(np.arange(EXAMPLES), num_devices)
  defaults = {"batch_size": 4, "local_steps": (2, 6), "seed": 0}
  return DeviceTasks(parts, **{**defaults, **arguments})


@dataclasses.dataclass
class Recording:
  """What happened in a run: its events, and, by number, tasks and models."""

  events: list[Event] = dataclasses.field(default_factory=list)
  tasks: dict[int, Task] = dataclasses.field(default_factory=dict)
  models: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

  def save(self, path) -> None:
    """Writes it to a file."""
    with open(path, "wb") as file:
      pickle.dump(vars(self), file)

  @classmethod
  def load(cls, path) -> "Recording":
    """Returns what was saved."""
    with open(path, "rb") as file:
      return cls(**pickle.load(file))

  def accepted(self) -> list[Event]:
    """Returns the pushes that were taken, in order."""
    return [event for event in self.events if event.kind == ACCEPTED]


def flat(weights) -> np.ndarray:
  """Returns a model as one vector, in float64."""
  return np.concatenate([np.ravel(x).astype(np.float64) for x in weights])


def _gradient(x: np.ndarray, examples, flipped: bool) -> np.ndarray:
  """Returns the gradient of the mean cross-entropy of a linear model."""
  kernel = x[:-CLASSES].reshape(FEATURES, CLASSES)
  z, y = X[examples].astype(np.float64), Y[examples]
  if flipped:
    y = CLASSES - 1 - y
  logits = z @ kernel + x[-CLASSES:]
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p /= p.sum(axis=1, keepdims=True)
  p[np.arange(len(y)), y] -= 1
  p /= len(y)
  return np.concatenate([(z.T @ p).ravel(), p.sum(axis=0)])


def _loss(x: np.ndarray, examples) -> float:
  kernel = x[:-CLASSES].reshape(FEATURES, CLASSES)
  logits = X[examples].astype(np.float64) @ kernel + x[-CLASSES:]
  largest = logits.max(axis=1)
  sums = np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
  return float(
    np.mean(sums + largest - logits[np.arange(len(logits)), Y[examples]])
  )


def _server_batch(version: int) -> np.ndarray:
  return validation_examples(EXAMPLES, SERVER_BATCH, SERVER_SEED, version)


def local_model(start: np.ndarray, task: Task) -> np.ndarray:
  """Returns what a device makes of a model, by Algorithm 1 of FedAsync."""
  x = start
  for examples in task.examples:
    step = _gradient(x, examples, task.flipped) + RHO * (x - start)
    x = x - RATE * step
  return x


def fed_async(recording: Recording) -> dict[int, np.ndarray]:
  """Returns the models of `FedAsync` with alpha and polynomial staleness."""
  models = {0: flat(INITIAL)}
  for t, event in enumerate(recording.accepted()):
    assert event.version <= t and event.server_version == t + 1
    alpha = MIXING * (t - event.version + 1.0) ** -DECAY
    new = local_model(models[event.version], recording.tasks[event.serial])
    models[t + 1] = (1 - alpha) * models[t] + alpha * new
  return models


def slsgd(recording: Recording, rule, mixing=1.0) -> dict[int, np.ndarray]:
  """Returns the models of `SLSGD`.

  Args:
    recording: of the run.
    rule: one update of a matrix of updates, and of the model and its version.
    mixing: alpha.
  """
  models = {0: flat(INITIAL)}
  serials = []
  for event in recording.accepted():
    t = len(models) - 1
    assert event.version == t
    serials.append(event.serial)
    if event.server_version > t:
      x = models[t]
      updates = [
        x - local_model(x, recording.tasks[i]) for i in sorted(serials)
      ]
      models[t + 1] = x - mixing * rule(np.stack(updates), x, t)
      serials.clear()
  return models


def zeno(updates: np.ndarray, x: np.ndarray, version: int) -> np.ndarray:
  """Returns what Zeno makes of updates, suspecting one."""
  batch = _server_batch(version)
  return RATE * oracles.zeno(
    updates / RATE, lambda step: _loss(x - step, batch), RATE, 1, SCORE_RHO
  )


def zeno_plus_plus(recording: Recording) -> dict[int, np.ndarray]:
  """Returns the models of `ZenoPlusPlus`; checks whom it took."""
  models = {0: flat(INITIAL)}
  for event in recording.events:
    if event.reason not in (None, "rejected") or event.staleness is None:
      continue
    t = len(models) - 1
    refreshed = t // REFRESH * REFRESH
    v = _gradient(models[refreshed], _server_batch(refreshed), False)
    x = models[event.version]
    update = x - local_model(x, recording.tasks[event.serial])
    accepted, scaled = oracles.zeno_plus_plus(
      update, v, SERVER_RATE, SCORE_RHO, 0.0
    )
    assert accepted == (event.kind == ACCEPTED)
    if accepted:
      models[t + 1] = models[t] - SERVER_RATE * scaled
  return models


def assert_replayed(recording: Recording, expected) -> None:
  """Checks each model of a run, and that no push was taken twice."""
  serials = [event.serial for event in recording.accepted()]
  assert len(set(serials)) == len(serials)
  assert recording.models.keys() == expected.keys()
  for version, model in recording.models.items():
    np.testing.assert_allclose(
      model, expected[version], rtol=0, atol=TOLERANCE, err_msg=str(version)
    )
