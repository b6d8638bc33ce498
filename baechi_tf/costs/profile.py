"""The costs of a step's ops by device type, and the profile file.

The file is TensorFlow's own `OpPerformanceList`: one `OpPerformance` per op
and device type, with the op's name in `node`, its type in `op.op`, the device
type's name in `op.device.type`, nanoseconds in `compute_cost` and bytes in
`op_memory`. The attribute `_fused_into` of an op that another op's kernel runs
names that other op. Other tools that speak Grappler can read and write it.
"""

import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence

from google.protobuf.message import DecodeError

# Checked with TensorFlow 2.21.
from tensorflow.core.grappler.costs import op_performance_data_pb2

from baechi_tf import atomic
from baechi_tf.graph_item import GraphItem
from baechi_tf.limits import MAX_BYTES
from baechi_tf.limits import MAX_TIME_US


@dataclasses.dataclass(frozen=True)
class OpCost:
  """What one op costs on one type of device.

  Attributes:
    op_type: the op's type, such as "MatMul".
    compute_time_us: microseconds to run it.
    temporary_bytes: workspace held while it runs.
    persistent_bytes: what it holds for ever.
    output_bytes: the bytes of each output.
    fused_into: the op whose kernel runs this one too, if both are on one
      device; "" if it has a kernel of its own.
  """

  op_type: str
  compute_time_us: float
  temporary_bytes: int = 0
  persistent_bytes: int = 0
  output_bytes: tuple[int, ...] = ()
  fused_into: str = ""


_FUSED_INTO = "_fused_into"

