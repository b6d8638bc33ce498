"""What placing an op books: its device's time, its channels and its memory.

The state of a list schedule in the making, shared by the loop that decides
(`list_scheduling`) and the devices that wait (`awake`).
"""

import heapq
from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.placers.families import find_families
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import transfer_start

NONE = -1
NEVER = np.inf
# Kinds of queues: ops that may run on other devices too, ops whose group is on
# the device, and ops by when they are urgent. A free device takes of the first
# two, an awake device of the last two.
OPEN, PINNED, URGENT = range(3)


class Problem(NamedTuple):
  """The graph and the cluster as arrays that compiled code can take."""

  times: np.ndarray  # [n, D]
  fastest: np.ndarray  # [n]
  rank: np.ndarray
  order: np.ndarray
  working_bytes: np.ndarray  # [n] temporary and outputs
  temporary_bytes: np.ndarray
  tensor_op: np.ndarray
  tensor_offsets: np.ndarray
  tensor_bytes: np.ndarray
  tensor_held_bytes: np.ndarray
  consumer_offsets: np.ndarray
  edge_op: np.ndarray
  input_offsets: np.ndarray
  input_tensor: np.ndarray  # in topological order, then see sort_inputs
  group: np.ndarray
  group_offsets: np.ndarray
  group_members: np.ndarray
  group_persistent: np.ndarray
  group_working: np.ndarray
  family: np.ndarray  # [n], and the rest of Families' arrays
  family_offsets: np.ndarray
  family_members: np.ndarray
  family_position: np.ndarray
  family_consumer_offsets: np.ndarray
  family_consumers: np.ndarray
  favorite_child: np.ndarray  # [n], or empty: no device is ever awake
  memory: np.ndarray
  latency_us: np.ndarray
  us_per_byte: np.ndarray
  channel: int


class State(NamedTuple):
  """What has been decided so far."""

  device: np.ndarray  # [n], NONE until placed
  is_ready: np.ndarray  # [n], all parents placed, itself not
  finish: np.ndarray  # [n]
  group_device: np.ndarray
  device_free: np.ndarray  # [D]
  send_free: np.ndarray
  receive_free: np.ndarray
  arrived: np.ndarray  # [m, D], when a tensor is there; NEVER: not sent
  last_use: np.ndarray  # [m, D], when its last placed consumer there ends
  unplaced_parents: np.ndarray  # [n], edges from ops that are not placed
  unplaced_consumers: np.ndarray  # [m]
  reserved: np.ndarray  # [D] persistent bytes of the groups placed there
  live: np.ndarray  # [D] outputs, copies and workspace held there
  next_unplaced: np.ndarray  # [n + 1], position in the families, see sibling
  # The log of transfers booked, and how many there are.
  log_source: np.ndarray
  log_target: np.ndarray
  log_length: np.ndarray  # [1]
  # For `awake`, [f] and [D]: what has been found out, to be brought up to date.
  urgent_at: np.ndarray  # a family's inputs could not be anywhere before
  urgent_device: np.ndarray  # because of this device
  urgent_log: np.ndarray  # log length when all devices had been asked, or NONE
  rival: np.ndarray  # where the awaited child could start as early as here
  rival_start: np.ndarray  # the child cannot start elsewhere before
  rival_child: np.ndarray  # which child
  rival_parents: np.ndarray  # how many of its parents were not placed


class Queues(NamedTuple):
  """Heaps of what is to come.

  Device `k` has a queue of each kind, number `kind * num_devices + k`.
  """

  arriving: list  # (when the inputs are there, rank)
  waiting: list  # ranks of ops whose inputs are there once the device is free
  blocked: list  # ranks of ops that do not fit for now
  releases: list  # per device, (when, bytes that will be freed)


