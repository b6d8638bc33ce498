"""Times FedAsync on a cluster, and a plain loop that does as much.

For each number of workers a cluster of processes is started on loopback, with
one parameter server. On it FedAsync makes updates with `robust_tf.federated`,
and in turn a plain loop around `ClusterCoordinator.schedule` does: the same
local steps on the same examples, of a model that is read from variables on the
parameter server, mixed in NumPy and written back:

    python -m tools.bench_fed_async --workers=1 --workers=2 --workers=4

The table shows updates per second of each, at the median of all turns, and the
time of ours over that of the plain loop, at the median of the turns' ratios.
"""

import collections
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np
import rich
import tensorflow as tf
from absl import app
from absl import flags
from rich.table import Table

from robust_tf import federated
from robust_tf.distribute import parameter_server
from robust_tf.training import child_processes
from robust_tf.training.private_network import private_network
from tools import federated_servers

NUM_DEVICES, NUM_EXAMPLES, FEATURES, CLASSES = 100, 5000, 64, 10
RATE, MIXING = 0.05, 0.6
CONNECT_S = 120
RUN_S = 900


@dataclasses.dataclass(frozen=True)
class Timing:
  """What was measured with a number of workers.

  Attributes:
    workers: how many.
    ours: updates per second with `robust_tf.federated`.
    plain: updates per second of the plain loop.
    ratio: the time of ours over that of the plain loop.
  """

  workers: int
  ours: float
  plain: float
  ratio: float


class Problem:
  """What both loops train, and on what."""

  def __init__(self, width: int, local_steps: int):
    """Makes a network of one hidden layer."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    self.data = federated.DeviceData(
      rng.normal(size=(NUM_EXAMPLES, FEATURES)).astype(np.float32),
      rng.integers(0, CLASSES, NUM_EXAMPLES).astype(np.int32),
      CLASSES,
    )
    self.model = keras.Sequential(
      [
        keras.Input((FEATURES,)),
        keras.layers.Dense(width, activation="relu"),
        keras.layers.Dense(CLASSES),
      ]
    )
    self.training = federated.LocalTraining(
      self.model,
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.SGD(RATE),
      proximal_weight=0.005,
    )
    self.tasks = federated.DeviceTasks(
      np.array_split(np.arange(NUM_EXAMPLES), NUM_DEVICES), 10, local_steps, 0
    )
    self.weights = [
      v.numpy() for v in federated.exchanged_variables(self.model)
    ]


class Ours:
  """FedAsync with `robust_tf.federated`."""

  def __init__(self, coordinator, problem: Problem, concurrency: int):
    """Sends the examples to the workers."""
    self._server = federated.FedAsync(
      problem.weights,
      problem.tasks,
      mixing_weight=MIXING,
      concurrency=concurrency,
    )
    self._devices = federated.RemoteDevices(
      coordinator, problem.training, problem.data
    )

  def update(self, count: int) -> None:
    """Makes so many updates."""
    federated.run(self._server, self._devices, self._server.version + count)


class Plain:
  """The same as TensorFlow's guide would have it."""

  def __init__(self, coordinator, problem: Problem, concurrency: int):
    """Sends the examples to the workers."""
    self._coordinator = coordinator
    self._tasks = problem.tasks
    self._weights = list(problem.weights)
    self._serial = self._version = 0
    self._concurrency = concurrency
    self._results = collections.deque()
    with coordinator.strategy.scope():
      variables = [tf.Variable(x) for x in problem.weights]
      version = tf.Variable(0, dtype=tf.int64)
    data, training = problem.data, problem.training
    inputs, labels = tf.constant(data.inputs), tf.constant(data.labels)
    self._examples = iter(
      coordinator.create_per_worker_dataset(
        lambda: tf.data.Dataset.from_tensors((inputs, labels)).repeat()
      )
    )

    @tf.function(autograph=False)
    def work(iterator, examples, flipped, seed):
      start, tau = [v.read_value() for v in variables], version.read_value()
      batches = data.batches(*next(iterator), examples, flipped)
      return training(start, *batches, seed), tau

    @tf.function(autograph=False)
    def publish(values, new_version):
      for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
      version.assign(new_version)

    self._work, self._publish = work, publish

  def update(self, count: int) -> None:
    """Makes so many updates."""
    for _ in range(count):
      while len(self._results) < self._concurrency:
        self._schedule()
      values, tau = self._results.popleft().fetch()
      assert 0 <= tau <= self._version
      self._weights = [
        (1 - MIXING) * x + MIXING * new
        for x, new in zip(self._weights, values, strict=True)
      ]
      self._version += 1
      self._publish(
        [tf.constant(x, tf.float32) for x in self._weights],
        tf.constant(self._version, tf.int64),
      )

  def _schedule(self) -> None:
    device = self._serial % NUM_DEVICES
    task = self._tasks.task(self._serial, device, self._version)
    self._serial += 1
    args = (
      self._examples,
      tf.constant(task.examples),
      tf.constant(task.flipped),
      tf.constant(task.seed),
    )
    self._results.append(self._coordinator.schedule(self._work, args))


