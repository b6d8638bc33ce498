"""m-SCT: small communication times, with memory (Jeon et al., SoCC 2020)."""

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.placers import list_scheduling
from baechi_tf.placers.favorite_child import favorite_children
from baechi_tf.watched import Progress


def place(
  graph: OpGraph, cluster: Cluster, progress: Progress | None = None
) -> Placement:
  """Returns the m-SCT placement.

  Args:
    graph: the ops to place; groups are hard constraints.
    cluster: the devices, whose memory is a limit.
    progress: called now and then with (ops placed, ops in all).

  Raises:
    InfeasiblePlacementError: an op fits on no device.
    LinearProgramError: the favourite children's linear program failed.
    ValueError: the graph has no times for a device's type.
  """
  return list_scheduling.schedule(
    graph, cluster, favorite_children(graph, cluster), progress
  )