def new_problem(
  graph: OpGraph, cluster: Cluster, favorite_child: np.ndarray | None
) -> Problem:
  """Returns the problem; `favorite_child` as for `list_scheduling.schedule`.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  by_op = np.lexsort(
    (graph.edge_tensor, graph.rank[graph.edge_source], graph.edge_op)
  )
  members = np.lexsort((graph.rank, graph.group))
  times = graph.times_on(cluster.types)
  families = find_families(graph)
  return Problem(
    times=times,
    fastest=times.min(axis=1),
    rank=graph.rank,
    order=graph.order,
    working_bytes=graph.working_bytes,
    temporary_bytes=graph.temporary_bytes,
    tensor_op=graph.tensor_op,
    tensor_offsets=graph.tensor_offsets,
    tensor_bytes=graph.tensor_bytes,
    tensor_held_bytes=graph.tensor_held_bytes,
    consumer_offsets=graph.consumer_offsets,
    edge_op=graph.edge_op,
    input_offsets=graph.input_offsets,
    input_tensor=graph.edge_tensor[by_op],
    group=graph.group,
    group_offsets=offsets_of(graph.group, graph.num_groups),
    group_members=members,
    group_persistent=graph.group_persistent_bytes,
    group_working=graph.group_working_bytes,
    family=families.of_op,
    family_offsets=families.offsets,
    family_members=families.members,
    family_position=families.position,
    family_consumer_offsets=families.consumer_offsets,
    family_consumers=families.consumers,
    favorite_child=np.array(
      () if favorite_child is None else favorite_child, np.int64
    ),
    memory=cluster.memory_bytes,
    latency_us=cluster.latency_us,
    us_per_byte=cluster.us_per_byte,
    channel=CHANNELS.index(cluster.channel),
  )


def new_state(p: Problem) -> State:
  """Returns the state in which nothing has been placed."""
  num_ops, num_devices = p.times.shape
  num_tensors = len(p.tensor_op)
  num_edges = len(p.edge_op)
  num_families = len(p.family_offsets) - 1
  send_free = np.zeros(num_devices)
  half = p.channel == HALF_DUPLEX
  return State(
    device=np.full(num_ops, NONE, np.int64),
    is_ready=np.zeros(num_ops, bool),
    finish=np.zeros(num_ops),
    group_device=np.full(len(p.group_persistent), NONE, np.int64),
    device_free=np.zeros(num_devices),
    send_free=send_free,
    receive_free=send_free if half else np.zeros(num_devices),
    arrived=np.full((num_tensors, num_devices), NEVER),
    last_use=np.zeros((num_tensors, num_devices)),
    unplaced_parents=np.diff(p.input_offsets),
    unplaced_consumers=np.diff(p.consumer_offsets),
    reserved=np.zeros(num_devices, np.int64),
    live=np.zeros(num_devices, np.int64),
    next_unplaced=np.arange(num_ops + 1),
    log_source=np.empty(num_edges, np.int64),
    log_target=np.empty(num_edges, np.int64),
    log_length=np.zeros(1, np.int64),
    urgent_at=np.zeros(num_families),
    urgent_device=np.zeros(num_families, np.int64),
    urgent_log=np.full(num_families, NONE),
    rival=np.full(num_devices, NONE),
    rival_start=np.zeros(num_devices),
    rival_child=np.full(num_devices, NONE),
    rival_parents=np.zeros(num_devices, np.int64),
  )


@compiled_inner
def new_queues(num_devices):
  """Empty queues, which compiled code has to make itself."""
  queues = range(3 * num_devices)
  none = range(0)  # gives an empty list its type
  return Queues(
    [[(0.0, np.int64(0)) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[(0.0, np.int64(0)) for _ in none] for _ in range(num_devices)],
  )


@inlined
def transfer_end(p, s, tensor, k, receive_free):
  """When a tensor would be on `k`, were its transfer the next to be booked.

  `receive_free` is from when the channel into `k` is free.
  """
  op = p.tensor_op[tensor]
  home = s.device[op]
  begin = transfer_start(
    p.channel, s.send_free[home], receive_free, s.finish[op]
  )
  return (
    begin
    + p.latency_us[home, k]
    + p.tensor_bytes[tensor] * p.us_per_byte[home, k]
  )


@inlined
def inputs_there(p, s, op, k):
  """When the last input of a ready op would be on `k`.

  The transfers are tried in the order in which placing the op would book them.
  All go through the channel into `k`, one after another: what they do to the
  senders' channels can delay none of them further.
  """
  latest = 0.0
  receive_free = s.receive_free[k]
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    end = s.arrived[tensor, k]
    if s.device[source] == k:
      end = s.finish[source]
    elif end == NEVER:
      end = transfer_end(p, s, tensor, k, receive_free)
      receive_free = end
    latest = max(latest, end)
  return latest


@inlined
def may_run(p, s, op, k):
  """Whether the op is not placed, and its group not on another device."""
  where = s.group_device[p.group[op]]
  return s.device[op] == NONE and (where == NONE or where == k)


@inlined
def received_bytes(p, s, op, k):
  """Bytes of inputs that `k` would have to receive, and hold, for the op."""
  total = 0
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    home = s.device[p.tensor_op[tensor]]
    if home != k and s.arrived[tensor, k] == NEVER:
      total += p.tensor_bytes[tensor]
  return total


@inlined
def _needs(p, s, op, k):
  """Bytes that placing the op on `k` would take there at its start."""
  working = p.working_bytes[op] + received_bytes(p, s, op, k)
  group = p.group[op]
  if s.group_device[group] != NONE:
    return working
  # The first op of a group brings all of it.
  return p.group_persistent[group] + max(working, p.group_working[group])


@inlined
def fits(p, s, q, op, k, now):
  """Whether `k` can hold the op from `now` on, after what is freed by then."""
  excess = s.reserved[k] + s.live[k] + _needs(p, s, op, k) - p.memory[k]
  return excess <= 0 or excess <= _freed_by(q, k, now)


@compiled_inner
def _freed_by(q, k, now):
  """Bytes that `k` need not hold from `now` on.

  Only counted: another op may yet start there before they are freed.
  """
  freed = 0
  for at, size in q.releases[k]:
    if at <= now:
      freed += size
  return freed


@compiled_inner
def sort_inputs(p, s, op):
  """Puts a ready op's inputs in the order in which they became ready.

  They start in topological order, which ties keep and which is nearly it.
  """
  first, last = p.input_offsets[op], p.input_offsets[op + 1]
  for i in range(first + 1, last):
    tensor = p.input_tensor[i]
    finish = s.finish[p.tensor_op[tensor]]
    while i > first and s.finish[p.tensor_op[p.input_tensor[i - 1]]] > finish:
      p.input_tensor[i] = p.input_tensor[i - 1]
      i -= 1
    p.input_tensor[i] = tensor


@compiled_inner
def place_op(p, s, q, op, k, begin):
  """Places the op: books its transfers, its time and its memory.

  Returns the tensors that are sent to `k` for its sake.
  """
  sent = [0 for _ in range(0)]
  group = p.group[op]
  if s.group_device[group] == NONE:
    s.group_device[group] = k
    s.reserved[k] += p.group_persistent[group]
  end = begin + p.times[op, k]
  s.device[op] = k
  s.next_unplaced[p.family_position[op]] += 1
  s.finish[op] = end
  s.device_free[k] = end
  s.live[k] += p.working_bytes[op]
  heapq.heappush(q.releases[k], (end, p.temporary_bytes[op]))
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    home = s.device[source]
    if home != k and s.arrived[tensor, k] == NEVER:
      arrival = transfer_end(p, s, tensor, k, s.receive_free[k])
      s.arrived[tensor, k] = arrival
      s.send_free[home] = arrival
      s.receive_free[k] = arrival
      s.live[k] += p.tensor_bytes[tensor]
      sent.append(tensor)
      s.log_source[s.log_length[0]] = home
      s.log_target[s.log_length[0]] = k
      s.log_length[0] += 1
    s.last_use[tensor, k] = max(s.last_use[tensor, k], end)
    s.unplaced_consumers[tensor] -= 1
    if s.unplaced_consumers[tensor] == 0:
      _release(p, s, q, tensor, home)
  for tensor in range(p.tensor_offsets[op], p.tensor_offsets[op + 1]):
    if s.unplaced_consumers[tensor] == 0:
      heapq.heappush(q.releases[k], (end, p.tensor_held_bytes[tensor]))
  return sent


@compiled_inner
def _release(p, s, q, tensor, home):
  """Notes when a tensor is freed, now that all its consumers are placed."""
  last = 0.0
  for k in range(len(p.memory)):
    last = max(last, s.last_use[tensor, k])
    if s.arrived[tensor, k] < NEVER:
      heapq.heappush(
        q.releases[k], (s.last_use[tensor, k], p.tensor_bytes[tensor])
      )
  heapq.heappush(q.releases[home], (last, p.tensor_held_bytes[tensor]))


@compiled_inner
def free_memory(s, q, k, now):
  """Frees what `k` need not hold from `now` on; blocked ops try again."""
  s.device_free[k] = max(s.device_free[k], now)
  while len(q.releases[k]) > 0 and q.releases[k][0][0] <= now:
    s.live[k] -= heapq.heappop(q.releases[k])[1]
  for queue in range(k, len(q.blocked), len(s.live)):
    for r in q.blocked[queue]:
      heapq.heappush(q.waiting[queue], r)
    q.blocked[queue].clear()
