"""Runs one step of a placed graph on simulated devices.

One event loop gives every placer its final figure. The rules (Jeon et al.,
*Baechi*, SoCC 2020, and where we depart from it):

- A device runs one op at a time: of the ops whose inputs have all arrived, the
  first in topological order (`OpGraph.order`). All that ends at an instant ends
  before anything starts.
- A tensor is sent to each other device that consumes it once, in
  `latency + bytes / bandwidth`. Tensors leave in the order in which they become
  ready (ties: topological order, then device), each as soon as the sender's
  outgoing and the receiver's incoming channel are both free.
- An op's outputs are held from its start until their last consumer on any
  device has finished, a received tensor from the start of its transfer until
  its last consumer there has. The original counts nothing for the latter.
"""

import dataclasses
import functools
import heapq

import numpy as np

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.compiled import inlined
from baechi_tf.op_graph import OpGraph
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import Shortage
from baechi_tf.shortage import shortage_message

HALF_DUPLEX, FULL_DUPLEX, PARALLEL = range(len(CHANNELS))


@inlined
def transfer_start(channel, send_free, receive_free, ready):
  """When a tensor that is ready at `ready` can leave.

  `send_free` and `receive_free` are from when the sender's outgoing and the
  receiver's incoming channel are free.
  """
  if channel == PARALLEL:
    return ready
  return max(ready, send_free, receive_free)


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
  """What happens in one step: n ops on D devices, c transfers.

  Attributes:
    device: int64 `[n]`, where each op ran.
    start_time_us: float64 `[n]`.
    finish_time_us: float64 `[n]`.
    transfer_tensor: int64 `[c]`, the tensor that was sent.
    transfer_target: int64 `[c]`, the device that received it.
    transfer_start_us: float64 `[c]`.
    transfer_finish_us: float64 `[c]`.
    busy_time_us: float64 `[D]`, how long each device computed.
    bytes_moved: what all transfers carried.
    memory_time_us: per device, float64 `[s]`, when its memory changed.
    memory_bytes: per device, int64 `[s]`, its memory from then on.
  """

  device: np.ndarray
  start_time_us: np.ndarray
  finish_time_us: np.ndarray
  transfer_tensor: np.ndarray
  transfer_target: np.ndarray
  transfer_start_us: np.ndarray
  transfer_finish_us: np.ndarray
  busy_time_us: np.ndarray
  bytes_moved: int
  memory_time_us: tuple[np.ndarray, ...]
  memory_bytes: tuple[np.ndarray, ...]

  @functools.cached_property
  def makespan_us(self) -> float:
    """When the last op ends: the predicted step time."""
    return float(self.finish_time_us.max(initial=0.0))

  @functools.cached_property
  def peak_memory_bytes(self) -> np.ndarray:
    """Int64 `[D]`: each device's largest use at any instant."""
    return np.array([x.max() for x in self.memory_bytes], np.int64)


