"""From a graph and a cluster to a plan: coarsen, place, simulate, certify.

The number a plan reports is always the fine graph's simulated makespan, and a
plan is only ever returned when its simulated memory stays within every device's
limit. `best` runs every placer on every coarsening, searches on from their
plans, and keeps the best feasible plan, so it is never worse than any of them.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from baechi_tf.bounds import check_memory
from baechi_tf.bounds import lower_bound
from baechi_tf.bounds import LowerBound
from baechi_tf.bounds.relaxations import relaxed_bound
from baechi_tf.cluster import Cluster
from baechi_tf.coarsening.coplacement import coplacement_groups
from baechi_tf.coarsening.fusion import fuse
from baechi_tf.coarsening.fusion import Fused
from baechi_tf.compiled import FIRST_RUN
from baechi_tf.op_graph import OpGraph
from baechi_tf.order import ops_worth_ordering
from baechi_tf.peak_memory import overflow
from baechi_tf.pins import Pin
from baechi_tf.pins import pinned_graph
from baechi_tf.pins import shown
from baechi_tf.placement import check_placement
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placers import PLACERS
from baechi_tf.placers.favorite_child import LinearProgramError
from baechi_tf.placers.favorite_child import uses_lp
from baechi_tf.search.budget import Budget
from baechi_tf.search.budget import DEFAULT_BUDGET
from baechi_tf.search.placement_search import search
from baechi_tf.simulator import simulate
from baechi_tf.simulator import Simulation
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import takes_processors
from baechi_tf.watched import Progress

BEST = "best"
SEARCH = "search"
PIPELINE = "pipeline"
NO_SEARCH = Budget()
# What a placer was given: co-placed ops as one group, the same but no group
# larger than a part of the smallest device, or only the graph's own groups.
COPLACED, CAPPED, APART = "yes", "capped", "no"
_CAP = 0.25
# Predictions of plans that move much are this far off: docs/real_clusters.md.
_BELIEVED_GAIN = 0.1
_PIPELINE_STARTS = 3  # more take the search's time, and are no better
# A placer sees a schedule that the simulator refines, so a plan that fills a
# device to the brim can overflow. Then it plans again with less to fill.
_MEMORY_FRACTIONS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.55)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """What came of one placer on one coarsening, or of the search.

  Attributes:
    placer: its name, `SEARCH`, or `PIPELINE` for the best of the given starts.
    coplacement: `COPLACED`, `CAPPED` or `APART`.
    simulation: of its plan on the fine graph; None when it found none.
    error: why it found none.
  """

  placer: str
  coplacement: str
  simulation: Simulation | None
  error: str = ""

  @property
  def makespan_us(self) -> float:
    """Predicted step time, infinite without a plan."""
    return self.simulation.makespan_us if self.simulation else np.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A placement, its predicted step, and how far from optimal it can be.

  Attributes:
    placement: with all fields set.
    chosen: the candidate that it comes from.
    bound: no placement is faster than this.
    candidates: everything that was tried, in a fixed order.
    ordered_ops: names of the ops that control edges are to keep in order, as
      they start; none where devices run what is ready.
    num_coarse_ops: what the placers had to place, by `coplacement`.
    pins: the pins that the plan keeps, those of the cluster first.
    notes: what a reader of the plan should know of how it was made.
    timings_s: seconds spent per stage.
  """

  placement: Placement
  chosen: Candidate
  bound: LowerBound
  candidates: tuple[Candidate, ...]
  ordered_ops: tuple[str, ...]
  num_coarse_ops: dict[str, int]
  pins: tuple[Pin, ...]
  notes: tuple[str, ...]
  timings_s: dict[str, float]

  @property
  def simulation(self) -> Simulation:
    """The predicted step."""
    return self.chosen.simulation

  @property
  def gap(self) -> float:
    """`makespan / lower bound - 1`."""
    return self.bound.gap(self.simulation.makespan_us)


