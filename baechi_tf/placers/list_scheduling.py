"""Earliest-task-first list scheduling with memory: m-ETF's and m-SCT's loop.

Repeatedly takes, among all pairs of a ready op and a device that may hold it,
the one that can start first (Hwang et al., SIAM J. Comput. 1989), with the
memory checks of Baechi (Jeon et al., SoCC 2020) and, when favourite children
are given, the awake devices of Hanen and Munier's SCT. Ties go to the earlier
op in topological order, then to the lower device.

What makes it fast: a pair's start is `max(device free, inputs there)`, and both
only grow as ops are placed. (Where transfers take processor time, what the op's
own would take comes on top; it can shrink, but by no more than the device is
free later.) Each device keeps the ops whose inputs would be
there by the time it is free in one heap (by rank) and the rest in another (by
arrival); a key that has gone stale is a lower bound, and is brought up to date
only when it reaches the top. One arrival can become earlier, that of an op
whose input has just been sent for another's sake: it is entered again. Ops with
the same inputs arrive together, so one of them stands in the heaps for all
(`families`): else one tensor with n consumers, sent to D devices one after
another, would make n keys stale on D devices D times.
"""

import heapq

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import Placement
from baechi_tf.placers.awake import ask_anew
from baechi_tf.placers.awake import awaits
from baechi_tf.placers.awake import inputs_anywhere
from baechi_tf.placers.bookings import fits
from baechi_tf.placers.bookings import free_memory
from baechi_tf.placers.bookings import inputs_there
from baechi_tf.placers.bookings import may_run
from baechi_tf.placers.bookings import place_op
from baechi_tf.placers.bookings import received_bytes
from baechi_tf.placers.bookings import sort_inputs
from baechi_tf.placers.bookings import start_after
from baechi_tf.placers.families import sibling
from baechi_tf.placers.list_state import NEVER
from baechi_tf.placers.list_state import new_problem
from baechi_tf.placers.list_state import new_queues
from baechi_tf.placers.list_state import new_state
from baechi_tf.placers.list_state import NONE
from baechi_tf.placers.list_state import OPEN
from baechi_tf.placers.list_state import PINNED
from baechi_tf.placers.list_state import URGENT
from baechi_tf.shortage import group_memory
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import op_fits_nowhere
from baechi_tf.shortage import Shortage
from baechi_tf.watched import DONE
from baechi_tf.watched import Progress
from baechi_tf.watched import run_watched
from baechi_tf.watched import STOP


def schedule(
  graph: OpGraph,
  cluster: Cluster,
  favorite_child: np.ndarray | None = None,
  progress: Progress | None = None,
) -> Placement:
  """Returns the placement of the earliest-task-first schedule.

  An op that fits on no device for now waits for memory that ops already placed
  will free; only when none will be freed is there no placement.

  Args:
    graph: the ops to place; groups are hard constraints.
    cluster: the devices, whose memory is a limit.
    favorite_child: int64 `[n]`, the successor that should follow an op on its
      device, or `NONE`. None for plain m-ETF.
    progress: called now and then with (ops placed, ops in all).

  Raises:
    InfeasiblePlacementError: an op fits on no device; the message names it,
      what it needs and what each device has left.
    ValueError: the graph has no times for a device's type.
  """
  problem = new_problem(graph, cluster, favorite_child)
  state = new_state(problem)
  if graph.num_ops and not run_watched(
    _schedule, problem, state, total=graph.num_ops, progress=progress
  ):
    raise InfeasiblePlacementError(_why_not(graph, cluster, problem, state))
  return Placement(graph.names, cluster.device_names, state.device)


def _why_not(graph, cluster, p, s) -> str:
  """Returns what each device lacks for the first ready op, or why it is out."""
  ready = np.flatnonzero(s.is_ready)
  op = int(ready[np.argmin(p.rank[ready])])
  where = s.group_device[p.group[op]]
  left = p.memory - s.reserved - s.live
  shortages = []
  for k in range(cluster.num_devices):
    if where not in (NONE, k):
      pinned = p.group_pin[p.group[op]] != NONE
      reason = "it is pinned to" if pinned else "its group is on"
      reason += f" {cluster.device_names[where]}"
      shortages.append(Shortage(k, excluded=reason))
      continue
    needed = _needed_by_kind(graph, p, s, op, k)
    shortages.append(Shortage(k, needed, int(left[k])))
  return op_fits_nowhere(graph, cluster, op, shortages)


def _needed_by_kind(graph, p, s, op, k) -> dict[str, int]:
  """Returns what the memory check adds up for an op on `k`, by kind."""
  received = received_bytes(p, s, op, k)
  group = p.group[op]
  is_first = s.group_device[group] == NONE
  if is_first and p.working_bytes[op] + received < p.group_working[group]:
    return group_memory(graph, group)
  return memory_by_kind(
    p.group_persistent[group] if is_first else 0,
    graph.output_held_bytes[op],
    p.temporary_bytes[op],
    received,
  )


