"""A contiguous split balanced by time: what an expert does by hand.

The groups, in topological order of their first op, are cut into one stretch per
device so that the longest stretch is as short as it can be while each fits its
device. Communication plays no part.
"""

import dataclasses

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placers.walk import groups_in_order
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import op_fits_nowhere
from baechi_tf.shortage import Shortage
from baechi_tf.watched import Progress

_BISECTIONS = 50


def place(
  graph: OpGraph, cluster: Cluster, progress: Progress | None = None
) -> Placement:
  """Returns the contiguous split with the shortest longest stretch.

  A stretch's memory is what its ops would use if the whole step ran in
  topological order. Optimal for devices of equal speed and memory; devices
  that differ are filled in the order in which the cluster lists them. Pinned
  groups are in no stretch: their time and the most that they hold come first.

  Args:
    graph: the ops to place; groups and pins are hard constraints.
    cluster: the devices, whose memory is a limit.
    progress: not called, because this takes no time to speak of.

  Raises:
    InfeasiblePlacementError: a group fits on no device that is left.
    ValueError: the graph has no times for a device's type.
  """
  sequence, offsets = groups_in_order(graph)
  pin = graph.group_pin[graph.group]
  room = cluster.memory_bytes - _pinned_bytes(graph, cluster, sequence)
  pinned_us = np.bincount(
    pin[pin != FREE],
    graph.times_on(cluster.types)[pin != FREE, pin[pin != FREE]],
    cluster.num_devices,
  )
  graph = _only(graph, pin == FREE)
  freed = _freed_after(graph, sequence)
  times = graph.times_on(cluster.types)[sequence]
  arrays = (
    offsets,
    times,
    graph.persistent_bytes[sequence],
    graph.temporary_bytes[sequence],
    graph.output_held_bytes[sequence],
    *freed,
    room,
    pinned_us,
    pin[sequence[offsets[:-1]]] != FREE,
  )
  best, stopped = _fill(np.inf, *arrays)
  if stopped >= 0:
    raise InfeasiblePlacementError(
      _why_not(graph, cluster, sequence, offsets, freed, room, best, stopped)
    )
  low, high = 0.0, float((times.sum(axis=0) + pinned_us).max(initial=0.0))
  for _ in range(_BISECTIONS):
    limit = (low + high) / 2
    trial, stopped = _fill(limit, *arrays)
    if stopped < 0:
      best, high = trial, limit
    else:
      low = limit
  device = np.empty(graph.num_ops, np.int64)
  device[sequence] = best
  device = np.where(pin == FREE, device, pin)
  return Placement(graph.names, cluster.device_names, device)


def _only(graph: OpGraph, counts: np.ndarray) -> OpGraph:
  """Returns the graph in which ops cost nothing unless `counts`, bool `[n]`."""
  if counts.all():
    return graph
  costless = dataclasses.replace(
    graph,
    compute_time_us=graph.compute_time_us * counts[:, None],
    persistent_bytes=graph.persistent_bytes * counts,
    temporary_bytes=graph.temporary_bytes * counts,
    tensor_bytes=graph.tensor_bytes * counts[graph.tensor_op],
  )
  return costless.with_order(graph.order)


def _pinned_bytes(graph, cluster, sequence) -> np.ndarray:
  """Returns int64 `[D]`: the most that pinned ops hold, run in sequence."""
  pin = graph.group_pin[graph.group]
  most = np.zeros(cluster.num_devices, np.int64)
  for k in np.unique(pin[pin != FREE]).tolist():
    here = _only(graph, pin == k)
    needed, _ = _stretch_memory(here, sequence, 0, _freed_after(here, sequence))
    most[k] = sum(needed.values())
  return most


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


def _why_not(
  graph, cluster, sequence, offsets, freed, room, device, stopped
) -> str:
  """Returns what each device lacks for the group that was left over.

  The device that was being filled would have to add it to its stretch, those
  after it would start one with it.
  """
  first, end = offsets[stopped], offsets[stopped + 1]
  current = device[first - 1] if first else 0
  shortages = []
  for k in range(cluster.num_devices):
    if k < current:
      shortages.append(Shortage(k, excluded="the ops before fill it"))
      continue
    begin = first
    if k == current and first:
      begin = np.flatnonzero(device[:first] == k)[0]
    needed, at = _stretch_memory(graph, sequence[begin:end], begin, freed)
    shortages.append(Shortage(k, needed, int(room[k]), at_op=graph.names[at]))
  return op_fits_nowhere(graph, cluster, int(sequence[first]), shortages)


def _stretch_memory(graph, ops, begin, freed):
  """Returns a stretch's memory by kind, and the op at which it peaks."""
  freed_offsets, made, sizes = freed
  end = begin + len(ops)
  at = np.repeat(np.arange(graph.num_ops), np.diff(freed_offsets))
  inside = (at >= begin) & (at < end) & (made >= begin)
  released = np.bincount(at[inside] - begin, sizes[inside], len(ops))
  live = graph.output_held_bytes[ops].cumsum()
  live[1:] -= released.cumsum()[:-1].astype(np.int64)
  peak = np.argmax(live + graph.temporary_bytes[ops])
  needed = memory_by_kind(
    graph.persistent_bytes[ops].sum(),
    live[peak],
    graph.temporary_bytes[ops[peak]],
  )
  return needed, ops[peak]


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
  pinned_us,
  is_pinned,
):
  """Fills device after device, none for longer than `limit`.

  Pinned groups cost nothing here: they join any stretch.

  Returns the device of each position, and the first group that was left over
  (-1: none was).
  """
  num_groups = len(offsets) - 1
  device = np.zeros(len(persistent), np.int64)
  k = 0
  begin = 0  # first position of the stretch
  busy, held, live, peak = pinned_us[0], 0, 0, 0
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
    fits = new_busy <= limit and new_held + new_peak <= memory[k]
    if is_pinned[group] or fits:
      busy, held, live, peak = new_busy, new_held, new_live, new_peak
      device[first:last] = k
      group += 1
      continue
    k += 1
    if k == len(memory):
      return device, group
    begin = first
    busy, held, live, peak = pinned_us[k], 0, 0, 0
  return device, -1
