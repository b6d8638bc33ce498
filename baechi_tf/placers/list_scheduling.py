"""Earliest-task-first list scheduling with memory: m-ETF's and m-SCT's loop.

Repeatedly takes, among all pairs of a ready op and a device that may hold it,
the one that can start first (Hwang et al., SIAM J. Comput. 1989), with the
memory checks of Baechi (Jeon et al., SoCC 2020) and, when favourite children
are given, the awake devices of Hanen and Munier's SCT. Ties go to the earlier
op in topological order, then to the lower device.

What makes it fast: a pair's start is `max(device free, inputs there)`, and both
only grow as ops are placed. Each device keeps the ops whose inputs would be
there by the time it is free in one heap (by rank) and the rest in another (by
arrival); a key that has gone stale is a lower bound, and is brought up to date
only when it reaches the top. One arrival can become earlier, that of an op
whose input has just been sent for another's sake: it is entered again.
"""

import heapq
from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import infeasible_message
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.simulator import HALF_DUPLEX
from baechi_tf.simulator import transfer_start

NONE = -1
_NEVER = np.inf


class _Problem(NamedTuple):
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
  input_tensor: np.ndarray  # in topological order, then see _sort_inputs
  group: np.ndarray
  group_offsets: np.ndarray
  group_members: np.ndarray
  group_persistent: np.ndarray
  group_working: np.ndarray
  favorite_child: np.ndarray
  memory: np.ndarray
  latency_us: np.ndarray
  us_per_byte: np.ndarray
  channel: int


class _State(NamedTuple):
  """What has been decided so far."""

  device: np.ndarray  # [n], NONE until placed
  is_ready: np.ndarray  # [n], all parents placed, itself not
  finish: np.ndarray  # [n]
  group_device: np.ndarray
  device_free: np.ndarray  # [D]
  send_free: np.ndarray
  receive_free: np.ndarray
  send_trial: np.ndarray  # scratch, for bookings that are not kept
  receive_trial: np.ndarray
  arrived: np.ndarray  # [m, D], when a tensor is there; _NEVER: not sent
  last_use: np.ndarray  # [m, D], when its last placed consumer there ends
  unplaced_parents: np.ndarray  # [n], edges from ops that are not placed
  unplaced_consumers: np.ndarray  # [m]
  reserved: np.ndarray  # [D] persistent bytes of the groups placed there
  live: np.ndarray  # [D] outputs, copies and workspace held there


class _Queues(NamedTuple):
  """Heaps of what is to come.

  Queue `k` holds candidates of device `k` that may go elsewhere too, queue
  `num_devices + k` those whose group is on `k`: an awake device takes only the
  latter at once.
  """

  arriving: list  # (when the inputs are there, rank)
  waiting: list  # ranks of ops whose inputs are there once the device is free
  blocked: list  # ranks of ops that do not fit for now
  releases: list  # per device, (when, bytes that will be freed)


def schedule(
  graph: OpGraph, cluster: Cluster, favorite_child: np.ndarray | None = None
) -> Placement:
  """Returns the placement of the earliest-task-first schedule.

  An op that fits on no device for now waits for memory that ops already placed
  will free; only when none will be freed is there no placement.

  Args:
    graph: the ops to place; groups are hard constraints.
    cluster: the devices, whose memory is a limit.
    favorite_child: int64 `[n]`, the successor that should follow an op on its
      device, or `NONE`. None for plain m-ETF.

  Raises:
    InfeasiblePlacementError: an op fits on no device; the message names it,
      what it needs and what each device has left.
    ValueError: the graph has no times for a device's type.
  """
  if favorite_child is None:
    favorite_child = np.full(graph.num_ops, NONE, np.int64)
  problem = _problem(graph, cluster, favorite_child)
  state = _new_state(problem)
  if graph.num_ops and not _schedule(problem, state):
    raise InfeasiblePlacementError(_why_not(graph, cluster, problem, state))
  return Placement(graph.names, cluster.device_names, state.device)


