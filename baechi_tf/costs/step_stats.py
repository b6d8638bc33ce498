"""Reads the cost of each op from a step's stats.

TensorFlow's step stats have a row for each node that ran and, on a GPU, for
each kernel.
"""

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.costs.fused_kernels import fed_name
from baechi_tf.costs.profile import OpCost

_KERNELS = re.compile(r"/device:GPU:\d+/stream:all$", re.IGNORECASE)
_NOT_OPS = re.compile(r"/(stream|memcpy|sync)", re.IGNORECASE)
# TensorFlow runs `AccumulateNV2` and `ParallelConcat` as several nodes: one of
# the op's name, the others of such names.
_PART = re.compile(r"(.+)/Internal/_\d+")
_SHORTEST_KERNEL_US = 1.0  # the trace drops fractions of a microsecond
# Most that an op takes beyond its span, in microseconds and of that span.
_MOST_BEYOND_US = 1.0
_MOST_BEYOND = 0.1


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
        name = _op_name(row.node_name, op_types)
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


def _op_name(row_name: str, op_types: Mapping[str, str]) -> str:
  """Returns the op that a row belongs to, or the name of a node of none."""
  part = _PART.fullmatch(row_name)
  if part and row_name not in op_types:
    return part[1]
  return fed_name(row_name)


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
  """Returns the bytes of a tensor when it is sent.

  Shape and type tell for numbers; the allocation might be a larger buffer
  that the tensor is a slice of. For strings and variants it is all there is.
  """
  dtype = tf.as_dtype(description.dtype).base_dtype
  if dtype in (tf.string, tf.variant, tf.resource):
    return description.allocation_description.requested_bytes
  return math.prod(x.size for x in description.shape.dim) * dtype.size


def medians(
  steps: Sequence[Mapping[str, OpCost]], op_names: Iterable[str]
) -> dict[str, OpCost]:
  """Returns the median time of each op that a step shows, in order."""
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


def match_step(
  costs: Mapping[str, OpCost], step_time_us: float, *, on_host: bool
) -> dict[str, OpCost]:
  """Returns the costs, so changed that they add up to an untraced step.

  Tracing slows small ops: costs that add up to more are scaled down. TensorFlow
  also works between ops, where no trace shows it: it schedules the next op, and
  frees what the last one read. Costs that add up to less are raised, each by at
  most `_MOST_BEYOND_US` and `_MOST_BEYOND` of itself; what is still missing is
  the step's own, not the ops'.

  Args:
    costs: the measured costs of a step's ops, which ran one at a time.
    step_time_us: the time of a step that is not traced.
    on_host: whether the ops run on the processor that also works between them.
  """
  total_us = sum(x.compute_time_us for x in costs.values())
  scale = step_time_us / max(total_us, step_time_us)
  rooms = {
    name: _MOST_BEYOND_US + _MOST_BEYOND * cost.compute_time_us
    for name, cost in costs.items()
  }
  beyond_us = max(step_time_us - total_us, 0.0) if on_host else 0.0
  part = beyond_us / max(sum(rooms.values()), beyond_us, 1e-9)
  return {
    name: dataclasses.replace(
      cost, compute_time_us=cost.compute_time_us * scale + rooms[name] * part
    )
    for name, cost in costs.items()
  }
