"""What a device of a simulated step holds when it holds the most.

An op's outputs are held from its start until their last consumer on any device
has finished, its workspace while it runs, a received tensor from the start of
its transfer until its last consumer there has finished, and what is persistent
always (`simulator`).
"""

import dataclasses

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.shortage import KINDS
from baechi_tf.shortage import Shortage
from baechi_tf.shortage import shortage_message
from baechi_tf.simulator import Simulation


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
  """The memory that a device holds at one instant.

  Attributes:
    time_us: the instant.
    by_kind: int64 `[n]` for each of `shortage.KINDS`, the bytes of each op; of
      received inputs, those of the op that made them.
  """

  time_us: float
  by_kind: dict[str, np.ndarray]


def held_at_peak(graph: OpGraph, simulation: Simulation, k: int) -> Held:
  """Returns what device `k` holds the first time that it holds the most."""
  at = simulation.memory_time_us[k][np.argmax(simulation.memory_bytes[k])]
  start, finish = simulation.start_time_us, simulation.finish_time_us
  here = simulation.device == k
  wanted_until = finish[graph.tensor_op]
  np.maximum.at(wanted_until, graph.edge_tensor, finish[graph.edge_op])
  made_here = here[graph.tensor_op]
  outputs = made_here & _is_held(start[graph.tensor_op], wanted_until, at)
  wanted_here = np.flatnonzero(here[graph.edge_op])
  copy_until = np.zeros(len(graph.tensor_op))
  np.maximum.at(
    copy_until,
    graph.edge_tensor[wanted_here],
    finish[graph.edge_op[wanted_here]],
  )
  arriving = simulation.transfer_target == k
  copies = simulation.transfer_tensor[arriving]
  begin = simulation.transfer_start_us[arriving]
  copies = copies[_is_held(begin, copy_until[copies], at)]
  running = here & _is_held(start, finish, at)
  held = (
    np.where(here, graph.persistent_bytes, 0),
    _by_op(graph, np.flatnonzero(outputs), graph.tensor_held_bytes),
    np.where(running, graph.temporary_bytes, 0),
    _by_op(graph, copies, graph.tensor_bytes),
  )
  return Held(float(at), dict(zip(KINDS, held, strict=True)))


def _by_op(graph, tensors, size) -> np.ndarray:
  by_op = np.zeros(graph.num_ops, np.int64)
  np.add.at(by_op, graph.tensor_op[tensors], size[tensors])
  return by_op


def _is_held(begin, end, at):
  """Whether what is held from `begin` to `end` is held at the peak `at`."""
  return (begin <= at) & ((end > at) | ((begin == at) & (end == at)))


def overflow(
  graph: OpGraph, cluster: Cluster, simulation: Simulation
) -> str | None:
  """Returns which devices run out of memory, when and by how much, or None."""
  excess = simulation.peak_memory_bytes - cluster.memory_bytes
  if excess.max() <= 0:
    return None
  return shortage_message(
    cluster,
    [
      shortage_at_peak(graph, cluster, simulation, k)
      for k in np.flatnonzero(excess > 0).tolist()
    ],
  )


def shortage_at_peak(
  graph: OpGraph, cluster: Cluster, simulation: Simulation, k: int
) -> Shortage:
  """Returns what device `k` holds at its peak, by kind, and what it has."""
  held = held_at_peak(graph, simulation, k)
  # The op that runs at the peak: the last to start by then.
  start = simulation.start_time_us
  ops = np.flatnonzero(simulation.device == k)
  started = ops[start[ops] <= held.time_us]
  culprit = started[np.argmax(start[started])] if len(started) else ops[0]
  return Shortage(
    k,
    {kind: int(sizes.sum()) for kind, sizes in held.by_kind.items()},
    int(cluster.memory_bytes[k]),
    at_op=graph.names[culprit],
  )