def simulate(
  graph: OpGraph, cluster: Cluster, device: np.ndarray
) -> Simulation:
  """Returns the simulated step of `graph` with op `i` on `device[i]`.

  Memory limits are reported on, not enforced.

  Args:
    graph: the ops and their costs.
    cluster: the devices and links.
    device: int `[n]`, indices into `cluster.devices`.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  device = np.ascontiguousarray(device, np.int64)
  times = graph.times_on(cluster.types)
  durations = times[np.arange(graph.num_ops), device]
  transfer_tensor, transfer_target, edge_transfer = _transfers(
    cluster.num_devices,
    device,
    graph.tensor_op,
    graph.consumer_offsets,
    graph.edge_op,
  )
  start, finish, transfer_start_us, transfer_finish_us = _run(
    cluster.num_devices,
    device,
    durations,
    graph.order,
    graph.rank,
    graph.tensor_offsets,
    graph.tensor_bytes,
    graph.consumer_offsets,
    graph.edge_op,
    transfer_tensor,
    transfer_target,
    cluster.latency_us,
    cluster.us_per_byte,
    CHANNELS.index(cluster.channel),
  )
  busy_time_us = np.bincount(
    device, weights=durations, minlength=cluster.num_devices
  )
  memory_time_us, memory_bytes = _memory_over_time(
    graph,
    cluster.num_devices,
    device,
    start,
    finish,
    transfer_tensor,
    transfer_target,
    transfer_start_us,
    edge_transfer,
  )
  return Simulation(
    device=device,
    start_time_us=start,
    finish_time_us=finish,
    transfer_tensor=transfer_tensor,
    transfer_target=transfer_target,
    transfer_start_us=transfer_start_us,
    transfer_finish_us=transfer_finish_us,
    busy_time_us=busy_time_us,
    bytes_moved=int(graph.tensor_bytes[transfer_tensor].sum()),
    memory_time_us=memory_time_us,
    memory_bytes=memory_bytes,
  )


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
  peak = np.argmax(simulation.memory_bytes[k])
  at = simulation.memory_time_us[k][peak]
  start, finish = simulation.start_time_us, simulation.finish_time_us
  here = simulation.device == k
  wanted_here = here[graph.edge_op]
  wanted_until = np.zeros(len(graph.tensor_op))
  np.maximum.at(
    wanted_until,
    graph.edge_tensor[wanted_here],
    finish[graph.edge_op[wanted_here]],
  )
  arriving = simulation.transfer_target == k
  copies = simulation.transfer_tensor[arriving]
  running = here & _is_held(start, finish, at)
  received = _is_held(
    simulation.transfer_start_us[arriving], wanted_until[copies], at
  )
  persistent = int(graph.persistent_bytes[here].sum())
  temporary = int(graph.temporary_bytes[running].sum())
  received_bytes = int(graph.tensor_bytes[copies[received]].sum())
  total = int(simulation.memory_bytes[k][peak])
  outputs = total - persistent - temporary - received_bytes
  # The op that runs at the peak: the last to start by then.
  ops = np.flatnonzero(here)
  started = ops[start[ops] <= at]
  culprit = started[np.argmax(start[started])] if len(started) else ops[0]
  return Shortage(
    k,
    memory_by_kind(persistent, outputs, temporary, received_bytes),
    int(cluster.memory_bytes[k]),
    at_op=graph.names[culprit],
  )


def _is_held(begin, end, at):
  """Whether what is held from `begin` to `end` is held at the peak `at`."""
  return (begin <= at) & ((end > at) | ((begin == at) & (end == at)))


@compiled
def _transfers(num_devices, device, tensor_op, consumer_offsets, edge_op):
  """Which tensors go where: sorted by tensor, then by receiving device.

  Returns the tensor and the receiver of each transfer, and for each edge the
  transfer that serves it (-1: the tensor is there already).
  """
  num_tensors = len(tensor_op)
  transfer_of = np.full(num_devices, -1, np.int64)
  edge_transfer = np.full(len(edge_op), -1, np.int64)
  tensors = []
  targets = []
  for tensor in range(num_tensors):
    home = device[tensor_op[tensor]]
    first, last = consumer_offsets[tensor], consumer_offsets[tensor + 1]
    away = False
    for edge in range(first, last):
      target = device[edge_op[edge]]
      if target != home:
        transfer_of[target] = -2  # wanted, not numbered yet
        away = True
    if not away:
      continue
    for target in range(num_devices):
      if transfer_of[target] == -2:
        transfer_of[target] = len(tensors)
        tensors.append(tensor)
        targets.append(target)
    for edge in range(first, last):
      target = device[edge_op[edge]]
      if target != home:
        edge_transfer[edge] = transfer_of[target]
  return (
    np.array(tensors, dtype=np.int64),
    np.array(targets, dtype=np.int64),
    edge_transfer,
  )


@compiled
def _run(
  num_devices,
  device,
  durations,
  order,
  rank,
  tensor_offsets,
  tensor_bytes,
  consumer_offsets,
  edge_op,
  transfer_tensor,
  transfer_target,
  latency_us,
  us_per_byte,
  channel,
):
  """The event loop: returns start and finish of every op and transfer."""
  num_ops = len(device)
  num_transfers = len(transfer_tensor)
  start = np.zeros(num_ops)
  finish = np.zeros(num_ops)
  sent = np.zeros(num_transfers)
  arrived = np.zeros(num_transfers)
  first_transfer = np.searchsorted(
    transfer_tensor, np.arange(len(tensor_bytes) + 1)
  )
  missing = np.zeros(num_ops, np.int64)  # inputs that have not arrived
  for op in edge_op:
    missing[op] += 1

  idle = np.ones(num_devices, np.bool_)
  send_free = np.zeros(num_devices)
  receive_free = send_free if channel == HALF_DUPLEX else np.zeros(num_devices)
  # Ranks of the ops that may start, one heap per device.
  ready = [[np.int64(0) for _ in range(0)] for _ in range(num_devices)]
  for op in order:
    if missing[op] == 0:
      heapq.heappush(ready[device[op]], rank[op])
  # What ends when: an op by its rank, a transfer by num_ops + its number, so
  # that ops that end together send in topological order.
  events = [(0.0, np.int64(0)) for _ in range(0)]
  now = 0.0
  while True:
    for k in range(num_devices):
      if idle[k] and len(ready[k]) > 0:
        r = heapq.heappop(ready[k])
        op = order[r]
        idle[k] = False
        start[op] = now
        finish[op] = now + durations[op]
        heapq.heappush(events, (finish[op], r))
    if len(events) == 0:
      break
    now = events[0][0]
    # All that ends now ends before anything starts.
    while len(events) > 0 and events[0][0] == now:
      event = heapq.heappop(events)[1]
      if event < num_ops:
        op = order[event]
        home = device[op]
        idle[home] = True
        first_tensor, last_tensor = tensor_offsets[op], tensor_offsets[op + 1]
        for tensor in range(first_tensor, last_tensor):
          for t in range(first_transfer[tensor], first_transfer[tensor + 1]):
            target = transfer_target[t]
            begin = transfer_start(
              channel, send_free[home], receive_free[target], now
            )
            end = (
              begin
              + latency_us[home, target]
              + tensor_bytes[tensor] * us_per_byte[home, target]
            )
            send_free[home] = end
            receive_free[target] = end
            sent[t] = begin
            arrived[t] = end
            heapq.heappush(events, (end, num_ops + t))
        first_edge = consumer_offsets[first_tensor]
        last_edge = consumer_offsets[last_tensor]
        here = home
      else:
        tensor = transfer_tensor[event - num_ops]
        first_edge = consumer_offsets[tensor]
        last_edge = consumer_offsets[tensor + 1]
        here = transfer_target[event - num_ops]
      for edge in range(first_edge, last_edge):
        op = edge_op[edge]
        if device[op] == here:
          missing[op] -= 1
          if missing[op] == 0:
            heapq.heappush(ready[here], rank[op])
  return start, finish, sent, arrived


def _memory_over_time(
  graph,
  num_devices,
  device,
  start,
  finish,
  transfer_tensor,
  transfer_target,
  transfer_start_us,
  edge_transfer,
):
  """Returns, per device, when its memory changes and what it is from then."""
  # Until when each tensor, and each received copy of one, is wanted.
  tensor_end = finish[graph.tensor_op]
  np.maximum.at(tensor_end, graph.edge_tensor, finish[graph.edge_op])
  copy_end = np.zeros(len(transfer_tensor))
  sent = edge_transfer >= 0
  np.maximum.at(copy_end, edge_transfer[sent], finish[graph.edge_op[sent]])

  where = np.concatenate([device, device[graph.tensor_op], transfer_target])
  begin = np.concatenate([start, start[graph.tensor_op], transfer_start_us])
  end = np.concatenate([finish, tensor_end, copy_end])
  size = np.concatenate(
    [
      graph.temporary_bytes,
      graph.tensor_held_bytes,
      graph.tensor_bytes[transfer_tensor],
    ]
  )
  some = size > 0
  where, begin, end, size = where[some], begin[some], end[some], size[some]

  persistent = np.zeros(num_devices, np.int64)
  np.add.at(persistent, device, graph.persistent_bytes)
  # At one instant, what began earlier is freed first, then what begins is
  # taken, then what began at that very instant is freed.
  at = np.concatenate([begin, end])
  turn = np.concatenate([np.ones(len(begin)), np.where(end > begin, 0, 2)])
  change = np.concatenate([size, -size])
  by_device = np.concatenate([where, where])
  sequence = np.lexsort((turn, at, by_device))
  bounds = np.searchsorted(by_device[sequence], np.arange(num_devices + 1))
  times, levels = [], []
  for k in range(num_devices):
    chosen = sequence[bounds[k] : bounds[k + 1]]
    times.append(np.concatenate([[0.0], at[chosen]]))
    levels.append(
      np.concatenate([[0], np.cumsum(change[chosen])]) + persistent[k]
    )
  return tuple(times), tuple(levels)