def plan(
  graph: OpGraph,
  cluster: Cluster,
  *,
  placer: str = BEST,
  coplacement: bool = True,
  fusion: bool = True,
  order: bool = True,
  pins: Mapping[str, str] = MappingProxyType({}),
  budget: Budget = NO_SEARCH,
  pipelines: Sequence[np.ndarray] = (),
  progress: Callable[[str], None] = lambda stage: None,
) -> Plan:
  """Returns a feasible plan of `graph` on `cluster`.

  Args:
    graph: the fine graph; its groups and pins are hard constraints.
    cluster: devices, whose memory is a limit, and links.
    placer: a name in `PLACERS`, or "best".
    coplacement: try co-placed groups. `best` tries without too, a named placer
      if it finds no plan with them; where memory is short, both try smaller
      groups before.
    fusion: contract edges inside groups before placing.
    order: whether the devices will run their ops in the plan's order, if it
      has ops on several; else each runs what is ready as TensorFlow's executor
      does, the placement has no order, and the prediction is for that.
    pins: device names by regular expression; an op in whose name one is found
      must be on that device, as those of `cluster.pins`; see `pins`.
    budget: the time or placements that the search of `best` may take. Ctrl-C
      ends the search, with the best plan so far.
    pipelines: placements, int `[n]` each, that `best` compares with those of
      the placers, and searches on from the best of them.
    progress: called with a line before each stage, and now and then during a
      long one.

  Raises:
    InfeasiblePlacementError: no plan was found that fits the memory.
    LinearProgramError: `placer` is "m_sct" and its linear program failed;
      "best" leaves m_sct out then, with a note.
    ValueError: the placer is unknown or does not search within the budget, a
      pin is wrong or contradicts another, or the graph has no times for a
      device's type.
  """
  check_placer(placer, budget)
  graph, kept_pins = pinned_graph(graph, cluster, pins)
  policy = "priority" if order else "executor"
  clock = _Clock(progress)
  with clock.stage("bounds"):
    check_memory(graph, cluster)
    bound = relaxed_bound(graph, cluster)
  candidates, unfit, starts = [], [], []
  num_coarse_ops = {}
  notes = []
  for together in (COPLACED, CAPPED, APART) if coplacement else (APART,):
    if together == CAPPED and all(x.simulation for x in candidates):
      continue  # there is memory enough for groups of any size
    with clock.stage("coarsening"):
      coarse = _coarsen(graph, cluster, together, fusion)
    num_coarse_ops[together] = coarse.graph.num_ops
    if placer in (BEST, "m_sct") and not uses_lp(coarse.graph):
      notes.append(_greedy_note(coarse.graph, together))
    for name in PLACERS if placer == BEST else (placer,):
      try:
        simulation, error, device = _try(
          graph, cluster, name, coarse, policy, clock
        )
        if device is not None:
          starts.append(device)
        candidates.append(Candidate(name, together, simulation, error))
        if simulation is None:
          unfit.append(candidates[-1])
      except LinearProgramError as failed:
        if placer != BEST:
          raise
        candidates.append(Candidate(name, together, None, str(failed)))
        notes.append(f"{name} (co-placed: {together}) is left out: {failed}")
    if placer != BEST and simulation:
      break  # what co-placement made too large to fit would come apart
  if placer == BEST and len(pipelines):
    with clock.stage("simulating"):
      found, devices = _best_of(graph, cluster, pipelines, policy)
    candidates.append(found)
    starts += devices
  reached_us = min(x.makespan_us for x in candidates)
  if bound.us < reached_us < np.inf:
    with clock.stage("bounds"):
      bound = lower_bound(graph, cluster, reached_us)
  if placer == BEST and not budget.is_empty and graph.num_ops:
    with clock.stage("searching"):
      found, note = _search(
        graph, cluster, candidates, starts, budget, policy, bound.us, progress
      )
    candidates.append(found)
    notes.append(note)
    if bound.us < found.makespan_us < reached_us:
      with clock.stage("bounds"):
        bound = lower_bound(graph, cluster, found.makespan_us)
  chosen, doubt = _choose(candidates, cluster)
  notes += doubt
  if chosen.simulation is None:
    raise InfeasiblePlacementError(_none_fits(unfit) + _keeping(kept_pins))
  if order:
    best = candidates.index(chosen)
    chosen, order = _ordered_if_needed(graph, cluster, chosen)
    candidates[best] = chosen
  placement = Placement(
    graph.names,
    cluster.device_names,
    chosen.simulation.device,
    order=chosen.simulation.order if order else None,
    makespan_us=chosen.makespan_us,
    lower_bound_us=bound.us,
  )
  check_placement(graph, cluster, placement)
  return Plan(
    placement=placement,
    chosen=chosen,
    bound=bound,
    candidates=tuple(candidates),
    ordered_ops=ops_worth_ordering(graph, cluster, chosen.simulation)
    if order
    else (),
    num_coarse_ops=num_coarse_ops,
    pins=kept_pins,
    notes=(*(x.note for x in kept_pins), *notes),
    timings_s=clock.seconds,
  )


