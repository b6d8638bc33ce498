"""The devices that a model's nodes have already, as pins.

A plan replaces them unless it is told to keep them. A node's device may leave
out its job or its task; it stands for the one device of the cluster that agrees
with all that it says. Inputs of the step are the caller's, and TensorFlow makes
small constants where they are used: their devices say nothing.
"""

import numpy as np
import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.graph_item import GraphItem
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph
from baechi_tf.rewrites.replicate_constant import is_small_constant

_FIELDS = ("job", "replica", "task", "device_type", "device_index")


def with_own_devices(
  graph: OpGraph, item: GraphItem, cluster: Cluster, *, keep: bool
) -> tuple[OpGraph, tuple[str, ...]]:
  """Returns a graph and notes on the devices that its model has already.

  Args:
    graph: the item's planned ops.
    item: the model.
    cluster: the devices.
    keep: whether the devices become pins; else they are ignored.

  Raises:
    ValueError: a device to keep is none or several of the cluster's, or nodes
      that must share a device have different ones.
  """
  if keep:
    return _with_kept_devices(graph, item, cluster)
  return graph, _ignored_note(item)


def _ignored_note(item: GraphItem) -> tuple[str, ...]:
  """Returns a note on the devices of planned ops, none if there are none."""
  count = len(_device_of_node(item))
  if not count:
    return ()
  ops = "1 op has a device" if count == 1 else f"{count:,} ops have devices"
  return (
    f"{ops} in the model, which the plan ignores; --keep-devices (in Python"
    " keep_devices=True) keeps them",
  )


def _with_kept_devices(graph, item, cluster):
  """Returns a graph with the model's devices as pins, and a note on them."""
  pin = np.full(graph.num_ops, FREE)
  known = {}  # of each name of a device, its index
  devices = _device_of_node(item)
  first = {}  # of each group, its first op with a device
  for name, device in devices.items():
    if device not in known:
      known[device] = _index(cluster, device, name)
    op = graph.index[name]
    if graph.is_input[op]:
      continue
    other = first.setdefault(int(graph.group[op]), op)
    if other != op and pin[other] != known[device]:
      raise ValueError(
        f"in the model, op {graph.names[other]!r} is on"
        f" {devices[graph.names[other]]!r} and op {name!r} on {device!r}, but"
        " they must share a device; keep_devices=True cannot keep both"
      )
    pin[op] = known[device]
  count = int((pin != FREE).sum())
  note = f"kept: the devices that {count:,} ops have in the model"
  return graph.with_pins(pin), (note,)


def _device_of_node(item: GraphItem) -> dict[str, str]:
  """Returns the device of each planned op that has one."""
  planned = set(item.op_names)
  return {
    node.name: node.device
    for node in item.graph_def.node
    if node.device and node.name in planned and not is_small_constant(node)
  }


def _index(cluster: Cluster, device: str, op: str) -> int:
  """Returns the cluster's device that a node's device stands for."""
  known = ", ".join(cluster.device_names)
  try:
    wanted = tf.DeviceSpec.from_string(device)
    found = [
      k
      for k, name in enumerate(cluster.device_names)
      if _agree(wanted, tf.DeviceSpec.from_string(name))
    ]
  except ValueError as error:
    raise ValueError(
      f"op {op!r} is on {device!r} in the model: {error}"
    ) from None
  if not found:
    raise ValueError(
      f"op {op!r} is on {device!r} in the model, which is none of the cluster's"
      f" devices, {known}; without keep_devices=True it is ignored"
    )
  if len(found) > 1:
    names = ", ".join(cluster.device_names[k] for k in found)
    raise ValueError(
      f"op {op!r} is on {device!r} in the model, which may be any of {names};"
      " keep_devices=True needs one"
    )
  return found[0]


def _agree(a: tf.DeviceSpec, b: tf.DeviceSpec) -> bool:
  return all(
    None in (x, y) or x == y
    for x, y in ((getattr(a, f), getattr(b, f)) for f in _FIELDS)
  )
