"""Plans a step of micro-batches: the pipeline that is fastest and fits.

Micro-batches that begin before others end cost memory for their activations.
Where that is short, plans with fewer of them in flight are tried too.
"""

import dataclasses
from typing import Any

from baechi_tf.cluster import Cluster
from baechi_tf.micro_batch_graph import as_pipeline
from baechi_tf.micro_batch_graph import limit_in_flight
from baechi_tf.micro_batch_graph import micro_batch_of
from baechi_tf.micro_batch_stages import pipeline_splits
from baechi_tf.op_graph import OpGraph
from baechi_tf.order import ops_worth_ordering
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import Plan
from baechi_tf.planner import plan
from baechi_tf.simulator import simulate


def plan_micro_batches(
  graph: OpGraph, cluster: Cluster, *, order: bool = True, **arguments: Any
) -> Plan:
  """Returns a feasible plan of a step of micro-batches.

  Args:
    graph: the fine graph, whose micro-batches are told apart by their names.
    cluster: devices, whose memory is a limit, and links.
    order: whether the devices will run their ops in the plan's order.
      Without, only one plan is tried: nothing bounds what is in flight.
    **arguments: those of `planner.plan`.

  Raises:
    InfeasiblePlacementError: no plan was found that fits the memory.
    ValueError: see `planner.plan`.
  """
  pipeline = as_pipeline(graph)
  num = int(micro_batch_of(graph.names).max(initial=0)) + 1
  best, in_flight, first_error = None, num, None
  # One forward, one backward needs as many as there are stages.
  for most in (num, *range(min(cluster.num_devices, num - 1), 0, -1)):
    limited = pipeline if most == num else limit_in_flight(pipeline, most)
    splits = pipeline_splits(limited, cluster, most)
    try:
      found = plan(limited, cluster, order=order, pipelines=splits, **arguments)
    except InfeasiblePlacementError as error:
      first_error = first_error or error
    else:
      if best is not None and _makespan_us(found) >= _makespan_us(best):
        break  # fewer take longer still
      best, in_flight = found, most
      if all(x.simulation for x in found.candidates):
        break  # memory does not matter
    if not order:
      break
  if best is None:
    raise first_error
  if in_flight == num:
    return best
  return _without_limit(best, graph, cluster, in_flight)


def _makespan_us(planned: Plan) -> float:
  return planned.simulation.makespan_us


def _without_limit(planned: Plan, graph, cluster, in_flight: int) -> Plan:
  """Returns a plan of the graph itself, whose order has the limit in it."""
  simulation = simulate(
    graph,
    cluster,
    planned.simulation.device,
    policy="strict",
    order=planned.simulation.order,
  )
  return dataclasses.replace(
    planned,
    chosen=dataclasses.replace(planned.chosen, simulation=simulation),
    placement=dataclasses.replace(
      planned.placement,
      order=simulation.order,
      makespan_us=simulation.makespan_us,
    ),
    ordered_ops=ops_worth_ordering(graph, cluster, simulation),
    notes=(
      *planned.notes,
      f"memory is short: at most {in_flight} micro-batches are in flight",
    ),
  )