def _why_not(graph, cluster, p, s) -> str:
  """Returns what the first ready op lacks, where it lacks least."""
  ready = np.flatnonzero(s.is_ready)
  op = int(ready[np.argmin(p.rank[ready])])
  where = s.group_device[p.group[op]]
  devices = range(cluster.num_devices) if where == NONE else [where]
  needs = min(int(_needs(p, s, op, k)) for k in devices)
  left = p.memory - s.reserved - s.live
  return infeasible_message(graph, cluster, op, needs, left)


def _problem(graph, cluster, favorite_child) -> _Problem:
  working = graph.temporary_bytes + graph.output_held_bytes
  by_op = np.lexsort(
    (graph.edge_tensor, graph.rank[graph.edge_source], graph.edge_op)
  )
  members = np.lexsort((graph.rank, graph.group))
  group_persistent = np.zeros(graph.num_groups, np.int64)
  np.add.at(group_persistent, graph.group, graph.persistent_bytes)
  group_working = np.zeros(graph.num_groups, np.int64)
  np.maximum.at(group_working, graph.group, working)
  times = graph.times_on(cluster.types)
  return _Problem(
    times=times,
    fastest=times.min(axis=1),
    rank=graph.rank,
    order=graph.order,
    working_bytes=working,
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
    group_persistent=group_persistent,
    group_working=group_working,
    favorite_child=np.asarray(favorite_child, np.int64),
    memory=cluster.memory_bytes,
    latency_us=cluster.latency_us,
    us_per_byte=cluster.us_per_byte,
    channel=CHANNELS.index(cluster.channel),
  )


def _new_state(p: _Problem) -> _State:
  num_ops, num_devices = p.times.shape
  num_tensors = len(p.tensor_op)
  send_free, send_trial = np.zeros(num_devices), np.zeros(num_devices)
  half = p.channel == HALF_DUPLEX
  return _State(
    device=np.full(num_ops, NONE, np.int64),
    is_ready=np.zeros(num_ops, bool),
    finish=np.zeros(num_ops),
    group_device=np.full(len(p.group_persistent), NONE, np.int64),
    device_free=np.zeros(num_devices),
    send_free=send_free,
    receive_free=send_free if half else np.zeros(num_devices),
    send_trial=send_trial,
    receive_trial=send_trial if half else np.zeros(num_devices),
    arrived=np.full((num_tensors, num_devices), _NEVER),
    last_use=np.zeros((num_tensors, num_devices)),
    unplaced_parents=np.diff(p.input_offsets),
    unplaced_consumers=np.diff(p.consumer_offsets),
    reserved=np.zeros(num_devices, np.int64),
    live=np.zeros(num_devices, np.int64),
  )


@compiled
def _send(p, tensor, source, target, ready, send_free, receive_free):
  """Books one transfer and returns when it ends."""
  begin = transfer_start(
    p.channel, send_free, receive_free, source, target, ready
  )
  end = (
    begin
    + p.latency_us[source, target]
    + p.tensor_bytes[tensor] * p.us_per_byte[source, target]
  )
  send_free[source] = end
  receive_free[target] = end
  return end


@compiled
def _inputs_there(p, s, op, k):
  """When the last input of a ready op would be on `k`.

  The transfers are tried in the order in which placing the op would book them,
  since several inputs share one channel.
  """
  latest = 0.0
  tried = False
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    end = s.arrived[tensor, k]
    if s.device[source] == k:
      end = s.finish[source]
    elif end == _NEVER:
      if not tried:
        tried = True
        s.send_trial[:] = s.send_free
        s.receive_trial[:] = s.receive_free
      end = _send(
        p,
        tensor,
        s.device[source],
        k,
        s.finish[source],
        s.send_trial,
        s.receive_trial,
      )
    latest = max(latest, end)
  return latest


@compiled
def _may_run(p, s, op, k):
  """Whether the op is not placed, and its group not on another device."""
  where = s.group_device[p.group[op]]
  return s.device[op] == NONE and (where == NONE or where == k)


@compiled
def _needs(p, s, op, k):
  """Bytes that placing the op on `k` would take there at its start."""
  copies = 0
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    home = s.device[p.tensor_op[tensor]]
    if home != k and s.arrived[tensor, k] == _NEVER:
      copies += p.tensor_bytes[tensor]
  working = p.working_bytes[op] + copies
  group = p.group[op]
  if s.group_device[group] != NONE:
    return working
  # The first op of a group brings all of it.
  return p.group_persistent[group] + max(working, p.group_working[group])


