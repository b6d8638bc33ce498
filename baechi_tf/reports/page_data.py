"""What the page of a report shows, as plain data: columns, rounded and short.

A page of 20,000 ops is to open at once, so an op is a name, a device and two
times; of more ops, only the longest are shown.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.critical_path import critical_path
from baechi_tf.critical_path import Link
from baechi_tf.critical_path import OP
from baechi_tf.explanation import explain
from baechi_tf.op_graph import OpGraph
from baechi_tf.peak_memory import held_at_peak
from baechi_tf.reports.explanation_text import reasons
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import percent
from baechi_tf.reports.summary import Summary
from baechi_tf.reports.text import short_names
from baechi_tf.simulator import Simulation

MOST_OPS = 50_000
_MOST_TRANSFERS = 20_000
_MOST_LEVELS = 4_000  # of a device's memory
_NUM_EXPLAINED = 10
_NUM_LARGEST = 5
# How many ops all simulations together may run that explain ops.
_EXPLAINING_OPS = 2_000_000


def labelled(cluster: Cluster) -> Cluster:
  """Returns a cluster whose devices have short names, which are for people."""
  labels = short_names(cluster.device_names)
  devices = zip(cluster.devices, labels, strict=True)
  return dataclasses.replace(
    cluster,
    devices=tuple(dataclasses.replace(x, name=label) for x, label in devices),
  )


def verdict(summary: Summary) -> str:
  """Returns sentences on how fast a plan is, and how far from optimal."""
  one = summary.one_device
  names = [x.name for x in summary.devices]
  label = short_names(names)[names.index(one.name)]
  step = duration(summary.makespan_us)
  num_devices = len(summary.devices)
  devices = f"{num_devices} device{'s' if num_devices > 1 else ''}"
  words = f"A step is predicted to take {step} on {devices}"
  if one.fits:
    words += (
      f", {summary.speedup:.2f} × as fast as on {label} alone"
      f" ({duration(one.makespan_us)})."
    )
  else:
    words += f"; it fits on none of them alone ({label} comes nearest)."
  if summary.is_optimal:
    return f"{words} No plan is faster under these costs."
  return (
    f"{words} No plan takes less than {duration(summary.lower_bound_us)}, so"
    f" this one is at most {percent(summary.gap)} above the best."
  )


def plan_fields(
  graph: OpGraph,
  cluster: Cluster,
  simulation: Simulation,
  title: str,
  *,
  explained: bool = True,
) -> dict[str, Any]:
  """Returns a plan's step for the page.

  Args:
    graph: the ops and their costs.
    cluster: the devices.
    simulation: the plan's predicted step.
    title: the plan's name on the page.
    explained: whether the ops that matter most are explained, for which their
      moves are simulated.
  """
  cluster = labelled(cluster)
  path = critical_path(graph, cluster, simulation)
  on_path = np.zeros(graph.num_ops, bool)
  on_path[[x.index for x in path if x.kind == OP]] = True
  shown = _shown_ops(simulation, on_path)
  transfers = _shown_transfers(graph, simulation, path)
  number = {t: i for i, t in enumerate(transfers.tolist())}
  return {
    "title": title,
    "makespan_us": simulation.makespan_us,
    "ops": {
      "op": shown.tolist(),
      "device": simulation.device[shown].tolist(),
      "start": _rounded(simulation.start_time_us[shown]),
      "end": _rounded(simulation.finish_time_us[shown]),
    },
    "transfers": _transfer_columns(graph, simulation, transfers),
    "memory": [
      _levels(*x)
      for x in zip(
        simulation.memory_time_us, simulation.memory_bytes, strict=True
      )
    ],
    "peaks": [_peak(graph, simulation, k) for k in range(cluster.num_devices)],
    "critical": [
      [x.kind, x.index if x.kind == OP else number[x.index], x.waited_for]
      for x in path
    ],
    "critical_words": critical_words(simulation, path),
    "matter": [
      {
        "op": op,
        "device": int(simulation.device[op]),
        "time_us": _time(simulation)[op],
        "is_critical": bool(on_path[op]),
        "reasons": reasons(explain(graph, cluster, simulation, op)),
      }
      for op in (
        _that_matter(graph, cluster, simulation, on_path) if explained else ()
      )
    ],
  }


def critical_words(simulation: Simulation, path: Sequence[Link]) -> str:
  """Returns sentences on how a critical path's time is spent."""
  if not path or not simulation.makespan_us:
    return "The step takes no time."
  ops = [x.index for x in path if x.kind == OP]
  sent = [x.index for x in path if x.kind != OP]
  running = _time(simulation)[ops].sum()
  sending = (
    simulation.transfer_finish_us[sent] - simulation.transfer_start_us[sent]
  ).sum()
  devices = len(set(simulation.device[ops].tolist()))
  words = (
    f"{len(ops):,} ops on {devices} device{'s' if devices > 1 else ''} and"
    f" {len(sent):,} transfers between them decide how long the step is:"
    f" {percent(running / simulation.makespan_us)} of it are ops,"
    f" {percent(sending / simulation.makespan_us)} transfers."
  )
  return f"{words} To be faster, something on this path must be."


