"""Grappler's virtual cluster: single ops estimated on a described device.

The time of an estimate grows faster than the graph that Grappler is given, so
it is given many small ones: each op alone between inputs of known shape.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

# Checked with TensorFlow 2.21.
from tensorflow.core.grappler.costs import op_performance_data_pb2
from tensorflow.core.protobuf import device_properties_pb2

from baechi_tf import private
from baechi_tf.cluster import DeviceType
from baechi_tf.costs.shapes import TensorInfo

grappler_cluster = private.find(
  "tensorflow.python.grappler.cluster", "the costs of ops"
)
grappler_item = private.find(
  "tensorflow.python.grappler.item", "the costs of ops"
)

v1 = tf.compat.v1

# Grappler looks a node's device up by this name; with "GPU" in it, it would
# ask for a real one.
_DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"
# It rounds times down to microseconds: a device this many times slower gives
# hundredths of one.
SLOWER = 100


@dataclasses.dataclass(frozen=True)
class DistinctOp:
  """A node with all that its cost depends on."""

  node: v1.NodeDef
  inputs: tuple[TensorInfo, ...]
  constants: tuple[v1.NodeDef | None, ...]  # inputs that are small constants
  referents: tuple[TensorInfo | None, ...]  # what input handles refer to
  outputs: tuple[TensorInfo, ...]

  @property
  def key(self) -> tuple:
    """Equal for ops of equal cost."""
    attrs = sorted(
      (name, value.SerializeToString(deterministic=True))
      for name, value in self.node.attr.items()
      if not name.startswith("_")
    )
    constants = tuple(
      x and x.attr["value"].SerializeToString() for x in self.constants
    )
    return (
      self.node.op,
      tuple(attrs),
      self.inputs,
      constants,
      self.referents,
      self.outputs,
    )


def virtual_cluster(device_type: DeviceType) -> grappler_cluster.Cluster:
  """A cluster of one such device, `SLOWER` times slower."""
  device = device_properties_pb2.NamedDevice(name=_DEVICE)
  properties = device.properties
  properties.type = device_type.kind
  properties.environment["architecture"] = device_type.architecture or "7.0"
  properties.num_cores = 1
  properties.frequency = 10**6
  with grappler_cluster.Provision(devices=[device]) as cluster:
    # What Grappler takes a core to do in a cycle, times 1000.
    per_mhz = cluster.EstimatePerformance(device) / 10**6
  if device_type.flops_per_cycle is None:
    peak = per_mhz * device_type.frequency_mhz * device_type.cores
  else:
    peak = (
      device_type.flops_per_cycle
      * device_type.frequency_mhz
      * device_type.cores
      / 1000
    )
  properties.frequency = max(round(peak / per_mhz / SLOWER), 1)
  kilobytes_per_s = device_type.bytes_per_us * 1000
  properties.bandwidth = max(round(kilobytes_per_s / SLOWER), 1)
  return grappler_cluster.Cluster(devices=[device])


def performances(
  ops: Sequence[DistinctOp], cluster: grappler_cluster.Cluster
) -> list[op_performance_data_pb2.OpPerformance | None]:
  """Returns Grappler's estimate for each op, if it has one."""
  if not ops:
    return []
  graph_def = v1.GraphDef()
  for i, op in enumerate(ops):
    node = v1.NodeDef(name=f"op{i}", op=op.node.op)
    for key, value in op.node.attr.items():
      if not key.startswith("_"):
        node.attr[key].CopyFrom(value)
    pairs = zip(op.inputs, op.constants, strict=True)
    for j, (info, constant) in enumerate(pairs):
      source = v1.NodeDef()
      source.CopyFrom(constant or _constant_of(info))
      source.name = f"op{i}_input{j}"
      del source.input[:]
      graph_def.node.append(source)
      node.input.append(source.name)
    graph_def.node.append(node)
  for node in graph_def.node:
    node.device = _DEVICE
  item = grappler_item.Item(_meta_graph_of(graph_def))
  estimates, _, _ = cluster.MeasureCosts(item)
  by_name = {x.node: x for x in estimates}
  return [by_name.get(f"op{i}") for i in range(len(ops))]


def _constant_of(info: TensorInfo) -> v1.NodeDef:
  """Returns a node of that output, whose value nothing can depend on.

  Grappler takes the shape of a placeholder for unknown.
  """
  node = v1.NodeDef(op="ImmutableConst")
  node.attr["dtype"].type = info.dtype.as_datatype_enum
  node.attr["shape"].shape.CopyFrom(tf.TensorShape(info.shape).as_proto())
  node.attr["memory_region_name"].s = b"none"
  return node


def _meta_graph_of(graph_def: v1.GraphDef) -> v1.MetaGraphDef:
  """Returns a graph as Grappler wants it, with every node to be run."""
  meta_graph = v1.MetaGraphDef(graph_def=graph_def)
  fetched = meta_graph.collection_def["train_op"].node_list.value
  fetched.extend(node.name for node in graph_def.node)
  return meta_graph
