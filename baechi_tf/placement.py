"""Placement: the device of each op and their order, saved as JSON; its checker.

The order is one list of all ops. Each device runs its own ops in that order.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.json_file import read_json
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph


class InfeasiblePlacementError(Exception):
  """No placement was found that fits the devices' memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
  """A device for every op of a graph, and the order in which they start.

  Attributes:
    op_names: `[n]`, as in the graph.
    device_names: the devices, as in the cluster.
    device: int64 `[n]`, indices into `device_names`.
    order: int64 `[n]`, all ops, each after those that it depends on; a device
      runs its ops in this order. None if each runs whatever is ready.
    makespan_us: predicted step time, once it is known.
    lower_bound_us: no placement has a smaller makespan, once it is known.
  """

  op_names: tuple[str, ...]
  device_names: tuple[str, ...]
  device: np.ndarray
  order: np.ndarray | None = None
  makespan_us: float | None = None
  lower_bound_us: float | None = None

  def as_dict(self) -> dict[str, str]:
    """Returns op name -> device name, in the graph's order."""
    names = self.device_names
    return {
      op: names[device]
      for op, device in zip(self.op_names, self.device.tolist(), strict=True)
    }

  def to_json(self) -> str:
    """Returns the placement file's text; the same placement, the same bytes."""
    fields = {
      "devices": list(self.device_names),
      "placement": self.as_dict(),
      **self._order_field(),
      "makespan_us": self.makespan_us,
      "lower_bound_us": self.lower_bound_us,
    }
    return json.dumps(fields, indent=1) + "\n"

  def _order_field(self) -> dict[str, list[str]]:
    if self.order is None:
      return {}
    return {"order": [self.op_names[op] for op in self.order.tolist()]}


def placement_for(
  graph: OpGraph,
  cluster: Cluster,
  device_of: Mapping[str, str],
  order: Sequence[str] | None = None,
) -> Placement:
  """Returns op name -> device name as a placement of `graph` on `cluster`.

  The step's inputs are on device 0 all the same: the runtime leaves them where
  the caller has made them.

  Args:
    graph: the ops.
    cluster: the devices.
    device_of: the device of each op.
    order: the names of all ops in the order in which they start, if one is
      given.

  Raises:
    ValueError: an op has no device or is not in the graph, a device is not in
      the cluster, a group is split, or the order lacks an op, repeats one, or
      has one before an op that it depends on.
  """
  missing = [name for name in graph.names if name not in device_of]
  if missing:
    raise ValueError(
      f"{len(missing)} of {graph.num_ops} ops have no device in the placement,"
      f" first {missing[0]!r}; it was made for another model"
    )
  if len(device_of) > graph.num_ops:
    unknown = next(name for name in device_of if name not in graph.index)
    raise ValueError(f"the placement has an unknown op {unknown!r}")
  index = {name: i for i, name in enumerate(cluster.device_names)}
  for name in graph.names:
    if device_of[name] not in index:
      raise ValueError(
        f"op {name!r} is placed on {device_of[name]!r}, which is not in the"
        f" cluster; its devices are {', '.join(index)}"
      )
  device = np.array([index[device_of[x]] for x in graph.names], np.int64)
  device = graph.with_inputs_on_client(device)
  ops = None if order is None else _ops_in_order(graph, order)
  placement = Placement(graph.names, cluster.device_names, device, order=ops)
  check_placement(graph, cluster, placement)
  return placement


def _ops_in_order(graph: OpGraph, order: Sequence[str]) -> np.ndarray:
  """Returns the ops that an order names."""
  unknown = next((name for name in order if name not in graph.index), None)
  if unknown is not None:
    raise ValueError(f"the order has an unknown op {unknown!r}")
  return np.array([graph.index[name] for name in order], np.int64)


