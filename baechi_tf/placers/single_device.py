"""Everything on one device: what any plan has to beat."""

import dataclasses

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph
from baechi_tf.peak_memory import shortage_at_peak
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.shortage import shortage_message
from baechi_tf.simulator import simulate
from baechi_tf.watched import Progress


def step_alone_us(graph: OpGraph, cluster: Cluster) -> np.ndarray:
  """Returns float64 `[num_devices]`: the step's time, all on one device.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  times = graph.times_on(cluster.types)
  return times.sum(axis=0) + 2 * cluster.dispatch_us


def place(
  graph: OpGraph, cluster: Cluster, progress: Progress | None = None
) -> Placement:
  """Returns the placement on the fastest device that can hold the step.

  Pinned ops are on their devices, all others on that one. Ties go to the lower
  device.

  Args:
    graph: the ops to place; groups and pins are hard constraints.
    cluster: the devices, whose memory is a limit.
    progress: not called, because this takes no time to speak of.

  Raises:
    InfeasiblePlacementError: no device can; the message says what each would
      need, and at which op.
    ValueError: the graph has no times for a device's type.
  """
  if (graph.group_pin != FREE).any():
    return _beside_pins(graph, cluster)
  # Devices of one type run the step alike: one simulation stands for all.
  alone = {}
  for k, device_type in enumerate(cluster.types):
    if device_type not in alone:
      device = np.full(graph.num_ops, k, np.int64)
      alone[device_type] = k, simulate(graph, cluster, device)
  alone_us = step_alone_us(graph, cluster)
  for k in np.argsort(alone_us, kind="stable").tolist():
    first, simulation = alone[cluster.types[k]]
    if simulation.peak_memory_bytes[first] <= cluster.memory_bytes[k]:
      device = np.full(graph.num_ops, k, np.int64)
      return Placement(graph.names, cluster.device_names, device)
  peaks = {
    device_type: shortage_at_peak(graph, cluster, simulation, first)
    for device_type, (first, simulation) in alone.items()
  }
  shortages = [
    dataclasses.replace(
      peaks[device.type], device=k, available_bytes=device.memory_bytes
    )
    for k, device in enumerate(cluster.devices)
  ]
  raise InfeasiblePlacementError(_no_single_device(cluster, shortages))


def _beside_pins(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the best placement with all that is not pinned on one device."""
  pin = graph.group_pin[graph.group]
  best_us, best, shortages = np.inf, None, []
  for k in range(cluster.num_devices):
    device = np.where(pin == FREE, k, pin)
    simulation = simulate(graph, cluster, device)
    lacking = simulation.peak_memory_bytes - cluster.memory_bytes
    if lacking.max() > 0:
      worst = int(lacking.argmax())
      shortages.append(shortage_at_peak(graph, cluster, simulation, worst))
    elif simulation.makespan_us < best_us:
      best_us, best = simulation.makespan_us, device
  if best is None:
    raise InfeasiblePlacementError(_no_single_device(cluster, shortages))
  return Placement(graph.names, cluster.device_names, best)


def _no_single_device(cluster: Cluster, shortages) -> str:
  return (
    "the whole step fits on no single device:"
    f" {shortage_message(cluster, shortages)}"
  )