def _time(simulation) -> np.ndarray:
  return simulation.finish_time_us - simulation.start_time_us


def _rounded(values: np.ndarray) -> list[float]:
  return np.round(values, 3).tolist()


def _shown_ops(simulation, on_path) -> np.ndarray:
  """Returns the ops that are drawn: those on the path, then the longest."""
  longest_first = np.lexsort((-_time(simulation), ~on_path))
  return np.sort(longest_first[:MOST_OPS])


def _shown_transfers(graph, simulation, path) -> np.ndarray:
  """Returns the transfers that are drawn: those on the path, the largest."""
  tensor = simulation.transfer_tensor
  on_path = np.zeros(len(tensor), bool)
  on_path[[x.index for x in path if x.kind != OP]] = True
  largest_first = np.lexsort((-graph.tensor_bytes[tensor], ~on_path))
  return np.sort(largest_first[:_MOST_TRANSFERS])


def _transfer_columns(graph, simulation, shown) -> dict[str, list]:
  tensor = simulation.transfer_tensor[shown]
  producer = graph.tensor_op[tensor]
  return {
    "op": producer.tolist(),
    "from": simulation.device[producer].tolist(),
    "to": simulation.transfer_target[shown].tolist(),
    "bytes": graph.tensor_bytes[tensor].tolist(),
    "start": _rounded(simulation.transfer_start_us[shown]),
    "end": _rounded(simulation.transfer_finish_us[shown]),
  }


def _levels(time_us: np.ndarray, num_bytes: np.ndarray) -> dict[str, list]:
  """Returns a device's memory over time, its peaks kept if there are many."""
  if len(time_us) > _MOST_LEVELS:
    first = np.linspace(0, len(time_us), _MOST_LEVELS, endpoint=False)
    first = first.astype(np.int64)
    time_us, num_bytes = time_us[first], np.maximum.reduceat(num_bytes, first)
  return {"time": _rounded(time_us), "bytes": num_bytes.tolist()}


def _peak(graph, simulation, k) -> dict[str, Any]:
  held = held_at_peak(graph, simulation, k)
  largest = []
  for kind, sizes in held.by_kind.items():
    for op in np.argsort(-sizes, kind="stable")[:_NUM_LARGEST].tolist():
      if sizes[op]:
        largest.append({"op": op, "kind": kind, "bytes": int(sizes[op])})
  largest.sort(key=lambda x: (-x["bytes"], x["op"]))
  return {
    "bytes": int(simulation.peak_memory_bytes[k]),
    "time_us": held.time_us,
    "kinds": {kind: int(x.sum()) for kind, x in held.by_kind.items()},
    "largest": largest[:_NUM_LARGEST],
  }


def _that_matter(graph, cluster, simulation, on_path) -> list[int]:
  """Returns the longest ops, first those of the critical path.

  Fewer where explaining them takes long.
  """
  a_move = max(graph.num_ops * (cluster.num_devices - 1), 1)
  number = int(np.clip(_EXPLAINING_OPS // a_move, 1, _NUM_EXPLAINED))
  order = np.lexsort((-_time(simulation), ~on_path))
  return order[: min(number, graph.num_ops)].tolist()
