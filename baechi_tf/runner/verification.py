"""A plan that is run before it is believed.

The placed model and the model on one device run side by side, in turns, in the
processes of one cluster. A plan that turns out slower corrects the costs, and
the next is made from these; when none is faster, it is one device.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.planner import Plan
from baechi_tf.runner.cluster_run import ClusterRun
from baechi_tf.runner.correction import corrected_links
from baechi_tf.runner.correction import corrected_ops

TOLERANCE = 0.03  # by how much a measured step may be slower by chance
ATTEMPTS = 3
_ROUNDS = 6
_STEPS = 5  # of each in a round
_ONE_DEVICE = "one_device"


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A plan that was run.

  Attributes:
    plan: the plan.
    measured_us: its median step.
    one_device_us: the median step of the model on one device meanwhile; None
      if one device has too little memory.
    op_factors: by what the times of op types were multiplied afterwards.
    link_factor: by what the costs of its links were multiplied afterwards.
  """

  plan: Plan
  measured_us: float
  one_device_us: float | None
  op_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  link_factor: float = 1.0

  @property
  def holds(self) -> bool:
    """Whether the plan is not slower than one device."""
    return (
      self.one_device_us is None
      or self.measured_us <= self.one_device_us * (1 + TOLERANCE)
    )


@dataclasses.dataclass(frozen=True)
class Model:
  """A model whose plans are run.

  Attributes:
    load: has the client load it, as it is, on the device of the name given.
    load_placed: has the client load it by a plan, and returns the op that each
      name stands for in the graph that TensorFlow runs.
    op_types: `[n]`, the types of the graph's ops.
  """

  load: Callable[[ClusterRun, str, str], None]
  load_placed: Callable[[ClusterRun, str, Plan], Mapping[str, str]]
  op_types: Sequence[str]


def verify(
  running: ClusterRun,
  model: Model,
  graph: OpGraph,
  cluster: Cluster,
  planned: Plan,
  replan: Callable[[OpGraph, Cluster, bool], Plan],
  one_device: str | None,
  progress: Callable[[str], None] = lambda stage: None,
) -> tuple[Plan, OpGraph, Cluster, tuple[Attempt, ...]]:
  """Returns a plan that is no slower than one device, and how it was found.

  Args:
    running: the cluster's processes.
    model: what is placed.
    graph: its ops and costs.
    cluster: the devices and links.
    planned: the first plan.
    replan: plans again with other costs; with True, on one device only.
    one_device: the device that the whole model would be on; None if it has too
      little memory, and the plan stands whatever it takes.
    progress: told what is being done.

  Returns:
    The plan; the graph and cluster, with the costs that it was made from; and
    each plan that was run, the last one the plan returned unless that has all
    ops on one device.

  Raises:
    ChildProcessError: a process ended, or a step fails.
  """
  if one_device is not None:
    progress(f"loading the model on {one_device}")
    model.load(running, _ONE_DEVICE, one_device)
  attempts = []
  while _is_spread(planned):
    key = f"plan_{len(attempts)}"
    progress(f"loading the model by plan {len(attempts) + 1}")
    op_of = model.load_placed(running, key, planned)
    progress(f"running plan {len(attempts) + 1} and one device in turns")
    attempt = _measured(running, key, planned, one_device is not None)
    if attempt.holds:
      attempts.append(attempt)
      break
    device = planned.placement.device
    graph, cluster, attempt = _corrected(
      graph, cluster, attempt, model.op_types, _op_times(running, key, op_of)
    )
    attempts.append(attempt)
    running.unload(key)
    progress("planning again")
    planned = replan(graph, cluster, len(attempts) == ATTEMPTS)
    if np.array_equal(device, planned.placement.device):
      planned = replan(graph, cluster, True)
  return planned, graph, cluster, tuple(attempts)


def _is_spread(planned: Plan) -> bool:
  return len(np.unique(planned.placement.device)) > 1


def _measured(
  running: ClusterRun, key: str, planned: Plan, beside_one: bool
) -> Attempt:
  keys = [key, *([_ONE_DEVICE] if beside_one else [])]
  times_us = {x: [] for x in keys}
  for x in keys:
    running.warm_up(x)
  for _ in range(_ROUNDS):
    for x in keys:
      times_us[x] += running.run(x, _STEPS).times_us
  medians = [float(np.median(times_us[x])) for x in keys]
  return Attempt(planned, medians[0], medians[1] if beside_one else None)


def _op_times(
  running: ClusterRun, key: str, op_of: Mapping[str, str]
) -> dict[str, float]:
  """Returns what the ops took that ran as they were planned."""
  times_us = {}
  for op in running.trace(key).ops:
    if op.name in op_of:
      name = op_of[op.name]
      times_us[name] = times_us.get(name, 0.0) + op.end_us - op.begin_us
  return times_us


def _corrected(graph, cluster, attempt, op_types, times_us):
  """Returns graph and cluster, which then predict both measured steps."""
  device = attempt.plan.placement.device
  graph, factors = corrected_ops(graph, cluster, device, op_types, times_us)
  # On one device, ops follow each other: their times add up to its step.
  total_us = graph.times_on(cluster.types).sum(axis=0).min()
  graph = dataclasses.replace(
    graph,
    compute_time_us=graph.compute_time_us * attempt.one_device_us / total_us,
  )
  cluster, link_factor = corrected_links(
    graph, cluster, device, attempt.measured_us
  )
  attempt = dataclasses.replace(
    attempt, op_factors=factors, link_factor=link_factor
  )
  return graph, cluster, attempt
