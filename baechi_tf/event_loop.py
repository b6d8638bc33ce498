"""The event loop: when each op of a placed step runs, and each transfer.

The rules that every prediction follows (after Jeon et al., *Baechi*, SoCC 2020;
the work of transfers, dispatch and shared processors are ours):

Ops
- A processor, which one or more devices share, runs one op at a time. An op is
  ready once its inputs are on its device, and no earlier than the device's
  `dispatch_us`.
- A processor that is free starts one of its ready ops. Policy `priority`: the
  first of them in the given order. `executor` is TensorFlow's choice with
  one thread: the newest of the ops that an op of the processor has made ready
  (ties: the last in the given order); without any, the oldest of those that a
  tensor's arrival or the step's beginning has made ready (ties: the first).
  `strict`: the next in the given order and no other; it waits for that one. The
  given order is by default topological, `OpGraph.order`.

Transfers
- A tensor goes once to each other device that consumes it. Tensors leave in the
  order in which they become ready (ties: topological order, then device), each
  as soon as the sender's outgoing and the receiver's incoming channel are both
  free, and take `latency + bytes / bandwidth` of wall time.
- At its beginning, a transfer takes its sending work `s` of the sender's
  processor: the op that runs there ends `s` later; if none runs, the processor
  starts nothing for `s`, added to what already keeps it from starting.
- At `max(begin, end - r)` it takes its receiving work `r` of the receiver's
  processor in the same way.

Instants
- All that happens at an instant happens before anything starts: first ops end
  (in topological order, each booking its transfers), then tensors arrive, then
  sending and then receiving work is taken (both in the order of tensors, then
  devices). Then processors start ops, by their numbers. An op of no duration
  ends at the same instant, and so on.

The same order of starts, given to `strict`, gives the same times to the bit.
"""

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.heap import pop
from baechi_tf.heap import pop_event
from baechi_tf.heap import push
from baechi_tf.heap import push_event
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import PARALLEL
from baechi_tf.transfer import RECEIVE
from baechi_tf.transfer import receive_begin
from baechi_tf.transfer import SEND
from baechi_tf.transfer import transfer_start
from baechi_tf.transfer import transfer_work
from baechi_tf.transfer import wall_end

POLICIES = ("priority", "executor", "strict")
PRIORITY, EXECUTOR, STRICT = range(len(POLICIES))
STUCK = -1.0  # the makespan of a strict order that cannot be followed
ABORTED = np.inf
NUM_STARTED, NUM_TRANSFERS, NUM_EVENTS = range(3)  # entries of `Schedule.count`
_NONE = -1
_NO_KEY = np.iinfo(np.int64).max
# Sums that bound a cost from below are rounded: never stop for less.
_SLACK = 1 + 1e-9
_receive_begin = inlined(receive_begin)
_transfer_work = inlined(transfer_work)


