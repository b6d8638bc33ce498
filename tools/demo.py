r"""Runs a training step as it is and as it was placed, and compares the two.

Shows on which devices the placed step's ops really ran, and three losses of
each. Fails if they differ, or if the placed step kept to one device. Float
inputs are drawn at random and whole numbers are 0 or 1, which every model with
two labels or tokens accepts:

    python -m tools.demo MODEL PLACED_MODEL
"""

import collections
import sys

import numpy as np
import rich
import tensorflow as tf
from absl import app
from absl import flags
from rich.table import Table

# Checked with TensorFlow 2.21: where the ops of a function really ran.
from tensorflow.python.eager import context

from baechi_tf.saved_model import load

# Ops on different devices are summed in the same order as on one; only kernels
# that split their work over threads may round differently.
_RELATIVE_TOLERANCE = 1e-4
_TRANSPORT = frozenset({"_Arg", "_Recv", "_Retval", "_Send"})

_DEVICES = flags.DEFINE_integer("num_cpus", 2, "CPU devices to make.")
_SIGNATURE = flags.DEFINE_string("signature", "train", "What to run.")
_STEPS = flags.DEFINE_integer("num_steps", 3, "How many steps to run.")


def main(argv: list[str]) -> int:
  """Returns 1 if the placed model does not do what the model does."""
  if len(argv) != 3:
    raise app.UsageError("two arguments: the model, and it as placed")
  cpu = tf.config.list_physical_devices("CPU")[0]
  logical = [tf.config.LogicalDeviceConfiguration()] * _DEVICES.value
  tf.config.set_logical_device_configuration(cpu, logical)

  model = tf.saved_model.load(argv[1])
  placed_model = load(argv[2])
  function = model.signatures[_SIGNATURE.value]
  placed = placed_model.signatures[_SIGNATURE.value]
  batches = [example_batch(function, step) for step in range(_STEPS.value)]
  losses = [_loss(function, batch) for batch in batches]
  # TensorFlow partitions a function, and tells how, when it first runs.
  with _RanNodes() as ran:
    placed_losses = [_loss(placed, batch) for batch in batches]
  num_devices = _print_devices(ran.nodes, placed.variables)
  difference = _print_losses(losses, placed_losses)
  same = difference <= _RELATIVE_TOLERANCE
  print(
    f"{len(losses)} steps: losses {'agree' if same else 'DIFFER'} (largest"
    f" relative difference {difference:.1e}, tolerance"
    f" {_RELATIVE_TOLERANCE:.0e}); ops ran on {num_devices} devices"
  )
  return int(not same or num_devices < 2)


def example_batch(function, seed: int) -> dict[str, tf.Tensor]:
  """Returns random inputs by argument name; unknown dimensions are 2."""
  generator = np.random.default_rng(seed)
  batch = {}
  for name, spec in sorted(function.structured_input_signature[1].items()):
    shape = [2 if x is None else x for x in spec.shape]
    if spec.dtype.is_floating:
      value = generator.standard_normal(shape)
    else:
      value = generator.integers(2, size=shape)
    batch[name] = tf.constant(value, spec.dtype)
  return batch


def _loss(function, batch) -> float:
  (loss,) = function(**batch).values()
  return float(loss)


class _RanNodes:
  """Collects the nodes that functions run while it is entered."""

  def __enter__(self) -> "_RanNodes":
    context.enable_run_metadata()
    return self

  def __exit__(self, *_) -> None:
    metadata = context.export_run_metadata()
    context.disable_run_metadata()
    self.nodes = [
      node
      for graphs in metadata.function_graphs
      for partition in graphs.partition_graphs
      for node in partition.node
    ]


def _print_devices(nodes, variables) -> int:
  """Prints what each device ran and holds; returns how many ran ops."""
  ops = collections.Counter(x.device for x in nodes if x.op not in _TRANSPORT)
  sends = collections.Counter(x.device for x in nodes if x.op == "_Send")
  held = collections.Counter()
  held_bytes = collections.Counter()
  for variable in variables:
    held[variable.device] += 1
    held_bytes[variable.device] += variable.dtype.size * (
      variable.shape.num_elements()
    )
  table = Table("device", title="what each device ran and holds")
  for heading in ("ops", "tensors sent", "variables", "MB of variables"):
    table.add_column(heading, justify="right")
  for device in sorted({*ops, *held}):
    table.add_row(
      device.rpartition("/")[2],
      f"{ops[device]:,}",
      f"{sends[device]:,}",
      f"{held[device]:,}",
      f"{held_bytes[device] / 1e6:,.1f}",
    )
  rich.print(table)
  return len(ops)


def _print_losses(losses, placed_losses) -> float:
  """Prints the losses; returns their largest relative difference."""
  table = Table("step", title="loss")
  for heading in ("as it was", "as placed", "relative difference"):
    table.add_column(heading, justify="right")
  largest = 0.0
  for step, (loss, placed) in enumerate(
    zip(losses, placed_losses, strict=True)
  ):
    difference = abs(placed - loss) / abs(loss)
    largest = max(largest, difference)
    table.add_row(
      str(step), f"{loss:.7f}", f"{placed:.7f}", f"{difference:.1e}"
    )
  rich.print(table)
  return largest


if __name__ == "__main__":
  sys.exit(app.run(main))
