"""Everything on one device: what any plan has to beat."""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.simulator import simulate


def place(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the placement on the fastest device that can hold the step.

  Ties go to the lower device.

  Raises:
    InfeasiblePlacementError: no device can; the message says how much the
      largest one lacks.
    ValueError: the graph has no times for a device's type.
  """
  total = graph.times_on(cluster.types).sum(axis=0)
  memory = cluster.memory_bytes
  needed = 0
  for k in np.argsort(total, kind="stable").tolist():
    device = np.full(graph.num_ops, k, np.int64)
    # One device runs the same schedule whatever its speed, up to ties.
    needed = int(simulate(graph, cluster, device).peak_memory_bytes[k])
    if needed <= memory[k]:
      return Placement(graph.names, cluster.device_names, device)
  largest = int(np.argmax(memory))
  raise InfeasiblePlacementError(
    f"one device needs {needed:,} bytes for the whole step; the largest,"
    f" {cluster.device_names[largest]}, has {int(memory[largest]):,}"
  )
