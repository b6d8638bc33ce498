"""Memory that no placement can do with, whatever the schedule."""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import op_fits_nowhere
from baechi_tf.shortage import Shortage

# Shorter ops, of the step's time, may begin and end at one instant: their
# inputs are free again before their outputs are taken.
_INSTANT = 1e-9


def check_memory(graph: OpGraph, cluster: Cluster) -> None:
  """Checks what any placement needs, whatever the schedule.

  All persistent bytes are on some device. While an op runs, its device holds
  its inputs, outputs and workspace, and all persistent bytes of its group.

  Raises:
    InfeasiblePlacementError: all persistent bytes exceed all memory, or an op
      with its inputs and its group exceeds every device.
    ValueError: the graph has no times for a device's type.
  """
  memory = cluster.memory_bytes
  persistent = int(graph.persistent_bytes.sum())
  if persistent > memory.sum():
    largest = _first_largest(graph, graph.persistent_bytes)
    raise InfeasiblePlacementError(
      f"the persistent state needs {persistent:,} bytes and all devices"
      f" together have {int(memory.sum()):,}; the largest piece is op"
      f" {graph.names[largest]!r} with"
      f" {int(graph.persistent_bytes[largest]):,} bytes. More or larger devices"
      " would help"
    )
  if graph.num_ops == 0:
    return
  inputs = input_bytes(graph, cluster) + _persistent_inputs(graph, cluster)
  of_group = graph.group_persistent_bytes[graph.group]
  needed = of_group + graph.working_bytes + inputs
  if needed.max() <= memory.max():
    return
  at = _first_largest(graph, needed)
  kinds = memory_by_kind(
    of_group[at], graph.output_held_bytes[at], graph.temporary_bytes[at]
  ) | {"inputs": int(inputs[at])}
  shortages = [Shortage(k, kinds, int(x)) for k, x in enumerate(memory)]
  own = graph.persistent_bytes + graph.working_bytes + inputs
  op = _first_largest(graph, np.where(graph.group == graph.group[at], own, -1))
  raise InfeasiblePlacementError(op_fits_nowhere(graph, cluster, op, shortages))


def input_bytes(graph: OpGraph, cluster: Cluster) -> np.ndarray:
  """Returns int64 `[n]`: what the inputs of each op hold beside it, at least.

  A tensor is held from before its consumer starts to that one's end, on the
  producer's device or as a copy. Persistent tensors are left out, as are the
  inputs of ops that take no time.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  total = np.zeros(graph.num_ops, np.int64)
  np.add.at(total, graph.edge_op, graph.tensor_held_bytes[graph.edge_tensor])
  return np.where(_takes_time(graph, cluster), total, 0)


def _persistent_inputs(graph, cluster):
  """What an op's persistent inputs from other groups hold beside it, at least.

  Those of one producer: their bytes as copies, or all that the producer holds.
  """
  source, target, pair = graph.op_pairs
  size = np.where(graph.tensor_is_persistent, graph.tensor_bytes, 0)
  of_pair = np.zeros(len(source), np.int64)
  np.add.at(of_pair, pair, size[graph.edge_tensor])
  of_pair = np.minimum(of_pair, graph.persistent_bytes[source])
  of_pair[graph.group[source] == graph.group[target]] = 0
  total = np.zeros(graph.num_ops, np.int64)
  np.add.at(total, target, of_pair)
  return np.where(_takes_time(graph, cluster), total, 0)


def _takes_time(graph, cluster):
  times = graph.times_on(cluster.types).min(axis=1)
  return times > _INSTANT * times.sum()


def _first_largest(graph, values) -> int:
  """The op with the largest value, the first of them in topological order."""
  return int(graph.order[np.argmax(values[graph.order])])
