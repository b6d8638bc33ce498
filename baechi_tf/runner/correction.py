"""Costs corrected by what a run of a plan took, before the next plan is made.

Two steps, each as simple as it can be. Ops: all of one type on one type of
device take longer or shorter by the same factor, that of their measured times.
Links: whatever of the step is not explained then is put down to the links that
the plan used, which all get slower by the same factor.
"""

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import simulate

# One step's times are noisy: no factor leaves these bounds.
_LEAST, _MOST = 0.25, 4.0
_SLOWEST_LINK = 1024.0
_PRECISION = 0.01
_BASE_US = 1.0  # what a link that costs nothing begins to cost


def corrected_ops(
  graph: OpGraph,
  cluster: Cluster,
  device: np.ndarray,
  op_types: Sequence[str],
  measured_us: Mapping[str, float],
) -> tuple[OpGraph, dict[str, float]]:
  """Returns the graph with measured times, and each op type's factor.

  Args:
    graph: the ops and what they were thought to take.
    cluster: the devices.
    device: int `[n]`, where each op ran.
    op_types: `[n]`, such as "MatMul".
    measured_us: the times of the ops that were seen, by name.
  """
  types = np.array(cluster.types)[device]
  planned = graph.times_on(cluster.types)[np.arange(graph.num_ops), device]
  sums = {}
  for name, time_us in measured_us.items():
    op = graph.index[name]
    key = (op_types[op], types[op])
    before, after = sums.get(key, (0.0, 0.0))
    sums[key] = (before + planned[op], after + time_us)
  factors = {
    key: min(max(after / before, _LEAST), _MOST)
    for key, (before, after) in sums.items()
    if before > 0
  }
  names = tuple(dict.fromkeys(cluster.types))
  times = graph.times_on(names).copy()
  for column, name in enumerate(names):
    times[:, column] *= [factors.get((x, name), 1.0) for x in op_types]
  corrected = dataclasses.replace(
    graph, device_types=names, compute_time_us=times
  )
  return corrected, {f"{x} on {y}": f for (x, y), f in factors.items()}


def corrected_links(
  graph: OpGraph, cluster: Cluster, device: np.ndarray, step_us: float
) -> tuple[Cluster, float]:
  """Returns the cluster whose links explain a step's time, and their factor.

  The factor is at least 1, and 1 where nothing was moved.

  Args:
    graph: the ops with their costs.
    cluster: the devices and links.
    device: int `[n]`, where each op ran.
    step_us: how long the step took.
  """
  simulation = simulate(graph, cluster, device, policy="executor")
  source = device[graph.tensor_op[simulation.transfer_tensor]]
  ends = np.stack([source, simulation.transfer_target], 1)
  pairs = sorted({tuple(sorted(x)) for x in ends.tolist()})

  def slower(factor: float) -> Cluster:
    links = {
      pair: _slower(cluster.links.get(pair, cluster.link), factor)
      for pair in pairs
    }
    return dataclasses.replace(cluster, links={**cluster.links, **links})

  def is_enough(factor: float) -> bool:
    step = simulate(graph, slower(factor), device, policy="executor")
    return step.makespan_us >= step_us

  if not pairs or is_enough(1.0):
    return cluster, 1.0
  low, high = 1.0, _SLOWEST_LINK
  while high / low > 1 + _PRECISION:
    middle = math.sqrt(low * high)
    low, high = (low, middle) if is_enough(middle) else (middle, high)
  return slower(high), high


def _slower(link: Link, factor: float) -> Link:
  return Link(
    latency_us=link.latency_us * factor + _BASE_US * (factor - 1),
    bytes_per_us=link.bytes_per_us / factor,
    send_us=link.send_us * factor,
    send_us_per_byte=link.send_us_per_byte * factor,
    receive_us=link.receive_us * factor,
    receive_us_per_byte=link.receive_us_per_byte * factor,
    dispatch_us=link.dispatch_us * factor,
  )