@compiled_inner
def _enter(p, s, q, op, first, last):
  """Makes a ready op, and its family, candidates of devices `first` to `last`.

  If they may run there. A family is entered by its first member that is not
  placed: the others follow it, see `_earliest_in`.
  """
  for k in range(first, last):
    if may_run(p, s, op, k):
      pinned = s.group_device[p.group[op]] == k
      queue = k + len(p.memory) * (PINNED if pinned else OPEN)
      heapq.heappush(
        q.arriving[queue], (inputs_there(p, s, op, k), 2 * p.rank[op])
      )


@compiled_inner
def _enter_urgent(p, s, q, op, first, last, urgent_at):
  """Makes them candidates of these devices for when they are awake."""
  for k in range(first, last):
    if may_run(p, s, op, k):
      queue = k + len(p.memory) * URGENT
      heapq.heappush(q.arriving[queue], (urgent_at, 2 * p.rank[op]))


@inlined
def _is_empty(q, queue):
  return len(q.arriving[queue]) == 0 and len(q.waiting[queue]) == 0


@inlined
def _known_urgent(p, s, kind, op):
  """A time before which the queues of a kind need not look at an op."""
  known = 0.0
  if kind == URGENT and s.group_device[p.group[op]] == NONE:
    known = s.urgent_at[p.family[op]]
  return known


