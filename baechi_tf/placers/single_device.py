"""Everything on one device: what any plan has to beat."""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.simulator import overflow
from baechi_tf.simulator import simulate


def place(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the placement on the fastest device that can hold the step.

  Ties go to the lower device.

  Raises:
    InfeasiblePlacementError: no device can; the message says what the largest
      one would need, and at which op.
    ValueError: the graph has no times for a device's type.
  """
  total = graph.times_on(cluster.types).sum(axis=0)
  for k in np.argsort(total, kind="stable").tolist():
    if _overflow_on(graph, cluster, k) is None:
      device = np.full(graph.num_ops, k, np.int64)
      return Placement(graph.names, cluster.device_names, device)
  largest = int(np.argmax(cluster.memory_bytes))
  raise InfeasiblePlacementError(
    f"the whole step on one device: {_overflow_on(graph, cluster, largest)}"
  )


def _overflow_on(graph, cluster, k):
  device = np.full(graph.num_ops, k, np.int64)
  return overflow(graph, cluster, simulate(graph, cluster, device))