def default_budget(placer: str) -> Budget:
  """Returns the budget of a placer that is given none: only "best" searches."""
  return DEFAULT_BUDGET if placer == BEST else NO_SEARCH


def check_placer(name: str, budget: Budget = NO_SEARCH) -> None:
  """Checks that there is such a placer, and that it uses the budget.

  Raises:
    ValueError: the placer is not there, and the message lists those that are;
      or it does not search, and the budget is not empty.
  """
  if name != BEST and name not in PLACERS:
    raise ValueError(
      f"unknown placer {name!r}; choose from {', '.join([BEST, *PLACERS])}"
    )
  if name != BEST and not budget.is_empty:
    raise ValueError(
      f"budget= is of no use with placer {name!r}: only {BEST!r} searches"
    )


def _none_fits(unfit: list[Candidate]) -> str:
  """Returns why there is no plan: the error of the last that did not fit.

  It had the smallest groups to place, so it came as near as any.
  """
  last = unfit[-1]
  if all(x.placer == last.placer for x in unfit):
    return last.error
  return f"no placer found a plan that fits; {last.placer}: {last.error}"


def _keeping(pins: Sequence[Pin]) -> str:
  """Returns what an error says of the pins that a plan would have to keep."""
  if not pins:
    return ""
  return (
    f". A plan must keep {', '.join(shown(x.regex, x.device) for x in pins)}"
  )


def _merged(graph: OpGraph, coarse: OpGraph) -> str:
  """Returns what fusion did to the ops that an error names and counts."""
  if coarse.num_ops == graph.num_ops:
    return ""
  return (
    f". Fusion merged {graph.num_ops:,} ops into {coarse.num_ops:,} before: an"
    " op named here stands for all that were merged into it"
  )


def _greedy_note(graph: OpGraph, coplacement: str) -> str:
  return (
    f"m_sct (co-placed: {coplacement}): {graph.num_ops:,} fused ops and"
    f" {len(graph.edge_op):,} edges are too many for the linear program;"
    " favourite children are a greedy matching's"
  )


def _coarsen(
  graph: OpGraph, cluster: Cluster, coplacement: str, fusion: bool
) -> Fused:
  if coplacement == APART:
    group = graph.group
  elif coplacement == CAPPED:
    group = coplacement_groups(graph, int(cluster.memory_bytes.min() * _CAP))
  else:
    group = coplacement_groups(graph)
  if fusion:
    return fuse(graph, group)
  return Fused(
    dataclasses.replace(graph, group=group), np.arange(graph.num_ops)
  )


def _try(graph, cluster, placer, coarse, policy, clock):
  """Returns a feasible simulation of the placer's plan, or None and why.

  Also where the last plan of it puts each op, whether it fits or not; None if
  it has none.
  """
  error, device = "", None
  for fraction in _MEMORY_FRACTIONS:
    try:
      with clock.stage(f"placing with {placer}") as progress:
        placement = PLACERS[placer](
          coarse.graph, cluster.with_memory_fraction(fraction), progress
        )
    except InfeasiblePlacementError as infeasible:
      error = error or f"{infeasible}{_merged(graph, coarse.graph)}"
      return None, error, device
    device = graph.with_fixed(placement.device[coarse.coarse_op])
    with clock.stage("simulating"):
      simulation = simulate(graph, cluster, device, policy=policy)
    error = overflow(graph, cluster, simulation)
    if error is None:
      return simulation, "", device
  return None, error, device