Profile = Mapping[str, Mapping[str, OpCost]]  # device type -> op -> cost


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Where a device type's costs came from.

  Attributes:
    device_type: its name.
    num_measured: ops whose cost the profile has.
    num_estimated: ops whose cost is an estimate.
  """

  device_type: str
  num_measured: int
  num_estimated: int


def write_profile(path: str | os.PathLike, profile: Profile) -> None:
  """Writes a profile file; an interrupted write leaves the old file.

  Raises:
    OSError: the file cannot be written.
  """
  atomic.write_bytes(path, [profile_bytes(profile)])


def profile_bytes(profile: Profile) -> bytes:
  """Returns the bytes of a profile file."""
  performances = op_performance_data_pb2.OpPerformanceList()
  for device_type, costs in profile.items():
    for name, cost in costs.items():
      entry = performances.op_performance.add()
      entry.node = name
      entry.op.op = cost.op_type
      entry.op.device.type = device_type
      entry.compute_cost = round(cost.compute_time_us * 1000)
      entry.op_memory.output_memory.extend(cost.output_bytes)
      entry.op_memory.temp_memory = cost.temporary_bytes
      entry.op_memory.persistent_memory = cost.persistent_bytes
      if cost.fused_into:
        entry.op.attr[_FUSED_INTO].s = cost.fused_into.encode()
  return performances.SerializeToString(deterministic=True)


def read_profile(path: str | os.PathLike) -> dict[str, dict[str, OpCost]]:
  """Returns the costs in a profile file.

  Raises:
    ValueError: it is not a profile, or an entry lacks its op, type or device
      type, has a negative cost or one above the `limits`, or repeats another.
    OSError: the file cannot be read.
  """
  performances = op_performance_data_pb2.OpPerformanceList()
  with open(path, "rb") as file:
    try:
      performances.ParseFromString(file.read())
    except DecodeError:
      raise ValueError(
        f"{path}: not a profile (an OpPerformanceList); `baechi profile`"
        " makes one"
      ) from None
  if not performances.op_performance:
    raise ValueError(f"{path}: the profile holds no ops")
  profile: dict[str, dict[str, OpCost]] = {}
  for i, entry in enumerate(performances.op_performance):
    memory = entry.op_memory
    cost = OpCost(
      entry.op.op,
      entry.compute_cost / 1000,
      memory.temp_memory,
      memory.persistent_memory,
      tuple(memory.output_memory),
      _fused_into(entry.op),
    )
    if not (entry.node and cost.op_type and entry.op.device.type):
      raise ValueError(
        f"{path}: entry {i} lacks an op's name, its type or a device type;"
        " the file is damaged or not a profile"
      )
    _check_cost(path, entry.node, cost)
    costs = profile.setdefault(entry.op.device.type, {})
    if entry.node in costs:
      raise ValueError(
        f"{path}: op {entry.node!r} is listed twice for device type"
        f" {entry.op.device.type!r}"
      )
    costs[entry.node] = cost
  return profile


def _fused_into(op_info) -> str:
  """Returns "" for files from before the attribute was written."""
  if _FUSED_INTO not in op_info.attr:
    return ""
  return op_info.attr[_FUSED_INTO].s.decode(errors="replace")


def _check_cost(path, name: str, cost: OpCost) -> None:
  byte_counts = (
    cost.temporary_bytes,
    cost.persistent_bytes,
    *cost.output_bytes,
  )
  if min(cost.compute_time_us, *byte_counts) < 0:
    raise ValueError(f"{path}: op {name!r} has a negative cost")
  if cost.compute_time_us > MAX_TIME_US:
    raise ValueError(
      f"{path}: op {name!r} takes {cost.compute_time_us:g} us, more than"
      f" {MAX_TIME_US:g}"
    )
  if max(byte_counts) > MAX_BYTES:
    raise ValueError(
      f"{path}: op {name!r} has {max(byte_counts):,} bytes, more than"
      f" {MAX_BYTES:,}"
    )


def merge(*profiles: Profile) -> dict[str, dict[str, OpCost]]:
  """Returns profiles side by side; where several know an op, the first does."""
  merged: dict[str, dict[str, OpCost]] = {}
  for profile in profiles:
    for device_type, costs in profile.items():
      known = merged.setdefault(device_type, {})
      merged[device_type] = {**costs, **known}
  return merged


def check_profile(profile: Profile, item: GraphItem) -> None:
  """Refuses a profile that was made for another model.

  Raises:
    ValueError: an op of the profile has another type in the model, or a
      device type knows fewer than half of the planned ops.
  """
  op_types = {node.name: node.op for node in item.graph_def.node}
  for device_type, costs in profile.items():
    for name, cost in costs.items():
      if op_types.get(name, cost.op_type) != cost.op_type:
        raise ValueError(
          f"the profile was made for another model: op {name!r} is a"
          f" {cost.op_type} in the profile and a {op_types[name]} in"
          f" {item.source}"
        )
    unknown = [name for name in item.op_names if name not in costs]
    if 2 * len(unknown) > len(item.op_names):
      raise ValueError(
        f"the profile was made for another model: for device type"
        f" {device_type!r}, {len(unknown)} of {len(item.op_names)} ops of"
        f" {item.source} unknown, first {unknown[0]!r}"
      )


def complete(
  profile: Profile,
  item: GraphItem,
  device_types: Sequence[str],
  estimates: Profile,
) -> tuple[dict[str, dict[str, OpCost]], tuple[Coverage, ...]]:
  """Returns a cost for every planned op on every device type, and the counts.

  Args:
    profile: what is known; may lack device types and ops.
    item: the model.
    device_types: the types that costs are needed for; repeats count once.
    estimates: fills what the profile lacks.

  Raises:
    ValueError: the profile was made for another model, or neither it nor the
      estimates know an op.
  """
  check_profile(profile, item)
  costs: dict[str, dict[str, OpCost]] = {}
  coverage = []
  for device_type in dict.fromkeys(device_types):
    measured = profile.get(device_type, {})
    estimated = estimates.get(device_type, {})
    unknown = [
      x for x in item.op_names if x not in measured and x not in estimated
    ]
    if unknown:
      raise ValueError(
        f"{len(unknown)} of {len(item.op_names)} ops have no cost on device"
        f" type {device_type!r}, first {unknown[0]!r}; profile the model on"
        f" such a device, or describe it in a [device_type.{device_type}]"
        " table of the cluster file so that it can be estimated"
      )
    costs[device_type] = {
      x: measured[x] if x in measured else estimated[x] for x in item.op_names
    }
    num_measured = sum(x in measured for x in item.op_names)
    coverage.append(
      Coverage(device_type, num_measured, len(item.op_names) - num_measured)
    )
  return costs, tuple(coverage)
