"""The critical path of a predicted step: the chain of waits that ends it.

From the op that ends last back to the start: whatever could not begin earlier
had to wait for the latest of what it needs, which are an op's inputs and its
device, a transfer's tensor and its channel. To end sooner, a step must shorten
something on this path.
"""

import dataclasses

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import Simulation
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import PARALLEL

OP, TRANSFER = "op", "transfer"
START, INPUT, DEVICE, CHANNEL = "start", "input", "device", "channel"


@dataclasses.dataclass(frozen=True)
class Link:
  """An op or a transfer on the critical path.

  Attributes:
    kind: `OP` or `TRANSFER`.
    index: the op's index, or the transfer's in `Simulation.transfer_tensor`.
    waited_for: why it did not begin earlier: an `INPUT` was not there, its
      `DEVICE` or its `CHANNEL` was busy; `START` if it waited for nothing.
  """

  kind: str
  index: int
  waited_for: str


def critical_path(
  graph: OpGraph, cluster: Cluster, simulation: Simulation
) -> list[Link]:
  """Returns the critical path of a simulated step, from its start to its end.

  Where two things were waited for until the same instant, an input comes before
  a device or a channel.
  """
  if not graph.num_ops:
    return []
  before = _Before(graph, cluster, simulation)
  heard = simulation.finish_time_us + cluster.dispatch_us[simulation.device]
  kind, index = OP, int(np.argmax(heard))
  path = {}
  while True:
    earlier = before.op(index) if kind == OP else before.transfer(index)
    # What takes no time can seem to wait for what came after it.
    earlier = [x for x in earlier if x[3:] not in path]
    if not earlier:
      path[kind, index] = START
      break
    _, _, path[kind, index], *following = max(earlier)
    kind, index = following
  return [Link(*key, reason) for key, reason in reversed(path.items())]


class _Before:
  """Finds what each op and each transfer of a step had to wait for."""

  def __init__(self, graph, cluster, simulation):
    self._graph, self._simulation = graph, simulation
    device = simulation.device
    tensor, target = simulation.transfer_tensor, simulation.transfer_target
    self._on_processor = _previous(
      simulation.order, [cluster.processor[device[simulation.order]]]
    )
    in_time = np.lexsort(
      (simulation.transfer_finish_us, simulation.transfer_start_us)
    )
    source = device[graph.tensor_op[tensor]]
    self._on_channel = {}
    channel = link_costs(cluster).channel
    if channel != PARALLEL:
      ends = [source[in_time], target[in_time]]
      if channel != HALF_DUPLEX:
        ends[1] = ends[1] + cluster.num_devices
      self._on_channel = _previous(in_time, ends)

  def op(self, op):
    """Returns what an op waits for: (end, preference, reason, kind, index)."""
    graph, simulation = self._graph, self._simulation
    start, k = simulation.start_time_us[op], int(simulation.device[op])
    found = []
    inputs = slice(graph.input_offsets[op], graph.input_offsets[op + 1])
    for tensor in graph.edge_tensor[graph.input_edges[inputs]].tolist():
      producer = int(graph.tensor_op[tensor])
      t = simulation.transfer_of.get((tensor, k))
      if simulation.device[producer] == k or t is None:
        end = simulation.finish_time_us[producer]
        found.append((end, 1, INPUT, OP, producer))
      else:
        end = simulation.transfer_finish_us[t]
        found.append((end, 1, INPUT, TRANSFER, t))
    for other in self._on_processor.get(op, ()):
      end = simulation.finish_time_us[other]
      if end <= start:
        found.append((end, 0, DEVICE, OP, other))
    return found

  def transfer(self, t):
    """Returns what a transfer waits for, as `op` does for an op."""
    graph, simulation = self._graph, self._simulation
    producer = int(graph.tensor_op[simulation.transfer_tensor[t]])
    end = simulation.finish_time_us[producer]
    found = [(end, 1, INPUT, OP, producer)]
    for other in self._on_channel.get(t, ()):
      end = simulation.transfer_finish_us[other]
      if end <= simulation.transfer_start_us[t]:
        found.append((end, 0, CHANNEL, TRANSFER, other))
    return found


def _previous(items, lanes) -> dict[int, list[int]]:
  """Returns what comes before each item on any of its lanes.

  Args:
    items: int `[n]`, in time.
    lanes: int `[n]` arrays, what each item occupies.
  """
  last, previous = {}, {}
  for item, *occupied in zip(
    items.tolist(), *(x.tolist() for x in lanes), strict=True
  ):
    previous[item] = [last[lane] for lane in occupied if lane in last]
    last.update(dict.fromkeys(occupied, item))
  return previous
