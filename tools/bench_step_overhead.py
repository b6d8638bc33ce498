r"""Times training steps with our optimizers and rules against TensorFlow's own.

Four replicas on logical CPU devices train the same model, once for each way to
reduce gradients. One step of each is run in turn, so that whatever else the
machine does falls on all alike; a step's time is divided by that of the
faster of TensorFlow's ways in the same turn:

    python -m tools.bench_step_overhead

The table shows the quickest step of each in ms, its ratio, the median of the
ratios of all turns, and the same of the processor time of all threads. On a
busy machine believe the medians: a quick turn may come to one and not others.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import rich
import tensorflow as tf
from absl import app
from absl import flags
from rich.table import Table

from robust_tf import aggregators
from robust_tf.distribute.cross_device_ops import RobustCrossDeviceOps
from robust_tf.optimizers.cser import CSEA
from robust_tf.optimizers.cser import CSER
from robust_tf.optimizers.cser import LocalSGD
from robust_tf.optimizers.error_feedback import ErrorFeedbackSGD
from robust_tf.optimizers.local_adaalter import LocalAdaAlter
from robust_tf.optimizers.robust import RobustOptimizer

RULES: Mapping[str, Callable] = {
  "mean": aggregators.mean,
  "median": aggregators.median,
  "trimmed_mean": functools.partial(aggregators.trimmed_mean, trim=1),
  "phocas": functools.partial(aggregators.phocas, trim=1),
  "krum": functools.partial(aggregators.krum, num_byzantine=0),
  "geometric_median": aggregators.geometric_median,
}
# All without momentum, as the SGD that they are compared to.
OPTIMIZERS: Mapping[str, Callable] = {
  # Nothing is sent, or put together, in as many steps as are timed.
  "nothing_sent": lambda: LocalSGD(0.01, momentum=0.0, sync_period=10**6),
  "local_sgd": lambda: LocalSGD(0.01, momentum=0.0),
  "cser": lambda: CSER(0.01, momentum=0.0),
  "csea": lambda: CSEA(0.01, momentum=0.0),
  "error_feedback_sgd": lambda: ErrorFeedbackSGD(0.01, momentum=0.0),
  "local_adaalter": lambda: LocalAdaAlter(0.01),
}
STOCK = ("one device", "collective")

_NUM_FEATURES = 784
_NUM_CLASSES = 10
_WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Contender:
  """One way to reduce gradients.

  Attributes:
    way: what the table calls it.
    rule: the rule in it, or the optimizer.
    cross_device_ops: makes the ops of its strategy; None for the default.
    optimizer: makes its optimizer.
  """

  way: str
  rule: str
  cross_device_ops: Callable[[], tf.distribute.CrossDeviceOps | None]
  optimizer: Callable[[], keras.optimizers.Optimizer]


@dataclasses.dataclass(frozen=True)
class Timing:
  """What the steps of one contender took.

  Attributes:
    way: see `Contender`.
    rule: see `Contender`.
    step_ms: the quickest step.
    ratio: of the quickest step to that of the faster of TensorFlow's ways.
    median_ratio: the median over the turns of such ratios.
    cpu_ratio: the same, of the processor time of all threads.
  """

  way: str
  rule: str
  step_ms: float
  ratio: float
  median_ratio: float
  cpu_ratio: float


def contenders(
  rules: Sequence[str], optimizers: Sequence[str] = ()
) -> list[Contender]:
  """Returns TensorFlow's ways, ours with each rule, and our optimizers."""
  one_device = tf.distribute.ReductionToOneDevice
  found = [
    Contender(STOCK[0], "sum", one_device, _sgd),
    Contender(STOCK[1], "sum", lambda: None, _sgd),
  ]
  for name in rules:
    robust_sgd = functools.partial(_robust_sgd, RULES[name])
    robust_ops = functools.partial(RobustCrossDeviceOps, RULES[name])
    found += [
      Contender("RobustOptimizer", name, one_device, robust_sgd),
      Contender("RobustCrossDeviceOps", name, robust_ops, _sgd),
    ]
  return found + [
    Contender("optimizer", name, one_device, OPTIMIZERS[name])
    for name in optimizers
  ]


def _sgd() -> keras.optimizers.Optimizer:
  return keras.optimizers.SGD(0.01)


def _robust_sgd(rule: Callable) -> keras.optimizers.Optimizer:
  return RobustOptimizer(_sgd(), rule)