def measure(
  cluster: parameter_server.Cluster,
  turns: int,
  updates: int,
  width: int,
  local_steps: int,
) -> Timing:
  """Returns the timing of both loops on a cluster.

  Args:
    cluster: its addresses.
    turns: how often each loop is timed.
    updates: how many each makes in a turn.
    width: of the hidden layer.
    local_steps: of a task.
  """
  coordinator = parameter_server.connect(cluster, CONNECT_S)
  problem = Problem(width, local_steps)
  workers = len(cluster["worker"])
  loops = [make(coordinator, problem, 2 * workers) for make in (Ours, Plain)]
  seconds = [[], []]
  for loop in loops:
    loop.update(4 * workers)  # the first ones of each worker are slower
  for turn in range(turns):
    for i in (0, 1) if turn % 2 else (1, 0):
      begun = time.perf_counter()
      loops[i].update(updates)
      seconds[i].append(time.perf_counter() - begun)
  return Timing(
    workers,
    updates / statistics.median(seconds[0]),
    updates / statistics.median(seconds[1]),
    statistics.median(a / b for a, b in zip(*seconds, strict=True)),
  )


def _measure_with(workers: int, flags_given: Sequence[str]) -> Timing:
  """Returns what another process measures: one can connect only once."""
  with (
    private_network() as network,
    federated_servers.run(workers, 1, network) as servers,
  ):
    ended = subprocess.run(
      [
        *(*network, sys.executable, "-m", "tools.bench_fed_async"),
        *flags_given,
        f"--cluster={json.dumps(servers.cluster)}",
      ],
      env=child_processes.peer_environment(os.environ),
      stdout=subprocess.PIPE,
      text=True,
      timeout=RUN_S,
      check=True,
    )
  return Timing(**json.loads(ended.stdout.splitlines()[-1]))


def _print_table(timings: Sequence[Timing]) -> None:
  table = Table()
  for column in ("workers", "updates/s", "plain loop", "time of ours / plain"):
    table.add_column(column, justify="right")
  for x in timings:
    row = (f"{x.ours:.1f}", f"{x.plain:.1f}", f"{x.ratio:.2f}")
    table.add_row(str(x.workers), *row)
  rich.print(table)


def main(argv: list[str]) -> None:
  """Prints the timings of what the flags choose."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  sizes = (values.turns, values.updates, values.width, values.local_steps)
  if values.cluster:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    timing = measure(json.loads(values.cluster), *sizes)
    print(json.dumps(dataclasses.asdict(timing)), flush=True)
    os._exit(0)  # the servers end first
  names = ("turns", "updates", "width", "local_steps")
  given = [f"--{k}={v}" for k, v in zip(names, sizes, strict=True)]
  _print_table([_measure_with(int(x), given) for x in values.workers])


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_multi_integer(
    "workers", [1, 2, 4], "How many workers; one or more.", lower_bound=1
  )
  flags.DEFINE_integer("turns", 7, "How often each is timed.", lower_bound=1)
  flags.DEFINE_integer(
    "updates", 200, "How many updates a turn has.", lower_bound=1
  )
  flags.DEFINE_integer("width", 128, "Of the hidden layer.", lower_bound=1)
  flags.DEFINE_integer(
    "local_steps", 10, "How many local steps a task has.", lower_bound=1
  )
  flags.DEFINE_string(
    "cluster", None, "The addresses of a cluster to use, as JSON; internal."
  )


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  define_flags()
  app.run(main)