def _best_of(graph, cluster, placements, policy):
  """Returns the candidate of the fastest placement that fits.

  Also the best few placements, of which none may fit.
  """
  tried = []
  for device in placements:
    simulation = simulate(
      graph, cluster, graph.with_fixed(device), policy=policy
    )
    error = overflow(graph, cluster, simulation)
    tried.append((error is not None, simulation.makespan_us, simulation, error))
  tried.sort(key=lambda x: x[:2])
  unfit, _, simulation, error = tried[0]
  found = Candidate(PIPELINE, APART, None if unfit else simulation, error or "")
  return found, [x.device for _, _, x, _ in tried[:_PIPELINE_STARTS]]


def _choose(candidates, cluster) -> tuple[Candidate, list[str]]:
  """Returns the fastest candidate whose gain can be believed, and a note.

  Where transfers take processor time, a plan without any comes true more surely
  than one that lives by them: docs/real_clusters.md.
  """
  fastest = min(candidates, key=lambda x: x.makespan_us)
  still = [
    x for x in candidates if x.simulation and not x.simulation.bytes_moved
  ]
  if not still or not takes_processors(link_costs(cluster)):
    return fastest, []
  safest = min(still, key=lambda x: x.makespan_us)
  if fastest.makespan_us <= safest.makespan_us * (1 - _BELIEVED_GAIN):
    return fastest, []
  if fastest.makespan_us == safest.makespan_us:
    return safest, []
  return safest, [
    f"{fastest.placer}'s plan would take"
    f" {1 - fastest.makespan_us / safest.makespan_us:.1%} less time: on links"
    " whose transfers take processor time, less than"
    f" {_BELIEVED_GAIN:.0%} is not believed"
  ]


def _ordered_if_needed(
  graph: OpGraph, cluster: Cluster, chosen: Candidate
) -> tuple[Candidate, bool]:
  """Returns a candidate, and whether its order is worth keeping.

  One device takes as long in any order; only its memory may need one.
  """
  device = chosen.simulation.device
  if (device != device[:1]).any():
    return chosen, True
  free = simulate(graph, cluster, device, policy="executor")
  if overflow(graph, cluster, free) is not None:
    return chosen, True
  return dataclasses.replace(chosen, simulation=free), False


def _search(
  graph, cluster, candidates, starts, budget, policy, bound_us, progress
):
  """Returns the candidate that the search finds, and a note on its gain."""
  single = [
    graph.with_fixed(np.full(graph.num_ops, k))
    for k in range(cluster.num_devices)
  ]
  found = search(
    graph,
    cluster,
    [*starts, *single],
    budget,
    policy=policy,
    enough_us=bound_us,
    progress=progress,
  )
  simulation = simulate(
    graph, cluster, found.device, policy=policy, order=found.order
  )
  error = overflow(graph, cluster, simulation) or ""
  spent = f"the search tried {found.evaluations:,} placements"
  if found.interrupted:
    spent += " until it was interrupted"
  if error:
    return Candidate(SEARCH, APART, None, error), f"{spent}; none fits"
  result = Candidate(SEARCH, APART, simulation)
  before = min(candidates, key=lambda candidate: candidate.makespan_us)
  if before.simulation is None:
    return result, f"{spent} and found a plan that fits, as no placer did"
  if result.makespan_us >= before.makespan_us:
    return result, f"{spent}; none is faster than {before.placer}'s"
  gain = 1 - result.makespan_us / before.makespan_us
  return result, (
    f"{spent}; the best takes {gain:.1%} less time than {before.placer}'s"
  )


class _Clock:
  """Adds up the seconds of each stage."""

  def __init__(self, progress: Callable[[str], None]):
    self.seconds = {}
    self._progress = progress

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[Progress]:
    """Yields a function of (ops done, ops in all) that shows both."""
    self._progress(f"{name} (compiling, the first time)" if FIRST_RUN else name)
    begin = time.perf_counter()
    try:
      yield lambda done, total: self._progress(
        f"{name}, {done:,} of {total:,} ops"
      )
    finally:
      spent = time.perf_counter() - begin
      self.seconds[name] = self.seconds.get(name, 0.0) + spent
