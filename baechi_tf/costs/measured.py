"""Runs a step here and reads what each op took.

The flat graph runs in a session on one device, one op at a time, with no
optimization, so that every planned op runs as the op it is. A traced step
yields TensorFlow's step stats; the median over several steps counts, after a
warm-up that is dropped. A loop or branch runs as one op and its own span is
its time. On a GPU the kernels' own time counts, not their launch.
"""

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_item import GraphItem

v1 = tf.compat.v1

_LOWERING = "_lower_using_switch_merge"
_KERNELS = re.compile(r"/device:GPU:\d+/stream:all$", re.IGNORECASE)
_NOT_OPS = re.compile(r"/(stream|memcpy|sync)", re.IGNORECASE)
_FED = re.compile(r"_arg_(.+)_(\d+)_\d+")
_SHORTEST_KERNEL_US = 1.0  # the trace drops fractions of a microsecond

Progress = Callable[[int, int], None]


def measure(
  item: GraphItem,
  input_values: Mapping[str, np.ndarray],
  *,
  device_type: str = "CPU",
  num_steps: int = 10,
  warmup: int = 3,
  progress: Progress | None = None,
) -> dict[str, OpCost]:
  """Returns the measured cost of each planned op that the trace shows.

  Ops that the trace does not show are not in the result: they are missing,
  not free.

  Args:
    item: the model.
    input_values: a value for every feed, see `inputs.synthesize_inputs`.
    device_type: "CPU" or "GPU", the first such device of this machine.
    num_steps: steps to measure.
    warmup: steps to run before, dropped.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: a count is too small, a feed has no value, or there is no such
      device here.
  """
  if num_steps < 1 or warmup < 0:
    raise ValueError(
      f"num_steps={num_steps} must be at least 1 and warmup={warmup} at least 0"
    )
  missing = [x.name for x in item.feeds if x.name not in input_values]
  if missing:
    raise ValueError(f"input {missing[0]!r} has no value")
  feed_dict = {x.tensor: input_values[x.name] for x in item.feeds}
  op_types = {node.name: node.op for node in item.graph_def.node}
  op_types = {name: op_types[name] for name in item.op_names}
  steps = []
  with _session(item, device_type) as session:
    item.initialize(session)
    fetches = [*item.fetches, *item.targets]
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
    for step in range(warmup + num_steps):
      if progress:
        progress(step, warmup + num_steps)
      metadata = v1.RunMetadata()
      session.run(fetches, feed_dict, options, metadata)
      if step >= warmup:
        steps.append(parse_step_stats(metadata.step_stats, op_types))
  if progress:
    progress(warmup + num_steps, warmup + num_steps)
  return _medians(steps, item.op_names)


def parse_step_stats(
  step_stats, op_types: Mapping[str, str]
) -> dict[str, OpCost]:
  """Returns the cost of each op in one step's stats.

  Rows of a device are the ops as the executor ran them (on a GPU: launched
  them). Rows of "/device:GPU:k/stream:all" are kernels, named "op:Type", one
  per kernel, in whole microseconds; an op's time is their sum where it has
  any. Single streams repeat those rows, and copies are no op's time.

  Args:
    step_stats: a StepStats proto.
    op_types: name -> type of the ops wanted.
  """
  rows: dict[str, list[OpCost]] = {}
  kernel_us: dict[str, float] = {}
  for device in step_stats.dev_stats:
    if _KERNELS.search(device.device):
      for row in device.node_stats:
        name, _, op_type = row.node_name.rpartition(":")
        if op_types.get(name) == op_type:
          time_us = max(_span_us(row), _SHORTEST_KERNEL_US)
          kernel_us[name] = kernel_us.get(name, 0.0) + time_us
    elif not _NOT_OPS.search(device.device):
      for row in device.node_stats:
        name = _op_name(row.node_name)
        if name in op_types:
          cost = _row_cost(row, op_types[name])
          rows.setdefault(name, []).append(cost)
  ops = {
    name: _combine(costs, sum(x.compute_time_us for x in costs))
    for name, costs in rows.items()
  }
  for name, time_us in kernel_us.items():
    cost = ops.get(name, OpCost(op_types[name], 0.0))
    ops[name] = dataclasses.replace(cost, compute_time_us=time_us)
  return ops


