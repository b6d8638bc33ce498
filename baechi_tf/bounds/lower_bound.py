"""The largest lower bound that is found, and where it comes from."""

import dataclasses

from baechi_tf.bounds import trial
from baechi_tf.bounds.relaxations import LowerBound
from baechi_tf.bounds.relaxations import relaxed_bound
from baechi_tf.bounds.relaxations import with_pins_grouped
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph


def lower_bound(
  graph: OpGraph, cluster: Cluster, makespan_us: float | None = None
) -> LowerBound:
  """Returns a makespan that no placement and no order of ops can beat.

  Args:
    graph: the ops and their costs; the step's inputs are on the first device,
      pinned ops on theirs.
    cluster: the devices and links.
    makespan_us: a makespan that can be reached: a plan's. The bound is no
      larger, and is that makespan if nothing faster is found to be possible;
      sums of times that differ by some parts in a billion count as equal.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  bound = relaxed_bound(graph, cluster)
  if not 1 < graph.num_ops <= trial.MOST_OPS:
    return bound
  if not 1 < cluster.num_devices <= trial.MOST_DEVICES:
    return bound
  us, cases = trial.largest_refuted(
    with_pins_grouped(graph), cluster, bound.us, makespan_us
  )
  if not cases:
    return dataclasses.replace(bound, us=us)  # perhaps in whole microseconds
  return LowerBound(us, "trial makespan", _witness(cases))


def _witness(cases: int) -> str:
  if cases == 1:
    return "ops' windows in a faster step contradict each other"
  return (
    "ops' windows in a faster step contradict each other in each of"
    f" {cases} cases of which ops share a device and which come first"
  )