def read_placement(
  path: str | os.PathLike, graph: OpGraph, cluster: Cluster
) -> Placement:
  """Returns the placement in a JSON file, for `graph` on `cluster`.

  Raises:
    ValueError: the file is not a placement, or not one of this graph on this
      cluster; the message names the file.
    OSError: the file cannot be read.
  """
  device_of, order = read_names(path)
  try:
    return placement_for(graph, cluster, device_of, order)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def read_names(
  path: str | os.PathLike,
) -> tuple[dict[str, str], list[str] | None]:
  """Returns op name -> device name in a placement file, and the order of ops.

  The order is None if the file has none. Whose ops and devices they are is not
  checked.

  Raises:
    ValueError: the file is not a placement; the message names the file.
    OSError: the file cannot be read.
  """
  fields = read_json(path)
  device_of = fields.get("placement") if isinstance(fields, dict) else None
  if not isinstance(device_of, dict) or not all(
    isinstance(device, str) for device in device_of.values()
  ):
    raise ValueError(
      f'{path}: not a placement file: needs {{"placement": {{op: device}}}}'
    )
  order = fields.get("order")
  if order is not None and not (
    isinstance(order, list) and all(isinstance(name, str) for name in order)
  ):
    raise ValueError(f'{path}: "order" must be a list of the names of all ops')
  return device_of, order


def check_placement(
  graph: OpGraph, cluster: Cluster, placement: Placement
) -> None:
  """Checks what every placement must satisfy, whoever made it.

  Memory over time needs a schedule: the planner checks the simulated peak.

  Raises:
    ValueError: an op is not placed exactly once on a device of the cluster, a
      group is on two devices, a pinned op is on another device than its pin's,
      or the order is none of this graph's.
  """
  if placement.op_names != graph.names:
    raise ValueError("the placement is not of this graph's ops")
  if placement.device_names != cluster.device_names:
    raise ValueError("the placement is not on this cluster's devices")
  device = placement.device
  if device.shape != (graph.num_ops,):
    raise ValueError(f"{len(device)} devices for {graph.num_ops} ops")
  bad = np.flatnonzero((device < 0) | (device >= cluster.num_devices))
  if len(bad):
    raise ValueError(f"op {graph.names[bad[0]]!r} has no device")
  of_group = np.empty(graph.num_groups, np.int64)
  of_group[graph.group] = device
  split = np.flatnonzero(of_group[graph.group] != device)
  if len(split):
    op = split[0]
    other = np.flatnonzero(
      (graph.group == graph.group[op]) & (device != device[op])
    )[0]
    raise ValueError(
      f"ops {graph.names[op]!r} and {graph.names[other]!r} must share a device"
      f" but are on {cluster.device_names[device[op]]} and"
      f" {cluster.device_names[device[other]]}"
    )
  fixed = graph.fixed_device
  moved = np.flatnonzero((fixed != FREE) & (fixed != device))
  if len(moved):
    op = moved[0]
    raise ValueError(
      f"op {graph.names[op]!r} must be on {cluster.device_names[fixed[op]]},"
      f" as a pin or an input of the step demands, but is on"
      f" {cluster.device_names[device[op]]}"
    )
  if placement.order is not None:
    check_order(graph, placement.order)


def check_order(graph: OpGraph, order: np.ndarray) -> None:
  """Checks that devices can run their ops in an order.

  Args:
    graph: the ops.
    order: int64 `[n]`, the ops in the order in which they start.

  Raises:
    ValueError: an op is missing or repeated, or comes before one that it
      depends on: such an order has a cycle.
  """
  count = np.bincount(order, minlength=graph.num_ops)
  for bad, problem in (
    (np.flatnonzero(count == 0), "lacks"),
    (np.flatnonzero(count > 1), "repeats"),
  ):
    if len(bad):
      raise ValueError(
        f"the order {problem} {len(bad)} of {graph.num_ops} ops, first"
        f" {graph.names[bad[0]]!r}; it must have each op once"
      )
  position = np.empty(graph.num_ops, np.int64)
  position[order] = np.arange(graph.num_ops)
  source, target = graph.edge_source, graph.edge_op
  early = np.flatnonzero(position[source] >= position[target])
  if len(early):
    raise ValueError(
      f"the order has a cycle: {graph.names[target[early[0]]]!r} comes before"
      f" {graph.names[source[early[0]]]!r}, which it depends on"
    )
