r"""Compares estimated op times with measured ones on this machine's CPU.

The cluster file describes this CPU as it would describe a device that is not
here; the estimate rests on that alone. Ops are compared class by class: how
much of the step each class takes, measured and estimated, and how far single
ops are off.

    python -m tools.estimate_accuracy --cluster=configs/clusters/2_cpus.toml \
        --device_type=CPU --signature=train MODEL...

Run it on a quiet machine.
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from collections.abc import Sequence

from absl import app
from absl import flags

from baechi_tf.cluster import DeviceType
from baechi_tf.cluster import read_cluster
from baechi_tf.costs import analytical
from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_item import read_item

_WARMUP = 3  # steps dropped

# An op's class is the first of which its type contains a word.
_CLASSES = (
  ("element-wise", ("Maximum", "Minimum")),
  ("convolution", ("Conv2D", "Conv3D")),
  ("matrix product", ("MatMul", "Einsum")),
  ("batch norm", ("BatchNorm",)),
  ("pooling", ("Pool",)),
  ("softmax", ("Softmax",)),
  ("variable update", ("Apply", "Assign")),
  ("gather, scatter", ("Gather", "Scatter", "Segment")),
  (
    "reduction",
    ("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "AddN", "BiasAddGrad"),
  ),
  (
    "data movement",
    ("Transpose", "Concat", "Slice", "Split", "Tile", "Pad", "Pack", "Fill")
    + ("BroadcastTo", "OneHot", "ZerosLike", "Select"),
  ),
  (
    "no arithmetic",
    ("Const", "Identity", "Reshape", "ReadVariable", "VarHandle", "NoOp")
    + ("Placeholder", "Shape", "ExpandDims", "Squeeze", "Gradient"),
  ),
  ("loop, branch", ("While", "If", "Case")),
)


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
  """How the ops of one class compare.

  Attributes:
    op_class: its name.
    num_ops: how many ops.
    measured_us: the sum of their measured times.
    estimated_us: the sum of their estimates.
    median_ratio: the median of estimate / measurement over ops.
    within_2: the share of ops whose estimate is between half and twice the
      measurement.
  """

  op_class: str
  num_ops: int
  measured_us: float
  estimated_us: float
  median_ratio: float
  within_2: float


def op_class(op_type: str) -> str:
  """Returns the class of an op; one of no class is element-wise."""
  for name, words in _CLASSES:
    if any(word in op_type for word in words):
      return name
  return "element-wise"


def compare(
  measurement: Mapping[str, OpCost], estimate: Mapping[str, OpCost]
) -> list[ClassAccuracy]:
  """Returns the accuracy of each class, then of all ops; dearest first.

  Args:
    measurement: op -> measured cost.
    estimate: op -> estimated cost; knows every measured op.
  """
  by_class: dict[str, list[str]] = {}
  for name, cost in measurement.items():
    by_class.setdefault(op_class(cost.op_type), []).append(name)
  rows = [
    _accuracy(kind, names, measurement, estimate)
    for kind, names in by_class.items()
  ]
  rows.sort(key=lambda row: -row.measured_us)
  return [*rows, _accuracy("all", list(measurement), measurement, estimate)]


def _accuracy(kind, names, measurement, estimate) -> ClassAccuracy:
  pairs = [
    (measurement[x].compute_time_us, estimate[x].compute_time_us) for x in names
  ]
  ratios = [e / max(m, 1e-3) for m, e in pairs]  # the trace's resolution
  return ClassAccuracy(
    op_class=kind,
    num_ops=len(names),
    measured_us=sum(m for m, _ in pairs),
    estimated_us=sum(e for _, e in pairs),
    median_ratio=statistics.median(ratios),
    within_2=sum(0.5 <= x <= 2 for x in ratios) / len(ratios),
  )


def table(rows: Sequence[ClassAccuracy]) -> str:
  """Returns a Markdown table."""
  lines = [
    "| op class | ops | measured ms | estimated ms | sum: est/meas"
    " | op: median est/meas | within 2× |",
    "|---|--:|--:|--:|--:|--:|--:|",
  ]
  for row in rows:
    ratio = row.estimated_us / max(row.measured_us, 1e-3)
    lines.append(
      f"| {row.op_class} | {row.num_ops} | {row.measured_us / 1e3:.2f}"
      f" | {row.estimated_us / 1e3:.2f} | {ratio:.2f}"
      f" | {row.median_ratio:.2f} | {row.within_2:.0%} |"
    )
  return "\n".join(lines)


def report(path: str, device_type: DeviceType) -> str:
  """Returns the comparison of one model, as Markdown."""
  item = read_item(path, signature=flags.FLAGS.signature)
  values = inputs.synthesize_inputs(item, flags.FLAGS.batch_size)
  shapes = {name: value.shape for name, value in values.items()}
  measurement = measured.measure(item, values, num_steps=flags.FLAGS.steps)
  start = time.perf_counter()
  estimate = analytical.estimate(item, device_type, shapes)
  estimated_in_s = time.perf_counter() - start
  with measured.open_session(item) as session:
    item.initialize(session)
    times_us = measured.step_times_us(
      item, values, session, flags.FLAGS.steps + _WARMUP
    )
  whole_ms = statistics.median(times_us[_WARMUP:]) / 1e3
  missing = [x for x in item.op_names if x not in measurement]
  return (
    f"{item.source}: {len(item.op_names)} ops, {len(missing)} of them not in"
    f" the trace; estimated in {estimated_in_s:.1f} s; a whole step takes"
    f" {whole_ms:.1f} ms\n\n{table(compare(measurement, estimate))}\n"
  )


def main(argv: Sequence[str]) -> None:
  """Prints a table for each model."""
  types = read_cluster(flags.FLAGS.cluster).device_types
  if flags.FLAGS.device_type not in types:
    raise app.UsageError(
      f"{flags.FLAGS.cluster} has no [device_type.{flags.FLAGS.device_type}]"
    )
  for path in argv[1:]:
    print(report(path, types[flags.FLAGS.device_type]))


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_string("cluster", None, "Describes this CPU.")
  flags.DEFINE_string("device_type", "CPU", "Which type it is.")
  flags.DEFINE_string("signature", None, "The step.")
  flags.DEFINE_integer("batch_size", None, "For unknown batches.")
  flags.DEFINE_integer("steps", 20, "Steps to measure.")
  flags.mark_flag_as_required("cluster")


if __name__ == "__main__":
  define_flags()
  app.run(main)
