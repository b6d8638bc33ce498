"""m-SCT: small communication times, with memory (Jeon et al., SoCC 2020)."""

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.placers import list_scheduling
from baechi_tf.placers.favorite_child import favorite_children


def place(graph: OpGraph, cluster: Cluster) -> Placement:
  """Returns the m-SCT placement.

  Raises:
    InfeasiblePlacementError: an op fits on no device.
    LinearProgramError: the favourite children's linear program failed.
    ValueError: the graph has no times for a device's type.
  """
  return list_scheduling.schedule(
    graph, cluster, favorite_children(graph, cluster)
  )
