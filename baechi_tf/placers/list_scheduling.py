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
  input_tensor: np.ndarray  # re-sorted by arrival order once an op is ready
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
  finish: np.ndarray  # [n]
  group_device: np.ndarray
  device_free: np.ndarray  # [D]
  send_free: np.ndarray
  receive_free: np.ndarray
  send_trial: np.ndarray  # scratch, for bookings that are not kept
  receive_trial: np.ndarray
  arrived: np.ndarray  # [m, D], when a tensor is there; _NEVER: not sent
  last_use: np.ndarray  # [m, D], when its last placed consumer there ends
  unplaced_consumers: np.ndarray  # [m]
  reserved: np.ndarray  # [D] persistent bytes of the groups placed there
  live: np.ndarray  # [D] outputs, copies and workspace held there


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
  device, culprit, needs, left = _schedule(problem, _new_state(problem))
  if culprit != NONE:
    raise InfeasiblePlacementError(
      infeasible_message(graph, cluster, culprit, int(needs), left)
    )
  return Placement(graph.names, cluster.device_names, device)


def _problem(graph, cluster, favorite_child) -> _Problem:
  working = graph.temporary_bytes + graph.output_held_bytes
  members = np.lexsort((graph.rank, graph.group))
  group_persistent = np.zeros(graph.num_groups, np.int64)
  np.add.at(group_persistent, graph.group, graph.persistent_bytes)
  group_working = np.zeros(graph.num_groups, np.int64)
  np.maximum.at(group_working, graph.group, working)
  return _Problem(
    times=np.ascontiguousarray(graph.times_on(cluster.types)),
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
    input_tensor=graph.edge_tensor[graph.input_edges],
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
    finish=np.zeros(num_ops),
    group_device=np.full(len(p.group_persistent), NONE, np.int64),
    device_free=np.zeros(num_devices),
    send_free=send_free,
    receive_free=send_free if half else np.zeros(num_devices),
    send_trial=send_trial,
    receive_trial=send_trial if half else np.zeros(num_devices),
    arrived=np.full((num_tensors, num_devices), _NEVER),
    last_use=np.zeros((num_tensors, num_devices)),
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
def _fits(p, s, releases, op, k, now):
  """Whether `k` can hold the op from `now` on, after what was freed by then."""
  while len(releases[k]) > 0 and releases[k][0][0] <= now:
    s.live[k] -= heapq.heappop(releases[k])[1]
  return s.reserved[k] + s.live[k] + _needs(p, s, op, k) <= p.memory[k]


@compiled
def _sort_inputs(p, s, op):
  """Puts a ready op's inputs in the order in which they became ready."""
  first, last = p.input_offsets[op], p.input_offsets[op + 1]
  keys = [
    (
      s.finish[p.tensor_op[p.input_tensor[i]]],
      p.rank[p.tensor_op[p.input_tensor[i]]],
      p.input_tensor[i],
    )
    for i in range(first, last)
  ]
  keys.sort()
  for i in range(first, last):
    p.input_tensor[i] = keys[i - first][2]


@compiled
def _place(p, s, releases, op, k, begin):
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
  heapq.heappush(releases[k], (end, p.temporary_bytes[op]))
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
      _release(p, s, releases, tensor, home)
  for tensor in range(p.tensor_offsets[op], p.tensor_offsets[op + 1]):
    if s.unplaced_consumers[tensor] == 0:
      heapq.heappush(releases[k], (end, p.tensor_held_bytes[tensor]))


@compiled
def _release(p, s, releases, tensor, home):
  """Notes when a tensor is freed, now that all its consumers are placed."""
  last = 0.0
  for k in range(len(p.memory)):
    last = max(last, s.last_use[tensor, k])
    if s.arrived[tensor, k] < _NEVER:
      heapq.heappush(
        releases[k], (s.last_use[tensor, k], p.tensor_bytes[tensor])
      )
  heapq.heappush(releases[home], (last, p.tensor_held_bytes[tensor]))


@compiled
def _enter(p, s, arriving, op, k):
  if _may_run(p, s, op, k):
    heapq.heappush(arriving[k], (_inputs_there(p, s, op, k), p.rank[op]))


@compiled
def _earliest_on(p, s, releases, arriving, waiting, blocked, k):
  """The earliest start on a free device `k`, and the op's rank."""
  while True:
    while len(arriving[k]) > 0 and arriving[k][0][0] <= s.device_free[k]:
      heapq.heappush(waiting[k], heapq.heappop(arriving[k])[1])
    if len(waiting[k]) > 0:
      r = waiting[k][0]
      op = p.order[r]
      if not _may_run(p, s, op, k):
        heapq.heappop(waiting[k])
        continue
      start = max(s.device_free[k], _inputs_there(p, s, op, k))
      if start > s.device_free[k]:  # its channel has been used meanwhile
        heapq.heappop(waiting[k])
        heapq.heappush(arriving[k], (start, r))
        continue
      if _fits(p, s, releases, op, k, start):
        return start, r
      heapq.heappop(waiting[k])
      blocked[k].append(r)
    elif len(arriving[k]) > 0:
      start, r = arriving[k][0]
      op = p.order[r]
      if not _may_run(p, s, op, k):
        heapq.heappop(arriving[k])
        continue
      now = _inputs_there(p, s, op, k)
      if now > start:
        heapq.heapreplace(arriving[k], (now, r))
        continue
      if _fits(p, s, releases, op, k, start):
        return start, r
      heapq.heappop(arriving[k])
      blocked[k].append(r)
    else:
      return _NEVER, np.int64(NONE)


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
def _earliest_on_awake(p, s, releases, ready, favorite, k):
  """As `_earliest_on`, on a device that waits for a favourite child.

  It takes the child as soon as that can start, another op only once that is
  urgent: it could start then on every device. The third value says whether
  some op was left out for want of memory.
  """
  best, best_rank, short = _NEVER, np.int64(NONE), False
  all_free = s.device_free.max()
  for op in ready:
    if not _may_run(p, s, op, k):
      continue
    r = p.rank[op]
    if op == favorite or s.group_device[p.group[op]] == k:
      start = max(s.device_free[k], _inputs_there(p, s, op, k))
    elif all_free > best:
      continue  # cannot be urgent by then
    else:
      start = _urgent_at(p, s, op, k)
    if start < best or (start == best and r < best_rank):
      if _fits(p, s, releases, op, k, start):
        best, best_rank = start, r
      else:
        short = True
  return best, best_rank, short


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
      end = now + p.times[source].min()
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
def _infeasible(p, s, op):
  """What the op needs where it comes closest, and what each device has left."""
  left = p.memory - s.reserved - s.live
  needs = -1
  for k in range(len(left)):
    if _may_run(p, s, op, k):
      on_k = _needs(p, s, op, k)
      needs = on_k if needs < 0 else min(needs, on_k)
  return op, needs, left


@compiled
def _schedule(p, s):
  """Places every op: returns the device of each, or a culprit.

  Returns:
    device of each op, the op that fits nowhere (or NONE), the bytes it needs,
    and the bytes that each device has left.
  """
  num_ops, num_devices = p.times.shape
  missing = np.diff(p.input_offsets)
  arriving = [
    [(0.0, np.int64(0)) for _ in range(0)] for _ in range(num_devices)
  ]
  releases = [
    [(0.0, np.int64(0)) for _ in range(0)] for _ in range(num_devices)
  ]
  waiting = [[np.int64(0) for _ in range(0)] for _ in range(num_devices)]
  blocked = [[np.int64(0) for _ in range(0)] for _ in range(num_devices)]
  last_op = np.full(num_devices, NONE)
  use_favorites = p.favorite_child.max() > NONE if num_ops else False
  ready = [np.int64(0) for _ in range(0)]
  place_in_ready = np.full(num_ops, NONE)
  for op in p.order:
    if missing[op] == 0:
      place_in_ready[op] = len(ready)
      ready.append(op)
      for k in range(num_devices):
        _enter(p, s, arriving, op, k)

  for _ in range(num_ops):
    while True:
      start, r, k = _NEVER, np.int64(NONE), -1
      for d in range(num_devices):
        if use_favorites and last_op[d] != NONE:
          awake = _awaits(p, s, last_op[d], d)
        else:
          awake = False
        if awake:
          child = p.favorite_child[last_op[d]]
          at, op_rank, short = _earliest_on_awake(
            p, s, releases, ready, child, d
          )
        else:
          at, op_rank = _earliest_on(
            p, s, releases, arriving, waiting, blocked, d
          )
          short = len(blocked[d]) > 0
        # Ops that do not fit are looked at again when memory is next freed.
        if short and len(releases[d]) > 0 and releases[d][0][0] <= at:
          at, op_rank = releases[d][0][0], np.int64(NONE)
        if at < start or (at == start and op_rank < r):
          start, r, k = at, op_rank, d
      if start == _NEVER:
        for op in ready:
          if s.device[op] == NONE:
            culprit, needs, left = _infeasible(p, s, op)
            return s.device, culprit, needs, left
      if r != NONE:
        break
      s.device_free[k] = max(s.device_free[k], start)
      while len(releases[k]) > 0 and releases[k][0][0] <= start:
        s.live[k] -= heapq.heappop(releases[k])[1]
      for r in blocked[k]:
        heapq.heappush(waiting[k], r)
      blocked[k].clear()

    op = p.order[r]
    new_group = s.group_device[p.group[op]] == NONE
    _place(p, s, releases, op, k, start)
    last_op[k] = op
    # Out of the ready list, in constant time.
    hole = place_in_ready[op]
    moved = ready.pop()
    if moved != op:
      ready[hole] = moved
      place_in_ready[moved] = hole
    if new_group:
      # Its other ops need less now that the group has its place.
      first = p.group_offsets[p.group[op]]
      last = p.group_offsets[p.group[op] + 1]
      for i in range(first, last):
        member = p.group_members[i]
        if place_in_ready[member] != NONE:
          _enter(p, s, arriving, member, k)
    for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
      tensor = p.input_tensor[i]
      if s.device[p.tensor_op[tensor]] != k and s.arrived[tensor, k] < _NEVER:
        # It is here now: others that want it may start earlier.
        first, last = p.consumer_offsets[tensor], p.consumer_offsets[tensor + 1]
        for edge in range(first, last):
          if place_in_ready[p.edge_op[edge]] != NONE:
            _enter(p, s, arriving, p.edge_op[edge], k)
    first = p.consumer_offsets[p.tensor_offsets[op]]
    last = p.consumer_offsets[p.tensor_offsets[op + 1]]
    for edge in range(first, last):
      consumer = p.edge_op[edge]
      missing[consumer] -= 1
      if missing[consumer] == 0:
        _sort_inputs(p, s, consumer)
        place_in_ready[consumer] = len(ready)
        ready.append(consumer)
        for d in range(num_devices):
          _enter(p, s, arriving, consumer, d)
  return s.device, np.int64(NONE), np.int64(0), p.memory