@compiled_inner
def _earliest_in(p, s, q, kind, k):
  """The earliest start of a candidate in a queue, and its rank.

  Once a member of a family is placed or does not fit, the next one takes its
  place: it could start at the same time.
  """
  queue = kind * len(p.memory) + k
  arriving, waiting = q.arriving[queue], q.waiting[queue]
  while True:
    while len(arriving) > 0 and arriving[0][0] <= s.device_free[k]:
      entry = arriving[0][1]
      known = _known_urgent(p, s, kind, p.order[entry // 2])
      if known > s.device_free[k]:  # another device has found out
        heapq.heapreplace(arriving, (known, entry))
      else:
        heapq.heappush(waiting, heapq.heappop(arriving)[1])
    is_waiting = len(waiting) > 0
    if is_waiting:
      key, entry = s.device_free[k], waiting[0]
    elif len(arriving) > 0:
      key, entry = arriving[0]
    else:
      return NEVER, np.int64(NONE)
    op = p.order[entry // 2]
    start = NEVER  # if placed meanwhile, here or elsewhere
    if may_run(p, s, op, k):
      if kind == URGENT:
        there = inputs_anywhere(p, s, op, key)
      else:
        there = inputs_there(p, s, op, k)
      start = start_after(p, s, op, k, there)
      if start == key and fits(p, s, q, op, k, start):
        return start, entry // 2
    if is_waiting:
      heapq.heappop(waiting)
    else:
      heapq.heappop(arriving)
    if start not in (key, NEVER):  # its channel has been used meanwhile
      heapq.heappush(arriving, (start, entry))
      continue
    if start == key:
      q.blocked[queue].append(entry | 1)
    if entry % 2 == 0:
      following = sibling(p, s, op, 1)
      if following != NONE:
        entry = 2 * p.rank[following]
        if is_waiting:
          heapq.heappush(waiting, entry)
        else:
          heapq.heappush(arriving, (key, entry))


@compiled_inner
def _earliest_on(p, s, q, last_op, k):
  """What device `k` would do next: when, the op's rank, whether reluctantly.

  An awake device takes its favourite child as soon as that can start, another
  op only once that is urgent, and then reluctantly: if another device can start
  it as early, that one shall. A rank of `NONE` says that memory is freed then,
  for ops that do not fit now.
  """
  num_devices = len(p.memory)
  if len(q.releases[k]) > 0 and q.releases[k][0][0] <= s.device_free[k]:
    free_memory(s, q, k, s.device_free[k])
  start, r = NEVER, np.int64(NONE)
  if not _is_empty(q, PINNED * num_devices + k):
    start, r = _earliest_in(p, s, q, PINNED, k)
  short = len(q.blocked[PINNED * num_devices + k]) > 0
  awake = len(p.favorite_child) > 0 and awaits(p, s, last_op[k], k)
  if awake:
    child = p.favorite_child[last_op[k]]
    if s.is_ready[child]:
      at = start_after(p, s, child, k, inputs_there(p, s, child, k))
      if not fits(p, s, q, child, k, at):
        short = True
      elif at < start or (at == start and p.rank[child] < r):
        start, r = at, p.rank[child]
  kind = URGENT if awake else OPEN
  other, other_rank = _earliest_in(p, s, q, kind, k)
  short = short or len(q.blocked[kind * num_devices + k]) > 0
  reluctant = False
  if other < start or (other == start and other_rank < r):
    start, r, reluctant = other, other_rank, awake
  if short and len(q.releases[k]) > 0 and q.releases[k][0][0] <= start:
    return q.releases[k][0][0], np.int64(NONE), False
  return start, r, reluctant


@compiled_inner
def _earliest(p, s, q, last_op):
  """The next op of the whole cluster: when, its rank, and its device."""
  # Nothing starts on a device before it is free: the first to be free may
  # spare us a look at the rest.
  k = np.argmin(s.device_free)
  start, r, reluctant = _earliest_on(p, s, q, last_op, k)
  for d in range(len(last_op)):
    if d != k and s.device_free[d] <= start:
      at, rank, also = _earliest_on(p, s, q, last_op, d)
      if at < start or (at == start and (rank, also, d) < (r, reluctant, k)):
        start, r, reluctant, k = at, rank, also, d
  return start, r, k


@compiled_inner
def _enter_again(p, s, q, op, k, new_group, sent):
  """Renews candidates that may start earlier, or fit, now `op` is on `k`."""
  if new_group:  # its other ops need less now that the group has its place
    group = p.group[op]
    for i in range(p.group_offsets[group], p.group_offsets[group + 1]):
      if s.is_ready[p.group_members[i]]:
        _enter(p, s, q, p.group_members[i], k, k + 1)
  for tensor in sent:  # others may want it here too
    first = p.family_consumer_offsets[tensor]
    last = p.family_consumer_offsets[tensor + 1]
    for i in range(first, last):
      family = p.family_consumers[i]
      other = p.family_members[p.family_offsets[family]]
      other = sibling(p, s, other, 0)
      if other != NONE and s.is_ready[other]:
        _enter(p, s, q, other, k, k + 1)
        if len(p.favorite_child) > 0:
          _enter_urgent_again(p, s, q, other, k)


@compiled_inner
def _enter_urgent_again(p, s, q, op, k):
  """Renews urgent candidates now that an input has been sent to `k`.

  They can be urgent earlier only if it was because of `k` that they were not.
  """
  family = p.family[op]
  before = s.urgent_at[family]
  if s.group_device[p.group[op]] != NONE:
    _enter_urgent(p, s, q, op, k, k + 1, inputs_there(p, s, op, k))
  elif s.urgent_device[family] == k and ask_anew(p, s, op) < before:
    _enter_urgent(p, s, q, op, 0, len(p.memory), s.urgent_at[family])
  else:
    _enter_urgent(p, s, q, op, k, k + 1, before)


@compiled_inner
def _make_ready(p, s, q, op):
  """Notes that all parents of an op are placed: it is a candidate."""
  sort_inputs(p, s, op)
  s.is_ready[op] = True
  family = p.family[op]
  if op != p.family_members[p.family_offsets[family]]:
    return  # the first member stands for it
  num_devices = len(p.memory)
  _enter(p, s, q, op, 0, num_devices)
  if len(p.favorite_child) > 0:
    _enter_urgent(p, s, q, op, 0, num_devices, ask_anew(p, s, op))


@compiled
def _schedule(p, s, watch):
  """Places every op, or stops when no op that is ready fits anywhere.

  Returns whether every op has been placed; the rest is in the state. `watch` is
  that of `run_watched`.
  """
  num_ops, num_devices = p.times.shape
  q = new_queues(num_devices)
  last_op = np.full(num_devices, NONE)
  for op in p.order:
    if s.unplaced_parents[op] == 0:
      _make_ready(p, s, q, op)

  for num_placed in range(num_ops):
    watch[DONE] = num_placed
    if watch[STOP] != 0:
      return False
    start, r, k = _earliest(p, s, q, last_op)
    while r == NONE and start < NEVER:
      free_memory(s, q, k, start)
      start, r, k = _earliest(p, s, q, last_op)
    if r == NONE:
      return False
    op = p.order[r]
    new_group = s.group_device[p.group[op]] == NONE
    sent = place_op(p, s, q, op, k, start)
    s.is_ready[op] = False
    last_op[k] = op
    _enter_again(p, s, q, op, k, new_group, sent)
    first = p.consumer_offsets[p.tensor_offsets[op]]
    last = p.consumer_offsets[p.tensor_offsets[op + 1]]
    for edge in range(first, last):
      consumer = p.edge_op[edge]
      s.unplaced_parents[consumer] -= 1
      if s.unplaced_parents[consumer] == 0:
        _make_ready(p, s, q, consumer)
  return True
