"""A contiguous split balanced by time: what an expert does by hand.

The groups, in topological order of their first op, are cut into one stretch per
device so that the longest stretch is as short as it can be while each fits its
device. Communication plays no part.
"""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import infeasible_message
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placers.walk import groups_in_order

_BISECTIONS = 50


def place(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the contiguous split with the shortest longest stretch.

  A stretch's memory is what its ops would use if the whole step ran in
  topological order. Optimal for devices of equal speed and memory; devices
  that differ are filled in the order in which the cluster lists them.

  Raises:
    InfeasiblePlacementError: a group fits on no device that is left.
    ValueError: the graph has no times for a device's type.
  """
  sequence, offsets = groups_in_order(graph)
  freed = _freed_after(graph, sequence)
  times = graph.times_on(cluster.types)[sequence]
  arrays = (
    offsets,
    times,
    graph.persistent_bytes[sequence],
    graph.temporary_bytes[sequence],
    graph.output_held_bytes[sequence],
    *freed,
    cluster.memory_bytes,
  )
  best, stopped = _fill(np.inf, *arrays)
  if stopped >= 0:
    op = sequence[offsets[stopped]]
    group = graph.group[op]
    needed = (
      graph.group_persistent_bytes[group] + graph.group_working_bytes[group]
    )
    raise InfeasiblePlacementError(
      infeasible_message(
        graph, cluster, int(op), int(needed), np.zeros(cluster.num_devices)
      )
    )
  low, high = 0.0, float(times.sum(axis=0).max(initial=0.0))
  for _ in range(_BISECTIONS):
    limit = (low + high) / 2
    trial, stopped = _fill(limit, *arrays)
    if stopped < 0:
      best, high = trial, limit
    else:
      low = limit
  device = np.empty(graph.num_ops, np.int64)
  device[sequence] = best
  return Placement(graph.names, cluster.device_names, device)


def _freed_after(graph, sequence):
  """Returns which tensors are freed after each position, as CSR.

  Three arrays: offsets `[n + 1]`, the position where each freed tensor was
  made, and its bytes.
  """
  position = np.empty(graph.num_ops, np.int64)
  position[sequence] = np.arange(graph.num_ops)
  made = position[graph.tensor_op]
  last = made.copy()
  np.maximum.at(last, graph.edge_tensor, position[graph.edge_op])
  order = np.argsort(last, kind="stable")
  return (
    offsets_of(last[order], graph.num_ops),
    made[order],
    graph.tensor_held_bytes[order],
  )


@compiled
def _fill(
  limit,
  offsets,
  times,
  persistent,
  temporary,
  outputs,
  freed_offsets,
  freed_made,
  freed_bytes,
  memory,
):
  """Fills device after device, none for longer than `limit`.

  Returns the device of each position, and the first group that was left over
  (-1: none was).
  """
  num_groups = len(offsets) - 1
  device = np.zeros(len(persistent), np.int64)
  k = 0
  begin = 0  # first position of the stretch
  busy, held, live, peak = 0.0, 0, 0, 0
  group = 0
  while group < num_groups:
    first, last = offsets[group], offsets[group + 1]
    new_busy, new_held, new_live, new_peak = busy, held, live, peak
    for i in range(first, last):
      new_busy += times[i, k]
      new_held += persistent[i]
      new_live += outputs[i]
      new_peak = max(new_peak, new_live + temporary[i])
      for j in range(freed_offsets[i], freed_offsets[i + 1]):
        if freed_made[j] >= begin:
          new_live -= freed_bytes[j]
    if new_busy <= limit and new_held + new_peak <= memory[k]:
      busy, held, live, peak = new_busy, new_held, new_live, new_peak
      device[first:last] = k
      group += 1
      continue
    k += 1
    if k == len(memory):
      return device, group
    begin = first
    busy, held, live, peak = 0.0, 0, 0, 0
  return device, -1
