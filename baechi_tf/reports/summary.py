"""What a plan predicts, as plain data: what `--json` prints and text shows."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf.bounds import LowerBound
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placers.single_device import step_alone_us
from baechi_tf.planner import Candidate
from baechi_tf.simulator import simulate
from baechi_tf.simulator import Simulation

if TYPE_CHECKING:  # it imports TensorFlow, which cost graphs do not need
  from baechi_tf.costs.profile import Coverage

Fields = dict[str, Any]


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
) -> Fields:
  """Returns the figures of a simulated placement, ready for JSON.

  Args:
    graph: the ops and their costs.
    cluster: the devices, with the limits that the plan was made for.
    simulation: of the placement.
    bound: the lower bound of this graph on this cluster.
    model: what the user calls it.
    chosen: the candidate that the placement comes from, if a placer made it.
    candidates: all that were tried.
    coverage: where the ops' costs come from, if they come from a profile.
  """
  one_device = _one_device(graph, cluster)

  def versus(candidate: Simulation) -> Fields:
    return {
      "makespan_us": candidate.makespan_us,
      "gap": bound.gap(candidate.makespan_us),
      "speedup": _ratio(one_device["makespan_us"], candidate.makespan_us),
      "bytes_moved": candidate.bytes_moved,
      "peak_memory_bytes": candidate.peak_memory_bytes.tolist(),
    }

  predicted = versus(simulation)
  peak_memory_bytes = predicted.pop("peak_memory_bytes")
  num_ops = np.bincount(simulation.device, minlength=cluster.num_devices)
  unordered = simulation
  if simulation.policy != "executor":
    unordered = simulate(graph, cluster, simulation.device, policy="executor")
  return {
    "model": model,
    "num_ops": graph.num_ops,
    "num_groups": graph.num_groups,
    "placer": chosen.placer if chosen else None,
    "coplacement": chosen.coplacement if chosen else None,
    **predicted,
    "unordered_makespan_us": unordered.makespan_us,
    "num_transfers": len(simulation.transfer_tensor),
    "lower_bound_us": bound.us,
    "lower_bound": bound.name,
    "lower_bound_witness": bound.witness,
    "one_device": one_device,
    "num_processors": cluster.num_processors,
    "devices": [
      {
        "name": device.name,
        "type": device.type,
        "num_ops": int(num_ops[k]),
        "processor": int(cluster.processor[k]),
        "dispatch_us": float(cluster.dispatch_us[k]),
        "busy_time_us": float(simulation.busy_time_us[k]),
        "transfer_work_us": float(simulation.transfer_work_us[k]),
        "peak_memory_bytes": peak_memory_bytes[k],
        "memory_bytes": device.memory_bytes,
      }
      for k, device in enumerate(cluster.devices)
    ],
    "candidates": [
      {
        "placer": x.placer,
        "coplacement": x.coplacement,
        **(versus(x.simulation) if x.simulation else {"error": x.error}),
      }
      for x in candidates
    ],
    "costs": [
      {
        "device_type": x.device_type,
        "num_measured": x.num_measured,
        "num_estimated": x.num_estimated,
      }
      for x in coverage
    ],
    "notes": _processor_notes(cluster),
  }


def _one_device(graph: OpGraph, cluster: Cluster) -> Fields:
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
      fields = {
        "name": device.name,
        "makespan_us": float(alone_us[k]),
        "peak_memory_bytes": peak_bytes,
        "fits": fits,
      }
      best = ((not fits, alone_us[k]), fields)
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