@compiled
def _fits(p, s, q, op, k, now):
  """Whether `k` can hold the op from `now` on, after what is freed by then."""
  excess = s.reserved[k] + s.live[k] + _needs(p, s, op, k) - p.memory[k]
  if excess > 0:
    # Only counted: another op may yet start on `k` before these are freed.
    for at, size in q.releases[k]:
      if at <= now:
        excess -= size
  return excess <= 0


@compiled
def _sort_inputs(p, s, op):
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


@compiled
def _place(p, s, q, op, k, begin):
  """Places the op: books its transfers, its time and its memory."""
  group = p.group[op]
  if s.group_device[group] == NONE:
    s.group_device[group] = k
    s.reserved[k] += p.group_persistent[group]
  end = begin + p.times[op, k]
  s.device[op] = k
  s.finish[op] = end
  s.device_free[k] = end
  s.live[k] += p.working_bytes[op]
  heapq.heappush(q.releases[k], (end, p.temporary_bytes[op]))
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    home = s.device[source]
    if home != k and s.arrived[tensor, k] == _NEVER:
      s.arrived[tensor, k] = _send(
        p, tensor, home, k, s.finish[source], s.send_free, s.receive_free
      )
      s.live[k] += p.tensor_bytes[tensor]
    s.last_use[tensor, k] = max(s.last_use[tensor, k], end)
    s.unplaced_consumers[tensor] -= 1
    if s.unplaced_consumers[tensor] == 0:
      _release(p, s, q, tensor, home)
  for tensor in range(p.tensor_offsets[op], p.tensor_offsets[op + 1]):
    if s.unplaced_consumers[tensor] == 0:
      heapq.heappush(q.releases[k], (end, p.tensor_held_bytes[tensor]))


@compiled
def _release(p, s, q, tensor, home):
  """Notes when a tensor is freed, now that all its consumers are placed."""
  last = 0.0
  for k in range(len(p.memory)):
    last = max(last, s.last_use[tensor, k])
    if s.arrived[tensor, k] < _NEVER:
      heapq.heappush(
        q.releases[k], (s.last_use[tensor, k], p.tensor_bytes[tensor])
      )
  heapq.heappush(q.releases[home], (last, p.tensor_held_bytes[tensor]))