def make_step(
  contender: Contender,
  devices: Sequence[str],
  batch_size: int,
  width: int,
  extra_layers: int = 0,
) -> Callable[[], None]:
  """Returns a function that does one training step and waits for its end.

  Args:
    contender: how gradients are reduced.
    devices: of the replicas.
    batch_size: of each replica.
    width: of the first layer; the second has a quarter.
    extra_layers: more layers like the second.
  """
  strategy = tf.distribute.MirroredStrategy(
    devices, cross_device_ops=contender.cross_device_ops()
  )
  keras.utils.set_random_seed(1)
  with strategy.scope():
    model = keras.Sequential(
      [
        keras.Input((_NUM_FEATURES,)),
        keras.layers.Dense(width, activation="relu"),
        *[
          keras.layers.Dense(width // 4, activation="relu")
          for _ in range(1 + extra_layers)
        ],
        keras.layers.Dense(_NUM_CLASSES),
      ]
    )
    model.compile(
      optimizer=contender.optimizer(),
      loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
  random = np.random.default_rng(1)
  size = batch_size * len(devices)
  features = random.standard_normal((size, _NUM_FEATURES), np.float32)
  labels = random.integers(_NUM_CLASSES, size=size)
  data = tf.data.Dataset.from_tensors((features, labels)).repeat()
  iterator = iter(strategy.experimental_distribute_dataset(data))
  model.make_train_function()

  def step():
    float(model.train_function(iterator)["loss"])

  return step


def time_steps(
  steps: Sequence[Callable[[], None]], num_turns: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns wall and processor seconds, each [num_turns, steps]."""
  for step in steps:
    for _ in range(_WARM_UP):  # traces, compiles, fills caches
      step()
  seconds = np.empty((2, num_turns, len(steps)))
  for turn in range(num_turns):
    for i in np.roll(np.arange(len(steps)), turn):
      begin = time.perf_counter(), time.process_time()
      steps[i]()
      end = time.perf_counter(), time.process_time()
      seconds[:, turn, i] = np.subtract(end, begin)
  return seconds[0], seconds[1]


def timings(
  compared: Sequence[Contender], wall: np.ndarray, cpu: np.ndarray
) -> list[Timing]:
  """Returns the table's rows; the first `len(STOCK)` contenders are stock."""
  quickest = wall.min(axis=0)
  stock = slice(0, len(STOCK))
  faster = int(np.argmin(np.median(wall[:, stock], axis=0)))
  return [
    Timing(
      way=contender.way,
      rule=contender.rule,
      step_ms=1e3 * quickest[i],
      ratio=quickest[i] / quickest[faster],
      median_ratio=float(np.median(wall[:, i] / wall[:, faster])),
      cpu_ratio=float(np.median(cpu[:, i] / cpu[:, faster])),
    )
    for i, contender in enumerate(compared)
  ]


def _print_table(rows: Sequence[Timing]) -> None:
  table = Table("reduced by", "rule")
  for heading in ("ms", "ratio", "median", "CPU"):
    table.add_column(heading, justify="right")
  for row in rows:
    ratios = (row.ratio, row.median_ratio, row.cpu_ratio)
    table.add_row(
      row.way, row.rule, f"{row.step_ms:.1f}", *[f"{x:.2f}" for x in ratios]
    )
  rich.print(table)


def main(argv: list[str]) -> None:
  """Prints the timings of what the flags choose."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * values.replicas,
  )
  devices = [f"CPU:{i}" for i in range(values.replicas)]
  compared = contenders(values.rule, values.optimizer)
  steps = [
    make_step(
      contender,
      devices,
      values.batch_size,
      values.width,
      values.extra_layers,
    )
    for contender in compared
  ]
  rows = timings(compared, *time_steps(steps, values.turns))
  if values.json:
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
  else:
    _print_table(rows)


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_multi_enum(
    "rule", list(RULES), list(RULES), "Which rules; may be repeated."
  )
  flags.DEFINE_multi_enum(
    "optimizer",
    list(OPTIMIZERS),
    list(OPTIMIZERS),
    "Which optimizers; may be repeated.",
  )
  flags.DEFINE_integer("replicas", 4, "How many replicas.", lower_bound=2)
  flags.DEFINE_integer("batch_size", 32, "Of each replica.", lower_bound=1)
  flags.DEFINE_integer(
    "width", 1024, "Of the first layer; 1024 is 1.07M parameters.", 4
  )
  flags.DEFINE_integer(
    "extra_layers", 0, "More layers of a quarter of the width.", 0
  )
  flags.DEFINE_integer("turns", 100, "Steps of each.", lower_bound=1)
  flags.DEFINE_bool("json", False, "Print JSON in place of a table.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