def _session(item: GraphItem, device_type: str) -> v1.Session:
  if device_type not in ("CPU", "GPU"):
    raise ValueError(
      f"cannot measure on a {device_type!r}: it must be 'CPU' or 'GPU'"
    )
  if device_type == "GPU" and not tf.config.list_physical_devices("GPU"):
    raise ValueError("there is no GPU here to measure on")
  graph_def = v1.GraphDef()
  graph_def.CopyFrom(item.graph_def)
  bodies = [function.node_def for function in graph_def.library.function]
  for node in graph_def.node:
    node.device = f"/device:{device_type}:0"
  for node in (node for body in (graph_def.node, *bodies) for node in body):
    # A lowered loop falls apart into many ops that are not planned.
    if _LOWERING in node.attr:
      node.attr[_LOWERING].b = False
  for node in (node for body in bodies for node in body):
    node.device = ""
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(graph_def, name="")
  config = v1.ConfigProto(
    allow_soft_placement=True,  # an op without a GPU kernel runs on the CPU
    inter_op_parallelism_threads=1,
    device_count={"CPU": 1, "GPU": int(device_type == "GPU")},
  )
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  config.graph_options.optimizer_options.opt_level = -1  # L0
  return v1.Session(graph=graph, config=config)


def _op_name(row_name: str) -> str:
  """A fed op shows up as "_arg_NAME_OUTPUT_INDEX"."""
  fed = _FED.fullmatch(row_name)
  return fed[1] if fed else row_name


def _span_us(row) -> float:
  """Kernels are traced in microseconds only, ops in nanoseconds too."""
  nanos = row.op_end_rel_nanos - row.op_start_rel_nanos
  return (
    nanos / 1000 if nanos else row.op_end_rel_micros - (row.op_start_rel_micros)
  )


def _row_cost(row, op_type: str) -> OpCost:
  memory = row.memory_stats
  outputs = {x.slot: _tensor_bytes(x.tensor_description) for x in row.output}
  return OpCost(
    op_type,
    max(_span_us(row), 0.0),
    memory.temp_memory_size + memory.device_temp_memory_size,
    memory.persistent_memory_size + memory.device_persistent_memory_size,
    tuple(outputs.get(i, 0) for i in range(max(outputs, default=-1) + 1)),
  )


def _tensor_bytes(description) -> int:
  """What a tensor would weigh when sent.

  Shape and type tell for numbers; the allocation might be a larger buffer
  that the tensor is a slice of. For strings and variants it is all there is.
  """
  dtype = tf.as_dtype(description.dtype).base_dtype
  if dtype in (tf.string, tf.variant, tf.resource):
    return description.allocation_description.requested_bytes
  return math.prod(x.size for x in description.shape.dim) * dtype.size


def _medians(steps, op_names) -> dict[str, OpCost]:
  """The median time of each op that any step shows."""
  result = {}
  for name in op_names:
    costs = [step[name] for step in steps if name in step]
    if costs:
      time_us = statistics.median(x.compute_time_us for x in costs)
      result[name] = _combine(costs, time_us)
  return result


def _combine(costs: Sequence[OpCost], time_us: float) -> OpCost:
  """One cost of several runs: their largest bytes."""
  outputs = itertools.zip_longest(*(x.output_bytes for x in costs), fillvalue=0)
  return OpCost(
    costs[0].op_type,
    time_us,
    max(x.temporary_bytes for x in costs),
    max(x.persistent_bytes for x in costs),
    tuple(map(max, outputs)),
  )
