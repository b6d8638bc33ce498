"""m-TOPO: balanced memory in topological order (Jeon et al., SoCC 2020)."""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placers.walk import groups_in_order
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import op_fits_nowhere
from baechi_tf.shortage import Shortage
from baechi_tf.watched import Progress


def place(
  graph: OpGraph, cluster: Cluster, progress: Progress | None = None
) -> Placement:
  """Returns the m-TOPO placement: fills one device after the other.

  An op's memory is all of it: persistent, temporary and outputs. A group goes
  where its first op goes, so it is the unit that must fit under the cap. What
  is pinned takes its memory first, whatever the cap.

  Args:
    graph: the ops to place; groups and pins are hard constraints.
    cluster: the devices, whose memory is a limit.
    progress: not called, because this takes no time to speak of.

  Raises:
    InfeasiblePlacementError: a group is left over when the last device is full.
  """
  group_memory = graph.group_memory_bytes
  cap = int(group_memory.sum()) // cluster.num_devices
  cap += int(group_memory.max(initial=0))
  room = np.minimum(cluster.memory_bytes, cap)
  is_pinned = graph.group_pin != FREE
  np.subtract.at(room, graph.group_pin[is_pinned], group_memory[is_pinned])

  group_device = graph.group_pin.copy()
  k = 0
  sequence, offsets = groups_in_order(graph)
  for op in sequence[offsets[:-1]].tolist():
    group = graph.group[op]
    if is_pinned[group]:
      continue
    while group_memory[group] > room[k]:
      k += 1
      if k == cluster.num_devices:
        raise InfeasiblePlacementError(_why_not(graph, cluster, op, room, cap))
    room[k] -= group_memory[group]
    group_device[group] = k
  device = group_device[graph.group]
  return Placement(graph.names, cluster.device_names, device)


def _why_not(graph, cluster, op, room, cap) -> str:
  """Returns what each device lacks; some have room but were passed before."""
  members = graph.group == graph.group[op]
  needed = memory_by_kind(
    graph.persistent_bytes[members].sum(),
    graph.output_held_bytes[members].sum(),
    graph.temporary_bytes[members].sum(),
  )
  shortages = [Shortage(k, needed, int(x)) for k, x in enumerate(room)]
  shortages = [
    x
    if x.lacking_bytes > 0
    else Shortage(x.device, excluded="m_topo filled it before and moved on")
    for x in shortages
  ]
  message = op_fits_nowhere(graph, cluster, op, shortages)
  if (cap < cluster.memory_bytes).any():
    message += f"; m_topo fills no device with more than {cap:,} bytes"
  return message
