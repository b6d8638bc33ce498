"""A plan that was made elsewhere, or edited by hand: checked and priced."""

import dataclasses
import os
import time
from collections.abc import Callable
from collections.abc import Mapping
from types import MappingProxyType

from baechi_tf.bounds import lower_bound
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.order import ops_worth_ordering
from baechi_tf.peak_memory import overflow
from baechi_tf.pins import pinned_graph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placement import read_placement
from baechi_tf.planner import APART
from baechi_tf.planner import Candidate
from baechi_tf.planner import Plan
from baechi_tf.simulator import follow

GIVEN = "given"  # the placer of a plan that no placer made


def read_plan(
  path: str | os.PathLike,
  graph: OpGraph,
  cluster: Cluster,
  *,
  order: bool = True,
  pins: Mapping[str, str] = MappingProxyType({}),
  progress: Callable[[str], None] = lambda stage: None,
) -> Plan:
  """Returns the plan in a JSON file, with its predicted step and a bound.

  Args:
    path: a file with a "placement" and perhaps an "order", as `Placement`
      writes it.
    graph: the fine graph; its groups and pins are hard constraints.
    cluster: devices, whose memory is a limit, and links.
    order: whether the devices run their ops in the file's order, if it has one;
      else each runs what is ready as TensorFlow's executor does.
    pins: device names by regular expression, which the plan must keep.
    progress: called with a line before each stage.

  Raises:
    ValueError: the file is not a plan of this graph on this cluster, its order
      has a cycle, or it breaks a group or a pin.
    InfeasiblePlacementError: a device has too little memory for the plan.
    OSError: the file cannot be read.
  """
  begin = time.perf_counter()
  graph, kept_pins = pinned_graph(graph, cluster, pins)
  given = read_placement(path, graph, cluster)
  if not order:
    given = dataclasses.replace(given, order=None)
  progress("simulating")
  simulation = follow(graph, cluster, given)
  problem = overflow(graph, cluster, simulation)
  if problem is not None:
    raise InfeasiblePlacementError(f"{os.fspath(path)}: {problem}")
  progress("bounds")
  bound = lower_bound(graph, cluster, simulation.makespan_us)
  chosen = Candidate(GIVEN, APART, simulation)
  return Plan(
    placement=Placement(
      graph.names,
      cluster.device_names,
      simulation.device,
      order=None if given.order is None else simulation.order,
      makespan_us=simulation.makespan_us,
      lower_bound_us=bound.us,
    ),
    chosen=chosen,
    bound=bound,
    candidates=(chosen,),
    ordered_ops=()
    if given.order is None
    else ops_worth_ordering(graph, cluster, simulation),
    num_coarse_ops={},
    pins=kept_pins,
    notes=tuple(x.note for x in kept_pins),
    timings_s={"pricing": time.perf_counter() - begin},
  )
