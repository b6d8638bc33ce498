"""The figures of a planned step: one value for text, JSON and the HTML page."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf.bounds import LowerBound
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.pins import Pin
from baechi_tf.placers.single_device import step_alone_us
from baechi_tf.planner import Candidate
from baechi_tf.simulator import simulate
from baechi_tf.simulator import Simulation

if TYPE_CHECKING:  # it imports TensorFlow, which cost graphs do not need
  from baechi_tf.costs.profile import Coverage

Fields = dict[str, Any]
_OPTIMAL_GAP = 0.005  # costs are not known more precisely than that


@dataclasses.dataclass(frozen=True)
class OneDevice:
  """The whole step on the one device that is best at it.

  Attributes:
    name: the fastest device with enough memory, or the fastest if none has.
    makespan_us: its predicted step.
    peak_memory_bytes: its largest use of memory.
    fits: whether it has that much.
  """

  name: str
  makespan_us: float
  peak_memory_bytes: int
  fits: bool


@dataclasses.dataclass(frozen=True)
class DeviceSummary:
  """A device's part in the predicted step.

  Attributes:
    name: its name in the cluster.
    type: its type in the cluster.
    num_ops: how many ops it runs.
    processor: index of the processor that it runs them on.
    dispatch_us: what it takes to tell it to begin, and to hear that it ended.
    busy_time_us: how long it computes.
    transfer_work_us: what transfers take of its processor.
    peak_memory_bytes: its largest use of memory.
    memory_bytes: its limit.
  """

  name: str
  type: str
  num_ops: int
  processor: int
  dispatch_us: float
  busy_time_us: float
  transfer_work_us: float
  peak_memory_bytes: int
  memory_bytes: int


@dataclasses.dataclass(frozen=True)
class CandidateSummary:
  """What came of one placer on one coarsening.

  Attributes:
    placer: its name.
    coplacement: what it was given, see `planner.Candidate`.
    makespan_us: the predicted step; None, as all that follows, without a plan.
    gap: `makespan / lower bound - 1`.
    speedup: by how much it is faster than one device.
    bytes_moved: what all transfers carry.
    peak_memory_bytes: each device's largest use of memory.
    error: why there is no plan; None if there is one.
  """

  placer: str
  coplacement: str
  makespan_us: float | None = None
  gap: float | None = None
  speedup: float | None = None
  bytes_moved: int | None = None
  peak_memory_bytes: tuple[int, ...] | None = None
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class CostCoverage:
  """Where the costs of ops on one type of device come from.

  Attributes:
    device_type: the type.
    num_measured: how many ops were measured.
    num_estimated: how many were estimated.
  """

  device_type: str
  num_measured: int
  num_estimated: int


@dataclasses.dataclass(frozen=True)
class AttemptSummary:
  """A plan that was run, see `runner.verification.Attempt`.

  Attributes:
    placer: the placer that made it.
    coplacement: what the placer was given.
    predicted_us: the predicted step.
    measured_us: the median measured step.
    one_device_us: the median step on one device meanwhile, None if it does not
      fit.
    op_factors: by what the times of op types were multiplied afterwards.
    link_factor: by what the costs of links were multiplied afterwards.
  """

  placer: str
  coplacement: str
  predicted_us: float
  measured_us: float
  one_device_us: float | None
  op_factors: Mapping[str, float]
  link_factor: float


@dataclasses.dataclass(frozen=True)
class Verification:
  """The plans that were run before one was chosen.

  Attributes:
    tolerance: by how much a measured step may be slower by chance.
    chosen: index of the attempt that was kept; None if none was.
    attempts: the plans, in the order in which they were run.
  """

  tolerance: float
  chosen: int | None
  attempts: tuple[AttemptSummary, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
  """The figures of a planned step.

  Attributes:
    model: what the user calls it.
    num_ops: how many ops the step has.
    num_groups: how many groups they form.
    placer: the placer that made the plan; None if the plan was given.
    coplacement: what the placer was given, see `planner.Candidate`.
    makespan_us: the predicted step.
    gap: `makespan / lower bound - 1`.
    speedup: by how much it is faster than one device.
    bytes_moved: what all transfers carry.
    unordered_makespan_us: the predicted step without the plan's order of ops.
    num_transfers: how many transfers there are.
    lower_bound_us: no plan has a shorter step.
    lower_bound: the name of that bound.
    lower_bound_witness: why that bound holds, in words.
    one_device: the step on one device.
    num_processors: how many processors the devices have.
    devices: each device's part.
    candidates: all plans that were tried.
    costs: where the ops' costs come from, if they come from a profile.
    notes: what a reader should know, in words.
    num_rewritten: how many nodes each rewrite replaced; None if the model was
      not looked at.
    pins: the pins that the plan keeps; None if the plan was not made here.
    verification: the plans that were run; None if none was to be.
  """

  model: str
  num_ops: int
  num_groups: int
  placer: str | None
  coplacement: str | None
  makespan_us: float
  gap: float
  speedup: float
  bytes_moved: int
  unordered_makespan_us: float
  num_transfers: int
  lower_bound_us: float
  lower_bound: str
  lower_bound_witness: str
  one_device: OneDevice
  num_processors: int
  devices: tuple[DeviceSummary, ...]
  candidates: tuple[CandidateSummary, ...]
  costs: tuple[CostCoverage, ...]
  notes: tuple[str, ...]
  num_rewritten: Mapping[str, int] | None = None
  pins: tuple[Pin, ...] | None = None
  verification: Verification | None = None

  @property
  def is_optimal(self) -> bool:
    """Whether no plan is faster, as precisely as costs are known."""
    return self.gap < _OPTIMAL_GAP

  def fields(self) -> Fields:
    """Returns the figures ready for JSON; what does not apply is left out."""
    fields = dataclasses.asdict(self)
    for key in ("num_rewritten", "pins", "verification"):
      if fields[key] is None:
        del fields[key]
    fields["candidates"] = [
      {key: x for key, x in candidate.items() if x is not None}
      for candidate in fields["candidates"]
    ]
    return fields


def summarize(
  graph: OpGraph,
  cluster: Cluster,
  simulation: Simulation,
  bound: LowerBound,
  *,
  model: str,
  chosen: Candidate | None = None,
  candidates: Sequence[Candidate] = (),
  coverage: "Iterable[Coverage]" = (),
  notes: Sequence[str] = (),
  num_rewritten: Mapping[str, int] | None = None,
  pins: tuple[Pin, ...] | None = None,
  verification: Verification | None = None,
) -> Summary:
  """Returns the figures of a simulated placement.

  Args:
    graph: the ops and their costs.
    cluster: the devices, with the limits that the plan was made for.
    simulation: of the placement.
    bound: the lower bound of this graph on this cluster.
    model: what the user calls it.
    chosen: the candidate that the placement comes from, if a placer made it.
    candidates: all that were tried.
    coverage: where the ops' costs come from, if they come from a profile.
    notes: sentences for the reader, beside those on shared processors.
    num_rewritten: how many nodes each rewrite replaced.
    pins: the pins that the plan keeps.
    verification: the plans that were run, if any was to be.
  """
  one = one_device(graph, cluster)

  def versus(candidate: Simulation) -> Fields:
    return {
      "makespan_us": candidate.makespan_us,
      "gap": bound.gap(candidate.makespan_us),
      "speedup": _ratio(one.makespan_us, candidate.makespan_us),
      "bytes_moved": candidate.bytes_moved,
    }

  unordered = simulation
  if simulation.policy != "executor":
    unordered = simulate(graph, cluster, simulation.device, policy="executor")
  return Summary(
    model=model,
    num_ops=graph.num_ops,
    num_groups=graph.num_groups,
    placer=chosen.placer if chosen else None,
    coplacement=chosen.coplacement if chosen else None,
    **versus(simulation),
    unordered_makespan_us=unordered.makespan_us,
    num_transfers=len(simulation.transfer_tensor),
    lower_bound_us=bound.us,
    lower_bound=bound.name,
    lower_bound_witness=bound.witness,
    one_device=one,
    num_processors=cluster.num_processors,
    devices=_devices(cluster, simulation),
    candidates=tuple(
      CandidateSummary(
        x.placer,
        x.coplacement,
        **versus(x.simulation),
        peak_memory_bytes=tuple(x.simulation.peak_memory_bytes.tolist()),
      )
      if x.simulation
      else CandidateSummary(x.placer, x.coplacement, error=x.error)
      for x in candidates
    ),
    costs=tuple(
      CostCoverage(x.device_type, x.num_measured, x.num_estimated)
      for x in coverage
    ),
    notes=(*_processor_notes(cluster), *notes),
    num_rewritten=None if num_rewritten is None else dict(num_rewritten),
    pins=pins,
    verification=verification,
  )


def _devices(
  cluster: Cluster, simulation: Simulation
) -> tuple[DeviceSummary, ...]:
  num_ops = np.bincount(simulation.device, minlength=cluster.num_devices)
  return tuple(
    DeviceSummary(
      name=device.name,
      type=device.type,
      num_ops=int(num_ops[k]),
      processor=int(cluster.processor[k]),
      dispatch_us=float(cluster.dispatch_us[k]),
      busy_time_us=float(simulation.busy_time_us[k]),
      transfer_work_us=float(simulation.transfer_work_us[k]),
      peak_memory_bytes=int(simulation.peak_memory_bytes[k]),
      memory_bytes=device.memory_bytes,
    )
    for k, device in enumerate(cluster.devices)
  )


def one_device(graph: OpGraph, cluster: Cluster) -> OneDevice:
  """Returns the whole step on the one device that is best at it.

  That is the fastest with enough memory, or, if none has enough, the fastest.
  """
  alone_us = step_alone_us(graph, cluster)
  peak_bytes = None
  best = None
  for k, device in enumerate(cluster.devices):
    if peak_bytes is None:  # ops follow each other alike on every device
      alone = simulate(graph, cluster, np.full(graph.num_ops, k))
      peak_bytes = int(alone.peak_memory_bytes[k])
    fits = peak_bytes <= device.memory_bytes
    if best is None or (not fits, alone_us[k]) < best[0]:
      one = OneDevice(device.name, float(alone_us[k]), peak_bytes, fits)
      best = ((not fits, alone_us[k]), one)
  return best[1]


def _processor_notes(cluster: Cluster) -> list[str]:
  """Returns what to know of devices that share a processor."""
  are_alike = len(set(cluster.types)) == 1
  if cluster.num_processors == 1 < cluster.num_devices and are_alike:
    return [
      f"{cluster.num_devices} devices share one processor: no plan is faster"
      " than one device; a plan helps only if memory is short"
    ]
  sharers = [[] for _ in range(cluster.num_processors)]
  for name, p in zip(cluster.device_names, cluster.processor, strict=True):
    sharers[p].append(name)
  return [
    f"{', '.join(names)} share one processor, which runs one op at a time"
    for names in sharers
    if len(names) > 1
  ]


def _ratio(before: float, after: float) -> float:
  return before / after if after > 0 else 1.0  # an empty step