@compiled
def run_step(x, s, policy, transfer_price, limit):
  """Runs a step; returns its makespan and the total time of its transfers.

  Args:
    x: the `Step`.
    s: the `Schedule`; what happens is left in it.
    policy: an index into `POLICIES`.
    transfer_price: what a microsecond of transfers adds to the cost.
    limit: the makespan is `ABORTED` as soon as the cost must be above it. It is
      `STUCK` if a strict order cannot be followed.
  """
  # Names of their own: each access to a field counts a reference to its array.
  device, duration, position, tail = s.device, s.duration, s.position, x.tail
  order, turn, queue, missing = s.order, s.turn, s.queue, s.missing
  start, finish, cause, count = s.start, s.finish, s.cause, s.count
  started, ended, ready, next_us = s.started, s.ended, s.ready, s.next_us
  ends, after, following = s.end, s.after, s.following
  tensors, targets, begins, first = s.tensor, s.target, s.begin, s.first
  tensor_bytes = x.tensor_bytes
  event_us, event, rank, processor = s.event_us, s.event, x.rank, x.processor
  tensor_offsets, dispatch, links = x.tensor_offsets, x.dispatch_us, x.links
  consumer_offsets, consumers = x.consumer_offsets, x.consumers
  num_ops, num_devices = x.durations.shape
  num_processors, num_edges = len(s.load), len(consumers)
  send_free = np.zeros(num_devices)
  half = links.channel == HALF_DUPLEX
  receive_free = send_free if half else np.zeros(num_devices)
  sent_last = np.full(num_devices, _NONE)
  received_last = sent_last if half else np.full(num_devices, _NONE)
  front, back = np.full((2, num_devices), _NONE)
  wanted = np.zeros(num_devices, np.int64)
  running, last = np.full((2, num_processors), _NONE)
  num_ready, turns_begun = np.zeros((2, num_processors), np.int64)
  queued, queue_end = np.zeros((2, num_processors), np.int64)
  has_wake_up = np.zeros(num_processors, np.bool_)
  taken_until = np.zeros(num_processors)
  remaining = s.load.copy()
  _begin(x, s, policy, queued, queue_end)
  num_events = count[NUM_EVENTS]
  stride = 1
  while stride < num_ops:
    stride *= 2
  makespan, transfer_us, now, limit = 0.0, 0.0, 0.0, limit * _SLACK
  round_base, num_started, num_ended, num_sent = 0, 0, 0, 0
  while True:
    for p in range(num_processors):
      if running[p] != _NONE or taken_until[p] > now:
        continue
      base = p * num_ops
      key = ready[base] if num_ready[p] > 0 else _NO_KEY
      source = queued[p] < queue_end[p]
      if source:
        op = queue[queued[p]]
        source = position[op] <= key
      if not source:
        if key == _NO_KEY:
          continue
        op = order[abs(key) & (stride - 1)]
      if policy == STRICT and turn[op] != turns_begun[p]:
        continue
      if source:
        queued[p] += 1
      else:
        pop(ready, base, num_ready[p])
        num_ready[p] -= 1
      end = now + duration[op]
      if start[op] < now:  # it was ready before the processor was free
        cause[op] = last[p]
      least = max(now + remaining[p], end + tail[op])
      if least + transfer_price * transfer_us > limit:
        return ABORTED, transfer_us
      last[p] = op
      running[p] = op
      next_us[p] = end
      turns_begun[p] += 1
      started[num_started] = op
      num_started += 1
      start[op] = now
      finish[op] = end
      remaining[p] -= duration[op]
    now = np.inf
    for i in range(len(next_us)):
      if next_us[i] < now:
        now = next_us[i]
    if num_events > 0 and event_us[0] < now:
      now = event_us[0]
    if now == np.inf:
      break
    if policy == EXECUTOR:
      round_base += stride
    while True:  # ops end
      p = _NONE
      for i in range(num_processors):
        if next_us[i] == now:
          if p == _NONE or rank[running[i]] < rank[running[p]]:
            p = i
      if p == _NONE:
        break
      op = running[p]
      here = device[op]
      running[p] = _NONE
      next_us[p] = np.inf
      ended[num_ended] = op
      num_ended += 1
      makespan = max(makespan, now + dispatch[here])
      for tensor in range(tensor_offsets[op], tensor_offsets[op + 1]):
        away = 0
        for e in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
          user = consumers[e]
          k = device[user]
          if k != here:
            away += 1
            wanted[k] += 1
            continue
          missing[user] -= 1
          if missing[user] == 0:
            start[user] = now  # when it became ready, until it starts
            cause[user] = op
            key = round_base + position[user]
            if policy == EXECUTOR:
              key = -key
            push(ready, p * num_ops, num_ready[p], key)
            num_ready[p] += 1
        for k in range(num_devices):
          if away == 0:
            break
          if wanted[k] == 0:
            continue
          away -= wanted[k]
          wanted[k] = 0
          size = tensor_bytes[tensor]
          begin = transfer_start(
            links.channel, send_free[here], receive_free[k], now
          )
          end = wall_end(begin, links, here, k, size)
          i = num_sent
          num_sent += 1
          after[i] = op
          if begin > now:
            busier = send_free[here] >= receive_free[k]
            after[i] = sent_last[here] if busier else received_last[k]
          sent_last[here] = op
          received_last[k] = op
          send_free[here] = end
          receive_free[k] = end
          transfer_us += end - begin
          tensors[i] = tensor
          targets[i] = k
          begins[i] = begin
          ends[i] = end
          following[i] = _NONE
          if back[k] == _NONE:
            first[k] = i
          else:
            following[back[k]] = i
          back[k] = i
          if links.channel != PARALLEL:
            if front[k] == _NONE:
              front[k] = i
              next_us[num_processors + k] = end
          else:
            push_event(event_us, event, num_events, end, i)
            num_events += 1
          if x.works:
            count[NUM_EVENTS] = num_events
            _book_work(x, s, i, here)
            num_events = count[NUM_EVENTS]
    while True:  # tensors arrive, then all else happens
      i = _NONE
      for k in range(num_devices):
        if next_us[num_processors + k] == now:
          i = front[k]
          front[k] = following[i]
          next_us[num_processors + k] = np.inf
          if front[k] != _NONE:
            next_us[num_processors + k] = ends[front[k]]
          break
      if i == _NONE:
        if num_events == 0 or event_us[0] > now:
          break
        i = event[0]
        pop_event(event_us, event, num_events)
        num_events -= 1
        if i >= num_edges:
          count[NUM_EVENTS] = num_events
          taken = (running, taken_until, has_wake_up, num_ready)
          _happen(x, s, i, now, round_base, taken)
          num_events = count[NUM_EVENTS]
          continue
      tensor, here = tensors[i], targets[i]
      p = processor[here]
      for e in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
        user = consumers[e]
        if device[user] == here:
          missing[user] -= 1
          if missing[user] == 0:
            start[user] = now
            cause[user] = after[i]
            key = round_base + position[user]
            push(ready, p * num_ops, num_ready[p], key)
            num_ready[p] += 1
  count[NUM_STARTED] = num_started
  count[NUM_TRANSFERS] = num_sent
  return makespan if num_started == num_ops else STUCK, transfer_us