@compiled
def _new_queues(num_devices):
  queues = range(2 * num_devices)
  none = range(0)  # gives an empty list its type
  return _Queues(
    [[(0.0, np.int64(0)) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[(0.0, np.int64(0)) for _ in none] for _ in range(num_devices)],
  )


@compiled
def _enter(p, s, q, op, k):
  """Makes a ready op a candidate of device `k`, if it may run there."""
  if _may_run(p, s, op, k):
    pinned = s.group_device[p.group[op]] == k
    queue = k + len(p.memory) * pinned
    heapq.heappush(q.arriving[queue], (_inputs_there(p, s, op, k), p.rank[op]))


@compiled
def _earliest_in(p, s, q, queue):
  """The earliest start of a candidate in a queue, and its rank."""
  k = queue % len(p.memory)
  arriving, waiting = q.arriving[queue], q.waiting[queue]
  while True:
    while len(arriving) > 0 and arriving[0][0] <= s.device_free[k]:
      heapq.heappush(waiting, heapq.heappop(arriving)[1])
    is_waiting = len(waiting) > 0
    if is_waiting:
      key, r = s.device_free[k], waiting[0]
    elif len(arriving) > 0:
      key, r = arriving[0]
    else:
      return _NEVER, np.int64(NONE)
    op = p.order[r]
    if _may_run(p, s, op, k):
      start = max(s.device_free[k], _inputs_there(p, s, op, k))
      if start == key and _fits(p, s, q, op, k, start):
        return start, r
    else:
      start = _NEVER  # placed meanwhile, here or elsewhere
    if is_waiting:
      heapq.heappop(waiting)
    else:
      heapq.heappop(arriving)
    if start == key:
      q.blocked[queue].append(r)
    elif start < _NEVER:  # its channel has been used meanwhile
      heapq.heappush(arriving, (start, r))


@compiled
def _urgent_at(p, s, op, k):
  """When the op could start on every device that may run it."""
  latest = 0.0
  for other in range(len(p.memory)):
    if _may_run(p, s, op, other):
      start = max(s.device_free[other], _inputs_there(p, s, op, other))
      latest = max(latest, start)
  return latest


@compiled
def _first_urgent(p, s, q, ready, child, k, best):
  """The earliest start on `k` of its favourite child or of an urgent op.

  An op is urgent once it could start on every device that may run it. Starts
  later than `best` are of no interest. The third value says whether some op was
  left out for want of memory.
  """
  found, found_rank, short = _NEVER, np.int64(NONE), False
  if s.is_ready[child]:
    start = max(s.device_free[k], _inputs_there(p, s, child, k))
    if _fits(p, s, q, child, k, start):
      found, found_rank = start, p.rank[child]
    else:
      short = True
  all_free = s.device_free.max()  # nothing is urgent earlier
  for r in ready:
    if all_free > min(best, found) or (all_free == found and r > found_rank):
      break
    op = p.order[r]
    if op != child and _may_run(p, s, op, k):
      start = _urgent_at(p, s, op, k)
      if start < found or (start == found and r < found_rank):
        if _fits(p, s, q, op, k, start):
          found, found_rank = start, r
        else:
          short = True
  return found, found_rank, short


@compiled
def _awaits(p, s, op, k):
  """Whether `k` should wait for the favourite child of `op`, just run there.

  So it should while the child is not placed, may run on `k`, and can start
  there earlier than on any other device. Hanen and Munier reserve the device
  from the moment the parent ends; the original Baechi only once the child is
  ready.
  """
  child = p.favorite_child[op]
  if child == NONE or not _may_run(p, s, child, k):
    return False
  group = p.group[child]
  if s.group_device[group] == NONE:
    if s.reserved[k] + p.group_persistent[group] > p.memory[k]:
      return False
  now = s.device_free[k]
  here = _earliest_child_start(p, s, child, k, now)
  for other in range(len(p.memory)):
    if other != k and _may_run(p, s, child, other):
      if _earliest_child_start(p, s, child, other, now) <= here:
        return False
  return True


@compiled
def _earliest_child_start(p, s, op, k, now):
  """When `op`, perhaps not ready, could start on `k` at the earliest.

  A parent that is not placed yet cannot have ended before `now` plus its time,
  and says nothing of where it will be.
  """
  latest = s.device_free[k]
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    home = s.device[source]
    if home == NONE:
      end = now + p.fastest[source]
    elif home == k:
      end = s.finish[source]
    elif s.arrived[tensor, k] < _NEVER:
      end = s.arrived[tensor, k]
    else:
      end = (
        transfer_start(
          p.channel, s.send_free, s.receive_free, home, k, s.finish[source]
        )
        + p.latency_us[home, k]
        + p.tensor_bytes[tensor] * p.us_per_byte[home, k]
      )
    latest = max(latest, end)
  return latest


@compiled
def _free_memory(s, q, k, now):
  """Frees what `k` need not hold from `now` on; blocked ops try again."""
  s.device_free[k] = max(s.device_free[k], now)
  while len(q.releases[k]) > 0 and q.releases[k][0][0] <= now:
    s.live[k] -= heapq.heappop(q.releases[k])[1]
  for queue in (k, len(s.live) + k):
    for r in q.blocked[queue]:
      heapq.heappush(q.waiting[queue], r)
    q.blocked[queue].clear()


@compiled
def _earliest_on(p, s, q, ready, last_op, k, best):
  """What device `k` would do next: when, and the op's rank.

  A rank of `NONE` says that memory is freed then, for ops that do not fit now.
  """
  num_devices = len(p.memory)
  if len(q.releases[k]) > 0 and q.releases[k][0][0] <= s.device_free[k]:
    _free_memory(s, q, k, s.device_free[k])
  start, r = _earliest_in(p, s, q, num_devices + k)
  short = len(q.blocked[num_devices + k]) > 0
  if last_op[k] != NONE and _awaits(p, s, last_op[k], k):
    child = p.favorite_child[last_op[k]]
    other, other_rank, other_short = _first_urgent(
      p, s, q, ready, child, k, min(best, start)
    )
  else:
    other, other_rank = _earliest_in(p, s, q, k)
    other_short = len(q.blocked[k]) > 0
  if other < start or (other == start and other_rank < r):
    start, r = other, other_rank
  if (short or other_short) and len(q.releases[k]) > 0:
    if q.releases[k][0][0] <= start:
      return q.releases[k][0][0], np.int64(NONE)
  return start, r


@compiled
def _earliest(p, s, q, ready, last_op):
  """The next op of the whole cluster: when, its rank, and its device."""
  # Nothing starts on a device before it is free: the first to be free may
  # spare us a look at the rest.
  k = np.argmin(s.device_free)
  start, r = _earliest_on(p, s, q, ready, last_op, k, _NEVER)
  for d in range(len(last_op)):
    if d != k and s.device_free[d] <= start:
      at, rank = _earliest_on(p, s, q, ready, last_op, d, start)
      if at < start or (at == start and (rank, d) < (r, k)):
        start, r, k = at, rank, d
  return start, r, k


@compiled
def _enter_again(p, s, q, op, k, new_group):
  """Renews candidates that may start earlier, or fit, now `op` is on `k`."""
  if new_group:  # its other ops need less now that the group has its place
    group = p.group[op]
    for i in range(p.group_offsets[group], p.group_offsets[group + 1]):
      if s.is_ready[p.group_members[i]]:
        _enter(p, s, q, p.group_members[i], k)
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    if s.arrived[tensor, k] < _NEVER:  # sent here: others may want it too
      first, last = p.consumer_offsets[tensor], p.consumer_offsets[tensor + 1]
      for edge in range(first, last):
        if s.is_ready[p.edge_op[edge]]:
          _enter(p, s, q, p.edge_op[edge], k)


@compiled
def _position(ready, r):
  """Where rank `r` is, or belongs, in a sorted list."""
  low, high = 0, len(ready)
  while low < high:
    middle = (low + high) // 2
    if ready[middle] < r:
      low = middle + 1
    else:
      high = middle
  return low


@compiled
def _make_ready(p, s, q, ready, keep_sorted, op):
  """Notes that all parents of an op are placed: it is a candidate."""
  _sort_inputs(p, s, op)
  s.is_ready[op] = True
  if keep_sorted:
    ready.insert(_position(ready, p.rank[op]), p.rank[op])
  for k in range(len(p.memory)):
    _enter(p, s, q, op, k)


@compiled
def _schedule(p, s):
  """Places every op, or stops when no op that is ready fits anywhere.

  Returns whether every op has been placed; the rest is in the state.
  """
  num_ops, num_devices = p.times.shape
  q = _new_queues(num_devices)
  last_op = np.full(num_devices, NONE)
  # Ranks of the ready ops in order, for awake devices alone.
  use_favorites = np.any(p.favorite_child != NONE)
  ready = [np.int64(0) for _ in range(0)]
  for op in p.order:
    if s.unplaced_parents[op] == 0:
      _make_ready(p, s, q, ready, use_favorites, op)

  for _ in range(num_ops):
    start, r, k = _earliest(p, s, q, ready, last_op)
    while r == NONE and start < _NEVER:
      _free_memory(s, q, k, start)
      start, r, k = _earliest(p, s, q, ready, last_op)
    if r == NONE:
      return False
    op = p.order[r]
    new_group = s.group_device[p.group[op]] == NONE
    _place(p, s, q, op, k, start)
    s.is_ready[op] = False
    last_op[k] = op
    if use_favorites:
      ready.pop(_position(ready, r))
    _enter_again(p, s, q, op, k, new_group)
    first = p.consumer_offsets[p.tensor_offsets[op]]
    last = p.consumer_offsets[p.tensor_offsets[op + 1]]
    for edge in range(first, last):
      consumer = p.edge_op[edge]
      s.unplaced_parents[consumer] -= 1
      if s.unplaced_parents[consumer] == 0:
        _make_ready(p, s, q, ready, use_favorites, consumer)
  return True
