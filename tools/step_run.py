"""Runs a SavedModel's step, and keeps what it computed and where.

What a run leaves behind: the outputs, the variables before and after, and the
graphs that TensorFlow executed, one per device, from which it is read on which
device each op ran.
"""

import collections
import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Checked with TensorFlow 2.21: its own flags, and the graphs that a function
# ran as.
from tensorflow.core.config import flags as config
from tensorflow.python.eager import context

_TRANSPORT = frozenset(
  {"_Arg", "_HostRecv", "_HostSend", "_Recv", "_Retval", "_Send"}
)

CONTROL_EDGE = "control edge"

# Float32 has seven digits. Where neighbours are on different devices,
# TensorFlow fuses other ops, and a fused kernel adds up in another order; the
# steps then carry the difference on. Where a gradient is nothing but rounding,
# Adam still makes a visible part of a step of it, hence the absolute tolerance:
# a hundredth of what Adam moves a number in a step at a learning rate of 0.001.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Executed:
  """The graphs that a step ran as.

  Attributes:
    nodes: (op type, device) by node name.
    arguments: device by position in the call of the step.
    copies: devices of the copies that the runtime made of a constant.
    num_ops: by device, those that move tensors aside.
    num_sent: tensors that leave a device.
    sent: tensors that leave their device, by the op type that gave them;
      `CONTROL_EDGE` for one that only says that an op has ended.
  """

  nodes: Mapping[str, tuple[str, str]]
  arguments: Mapping[int, str]
  copies: Mapping[str, tuple[str, ...]]
  num_ops: Mapping[str, int]
  num_sent: Mapping[str, int]
  sent: Mapping[str, int]

  @property
  def num_devices(self) -> int:
    """How many devices ran ops."""
    return sum(x > 0 for x in self.num_ops.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What some steps of a model gave.

  Attributes:
    outputs: of each step, by name; the loss, of a training step.
    initial: the variables before the first step.
    final: the variables after the last, in the same order.
    variables: as they are in the loaded model.
    executed: where the ops ran.
  """

  outputs: Sequence[Mapping[str, np.ndarray]]
  initial: Sequence[np.ndarray]
  final: Sequence[np.ndarray]
  variables: Sequence[tf.Variable]
  executed: Executed


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far a placed model's steps are from the model's own.

  Attributes:
    output: largest relative difference of a number in an output.
    variable: largest absolute difference of a number in a variable.
    excess: largest part of the tolerance that a number uses; above 1 the two
      are not the same.
    num_changed: variables that the model's own steps changed.
  """

  output: float
  variable: float
  excess: float
  num_changed: int

  @property
  def is_same(self) -> bool:
    """Whether everything is within its tolerance."""
    return self.excess <= 1.0


def make_cpus(count: int) -> None:
  """Makes logical CPU devices; TensorFlow must not have run anything yet."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  logical = [tf.config.LogicalDeviceConfiguration()] * count
  tf.config.set_logical_device_configuration(cpu, logical)


def set_rewriting(is_on: bool) -> None:
  """Has functions that are loaded from now on rewritten, or run as they are.

  TensorFlow's graph optimizer removes, folds and fuses ops; another pass copies
  small constants to the CPUs of their users.
  """
  tf.config.optimizer.set_experimental_options(
    {"disable_meta_optimizer": not is_on}
  )
  config.config().enable_aggressive_constant_replication.reset(is_on)


def example_batch(function, seed: int) -> dict[str, tf.Tensor]:
  """Returns random inputs by argument name; unknown dimensions are 2.

  Floats are drawn at random and whole numbers are 0 or 1, which every model
  with two labels or tokens accepts.
  """
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


def run_steps(model, signature: str, num_steps: int) -> Run:
  """Runs a loaded model's step, on other inputs each time.

  Args:
    model: what `tf.saved_model.load` or `baechi_tf.load` gave, not run before.
    signature: a step whose inputs and outputs are numbers.
    num_steps: how many.

  Raises:
    ValueError: there is no such signature.
  """
  if signature not in model.signatures:
    known = ", ".join(sorted(model.signatures))
    raise ValueError(f"no signature {signature!r}; there are {known}")
  function = model.signatures[signature]
  variables = function.variables
  initial = [x.numpy() for x in variables]
  batches = [example_batch(function, seed) for seed in range(num_steps)]
  # TensorFlow tells what a function ran as when it runs for the first time.
  context.enable_run_metadata()
  try:
    results = [function(**batch) for batch in batches]
    metadata = context.export_run_metadata()
  finally:
    context.disable_run_metadata()
  outputs = [{key: x[key].numpy() for key in sorted(x)} for x in results]
  final = [x.numpy() for x in variables]
  return Run(outputs, initial, final, variables, _executed(metadata))


def _executed(metadata) -> Executed:
  # A constant tensor is a function of its own to the eager runtime: the step
  # is the largest.
  partitions = max(
    (graphs.partition_graphs for graphs in metadata.function_graphs),
    key=lambda graphs: sum(len(x.node) for x in graphs),
  )
  nodes, arguments = {}, {}
  copies = collections.defaultdict(list)
  num_ops, num_sent = collections.Counter(), collections.Counter()
  sent = collections.Counter(
    kind for graph in partitions for kind in _sent(graph)
  )
  for node in (node for graph in partitions for node in graph.node):
    nodes[node.name] = (node.op, node.device)
    num_ops[node.device] += node.op not in _TRANSPORT
    num_sent[node.device] += node.op == "_Send"
    if node.op == "_Arg":
      arguments[node.attr["index"].i] = node.device
    original, is_copy, _ = node.name.rpartition("/replicate/_")
    if is_copy and node.op == "Const":
      copies[original].append(node.device)
  copies = {name: tuple(devices) for name, devices in copies.items()}
  return Executed(nodes, arguments, copies, num_ops, num_sent, sent)


def _sent(partition) -> Iterator[str]:
  """Yields for each tensor that leaves a device what gave it."""
  nodes = {node.name: node for node in partition.node}
  for node in partition.node:
    if node.op == "_Send":
      source = nodes[node.input[0].partition(":")[0]]
      # TensorFlow makes a constant that waits for the op.
      waits = source.op == "Const" and source.input
      yield CONTROL_EDGE if waits else source.op


def compare(run: Run, placed: Run, *, exactly: bool = False) -> Difference:
  """Returns how far two runs from the same variables are apart.

  Args:
    run: of the model.
    placed: of the same model, placed.
    exactly: allow no difference at all. As they are written, both run the same
      kernels on the same numbers, wherever these are.

  Raises:
    ValueError: the two models' variables are not the same to begin with.
  """
  pairs = zip(run.initial, placed.initial, strict=True)
  if not all(np.array_equal(x, y) for x, y in pairs):
    raise ValueError("the models' variables differ before the first step")
  outputs = [
    (x[key], y[key])
    for x, y in zip(run.outputs, placed.outputs, strict=True)
    for key in x
  ]
  variables = list(zip(run.final, placed.final, strict=True))
  changes = zip(run.initial, run.final, strict=True)
  return Difference(
    output=max((_relative(x, y) for x, y in outputs), default=0.0),
    variable=max((_distance(x, y) for x, y in variables), default=0.0),
    excess=max(
      (_excess(x, y, exactly) for x, y in outputs + variables), default=0.0
    ),
    num_changed=sum(not np.array_equal(x, y) for x, y in changes),
  )


def _float(values) -> np.ndarray:
  return np.asarray(values, np.float64)


def _distance(x, y) -> float:
  return float(np.max(np.abs(_float(x) - _float(y)), initial=0.0))


def _relative(x, y) -> float:
  distance = np.abs(_float(x) - _float(y))
  scale = np.where(distance > 0, np.abs(_float(x)), 1.0)
  with np.errstate(divide="ignore"):
    return float(np.max(distance / scale, initial=0.0))


def _excess(x, y, exactly: bool) -> float:
  """Returns the largest difference, in tolerances; infinite with a NaN."""
  x, y = _float(x), _float(y)
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    return np.inf
  if exactly:
    return 0.0 if np.array_equal(x, y) else np.inf
  tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(x)
  return float(np.max(np.abs(x - y) / tolerance, initial=0.0))