@compiled_inner
def _begin(x, s, policy, queued, queue_end):
  """Sets what each op waits for, before the step."""
  device, processor, dispatch = s.device, x.processor, x.dispatch_us
  missing, sources, queue, start, cause = (
    s.missing,
    s.sources,
    s.queue,
    s.start,
    s.cause,
  )
  num_processors = len(queue_end)
  s.missing[:] = x.num_inputs
  s.next_us[:] = np.inf
  s.first[:] = _NONE
  late = False
  num_events = 0
  for k in range(len(dispatch)):
    if dispatch[k] > 0:
      late = True
      code = _first_dispatch(x) + k
      push_event(s.event_us, s.event, num_events, dispatch[k], code)
      num_events += 1
  s.count[NUM_EVENTS] = num_events
  if late:
    for op in range(len(missing)):
      missing[op] += dispatch[device[op]] > 0
  for i in range(len(sources)):
    k = device[sources[i]]
    if dispatch[k] == 0:
      queue_end[processor[k]] += 1
  for p in range(1, num_processors):
    queue_end[p] += queue_end[p - 1]
    queued[p] = queue_end[p - 1]
  queue_end[:] = queued
  for i in range(len(sources)):
    op = sources[i]
    k = device[op]
    if dispatch[k] == 0:
      p = processor[k]
      queue[queue_end[p]] = op
      queue_end[p] += 1
      start[op] = 0.0
      cause[op] = _NONE
  if policy == STRICT:
    turns = np.zeros(num_processors, np.int64)
    turn, order = s.turn, s.order
    for i in range(len(order)):
      op = order[i]
      p = processor[device[op]]
      turn[op] = turns[p]
      turns[p] += 1


@inlined
def _first_dispatch(x):
  """The number of the first event by which a device begins."""
  return len(x.consumers) + 2 * len(x.tensor_op) * len(x.dispatch_us)


@compiled_inner
def _book_work(x, s, i, source):
  """Books what a transfer takes of the processors at its ends."""
  links, events = x.links, s.count[NUM_EVENTS]
  tensor, target, begin = s.tensor[i], s.target[i], s.begin[i]
  span = len(x.tensor_op) * len(x.dispatch_us)
  size = x.tensor_bytes[tensor]
  code = len(x.consumers) + x.tensor_id[tensor] * len(x.dispatch_us) + target
  if _transfer_work(links, SEND, source, target, size) > 0:
    push_event(s.event_us, s.event, events, begin, code)
    events += 1
  work = _transfer_work(links, RECEIVE, source, target, size)
  if work > 0:
    at = _receive_begin(begin, s.end[i], work)
    push_event(s.event_us, s.event, events, at, code + span)
    events += 1
  s.count[NUM_EVENTS] = events


@compiled_inner
def _happen(x, s, code, now, round_base, processors):
  """An event that is neither the end of an op nor an arrival."""
  running, taken_until, has_wake_up, num_ready = processors
  dispatches = _first_dispatch(x)
  num_ops, num_devices = x.durations.shape
  wake_ups = dispatches + num_devices
  events = s.count[NUM_EVENTS]
  if code < dispatches:
    end_of, key = divmod(
      code - len(x.consumers), len(x.tensor_op) * num_devices
    )
    target = key % num_devices
    tensor = x.tensor_of_id[key // num_devices]
    source = s.device[x.tensor_op[tensor]]
    p = x.processor[target if end_of == RECEIVE else source]
    work = _transfer_work(
      x.links, end_of, source, target, x.tensor_bytes[tensor]
    )
    if running[p] != _NONE:
      s.finish[running[p]] += work
      s.next_us[p] = s.finish[running[p]]
      return
    taken_until[p] = max(now, taken_until[p]) + work
    if not has_wake_up[p]:
      has_wake_up[p] = True
      push_event(s.event_us, s.event, events, taken_until[p], wake_ups + p)
      s.count[NUM_EVENTS] = events + 1
  elif code < wake_ups:
    k = code - dispatches
    p = x.processor[k]
    for op in range(num_ops):
      if s.device[op] == k:
        s.missing[op] -= 1
        if s.missing[op] == 0:
          s.start[op] = now
          s.cause[op] = _NONE
          push(s.ready, p * num_ops, num_ready[p], round_base + s.position[op])
          num_ready[p] += 1
  else:
    p = code - wake_ups
    has_wake_up[p] = taken_until[p] > now  # more has been taken
    if has_wake_up[p]:
      push_event(s.event_us, s.event, events, taken_until[p], code)
      s.count[NUM_EVENTS] = events + 1
