"""m-ETF: earliest task first, with memory (Jeon et al., SoCC 2020)."""

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.placers import list_scheduling


def place(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the m-ETF placement.

  Raises:
    InfeasiblePlacementError: an op fits on no device.
    ValueError: the graph has no times for a device's type.
  """
  return list_scheduling.schedule(graph, cluster)
