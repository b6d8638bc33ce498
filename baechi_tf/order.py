"""Finds the ops whose order decides whether a plan's prediction comes true."""

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import Simulation

# An op that takes less of the step delays no other by an amount that counts;
# it also bounds the ops that are kept in order: this many a processor.
_PART_OF_STEP = 1 / 1000


def ops_worth_ordering(
  graph: OpGraph, cluster: Cluster, simulation: Simulation
) -> tuple[str, ...]:
  """Returns the names of the ops that take long, as they start.

  Args:
    graph: the ops and their costs.
    cluster: the devices.
    simulation: the plan's step: when its ops start, and how long it takes.
  """
  times = graph.times_on(cluster.types)
  least_us = simulation.makespan_us * _PART_OF_STEP
  return tuple(
    graph.names[op]
    for op in simulation.order.tolist()
    if times[op, simulation.device[op]] >= least_us
  )
