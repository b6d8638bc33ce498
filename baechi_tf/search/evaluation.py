"""Evaluates a placement: the event loop's times and the memory, without a plan.

Follows `event_loop` rule by rule, and agrees with `simulate` to the bit. It
differs in three ways, for speed: transfers are found as they begin, from counts
of a tensor's consumers on each device, so that a move changes only what it
touches; memory is added up as things happen; and it stops as soon as the cost
must be above a limit.
"""

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.event_loop import EXECUTOR
from baechi_tf.event_loop import STRICT
from baechi_tf.search.heap import pop
from baechi_tf.search.heap import pop_event
from baechi_tf.search.heap import push
from baechi_tf.search.heap import push_event
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import RECEIVE
from baechi_tf.transfer import receive_begin
from baechi_tf.transfer import SEND
from baechi_tf.transfer import transfer_start
from baechi_tf.transfer import transfer_work
from baechi_tf.transfer import wall_end

STUCK = -1.0  # the makespan of a strict order that cannot be followed
ABORTED = np.inf
_NONE = -1
# Sums that bound a cost from below are rounded: never stop for less.
_SLACK = 1 + 1e-9
_receive_begin = inlined(receive_begin)
_transfer_work = inlined(transfer_work)


@compiled_inner
def place(x, s, op, device):
  """Moves an op to a device."""
  before = s.device[op]
  num_devices = x.durations.shape[1]
  for i in range(x.input_offsets[op], x.input_offsets[op + 1]):
    tensor = x.inputs[i] * num_devices
    s.users[tensor + before] -= 1
    s.users[tensor + device] += 1
  s.device[op] = device


@compiled
def evaluate(x, s, policy, transfer_price, memory_price, limit):
  """Returns makespan, total transfer time, overflow in bytes, of a placement.

  Args:
    x: the `Instance`.
    s: the `State`; what happens is left in it, unless the cost is above
      `limit`.
    policy: an index into `event_loop.POLICIES`.
    transfer_price: what a microsecond of transfers adds to the cost.
    memory_price: what a byte of overflow adds to the cost.
    limit: the makespan is `ABORTED` if the cost, the makespan and these two, is
      above it. `STUCK` if a strict order cannot be followed.
  """
  # Names of their own: each access to a field counts a reference to its array.
  device, users, order, position = s.device, s.users, s.order, s.position
  durations, tail, dispatch = x.durations, x.tail, x.dispatch_us
  processor, links, works = x.processor, x.links, x.works
  tensor_offsets, tensor_bytes = x.tensor_offsets, x.tensor_bytes
  consumer_offsets, consumers = x.consumer_offsets, x.consumers
  tensor_id, tensor_of_id, tensor_op = x.tensor_id, x.tensor_of_id, x.tensor_op
  start, finish, cause, missing = s.start, s.finish, s.cause, s.missing
  ready, times, codes = s.ready, s.event_us, s.event
  sent_after, turn, limited = s.sent_after, s.turn, x.limited
  num_ops, num_devices = durations.shape
  num_processors = len(ready)
  span = len(tensor_op) * num_devices
  sends, receives = num_ops + span, num_ops + 2 * span
  dispatches = num_ops + 3 * span
  wake_ups = dispatches + num_devices
  takes = wake_ups + num_processors
  send_free = np.zeros(num_devices)
  half = links.channel == HALF_DUPLEX
  receive_free = send_free if half else np.zeros(num_devices)
  sent_last = np.full(num_devices, _NONE)
  received_last = sent_last if half else np.full(num_devices, _NONE)
  running = np.full(num_processors, _NONE)
  last = np.full(num_processors, _NONE)
  taken_until = np.zeros(num_processors)
  has_wake_up = np.zeros(num_processors, np.bool_)
  num_ready = np.zeros(num_processors, np.int64)
  remaining = np.zeros(num_processors)
  turns_begun = np.zeros(num_processors, np.int64)
  level = np.zeros(num_devices, np.int64)
  freed_late = np.zeros(num_devices, np.int64)
  overflow = _begin(x, s, policy, num_ready, remaining, level)
  num_events = 0
  for k in range(num_devices):
    if dispatch[k] > 0:
      push_event(times, codes, num_events, dispatch[k], dispatches + k)
      num_events += 1
  makespan, transfer_us, now = 0.0, 0.0, 0.0
  round_base, num_started = 0, 0
  limit *= _SLACK
  while True:
    for p in range(num_processors):
      if running[p] != _NONE or taken_until[p] > now or num_ready[p] == 0:
        continue
      op = order[abs(ready[p, 0]) % num_ops]
      if policy == STRICT and turn[op] != turns_begun[p]:
        continue
      pop(ready[p], num_ready[p])
      num_ready[p] -= 1
      k = device[op]
      duration = durations[op, k]
      if start[op] < now:  # it was ready before the processor was free
        cause[op] = last[p]
      last[p] = op
      running[p] = op
      turns_begun[p] += 1
      num_started += 1
      start[op] = now
      end = now + duration
      finish[op] = end
      least = max(now + remaining[p], end + tail[op])
      if least + transfer_price * transfer_us + memory_price * overflow > limit:
        return ABORTED, transfer_us, overflow
      remaining[p] -= duration
      push_event(times, codes, num_events, end, np.int64(op))
      num_events += 1
      if limited:
        level[k] += _working(x, op)
    if limited and (num_events == 0 or times[0] > now):
      overflow = _raise_peaks(x, s, level, freed_late, overflow)
    if num_events == 0:
      break
    if policy == EXECUTOR:
      round_base += num_ops
    now = times[0]
    while num_events > 0 and times[0] == now:
      code = codes[0]
      pop_event(times, codes, num_events)
      num_events -= 1
      if code < num_ops:
        op = code
        if finish[op] > now:  # transfers have taken some of its time
          push_event(times, codes, num_events, finish[op], op)
          num_events += 1
          continue
        here = device[op]
        running[processor[here]] = _NONE
        makespan = max(makespan, now + dispatch[here])
        if limited:
          _free(x, s, op, now, level, freed_late)
        first, end_tensor = tensor_offsets[op], tensor_offsets[op + 1]
        for tensor in range(first, end_tensor):
          for k in range(num_devices):
            i = tensor * num_devices + k
            if k == here or users[i] == 0:
              continue
            size = tensor_bytes[tensor]
            begin = transfer_start(
              links.channel, send_free[here], receive_free[k], now
            )
            end = wall_end(begin, links, here, k, size)
            sent_after[i] = op
            if begin > now:
              busier = send_free[here] >= receive_free[k]
              sent_after[i] = sent_last[here] if busier else received_last[k]
            sent_last[here] = op
            received_last[k] = op
            send_free[here] = end
            receive_free[k] = end
            transfer_us += end - begin
            key = tensor_id[tensor] * num_devices + k
            push_event(times, codes, num_events, end, num_ops + key)
            num_events += 1
            if limited:
              s.sent_us[i] = begin
              if begin == now:
                level[k] += size
              else:
                push_event(times, codes, num_events, begin, takes + key)
                num_events += 1
            if not works:
              continue
            if _transfer_work(links, SEND, here, k, size) > 0:
              push_event(times, codes, num_events, begin, sends + key)
              num_events += 1
            work = _transfer_work(links, RECEIVE, here, k, size)
            if work > 0:
              at = _receive_begin(begin, end, work)
              push_event(times, codes, num_events, at, receives + key)
              num_events += 1
        reason = op
      elif code < sends:
        i = code - num_ops
        here = i % num_devices
        first = tensor_of_id[i // num_devices]
        end_tensor = first + 1
        reason = sent_after[first * num_devices + here]
      elif code < dispatches:
        end_of, key = divmod(code - sends, span)
        k = key % num_devices
        tensor = tensor_of_id[key // num_devices]
        here = device[tensor_op[tensor]]
        size = tensor_bytes[tensor]
        work = _transfer_work(links, end_of, here, k, size)
        p = processor[k if end_of else here]
        if running[p] != _NONE:
          finish[running[p]] += work
          continue
        taken_until[p] = max(now, taken_until[p]) + work
        if not has_wake_up[p]:
          has_wake_up[p] = True
          push_event(times, codes, num_events, taken_until[p], wake_ups + p)
          num_events += 1
        continue
      elif code < wake_ups:
        k = code - dispatches
        p = processor[k]
        num_ready[p] = _dispatch(s, k, ready[p], num_ready[p], now, round_base)
        continue
      elif code < takes:
        p = code - wake_ups
        has_wake_up[p] = taken_until[p] > now  # more has been taken
        if has_wake_up[p]:
          push_event(times, codes, num_events, taken_until[p], code)
          num_events += 1
        continue
      else:
        tensor = tensor_of_id[(code - takes) // num_devices]
        level[(code - takes) % num_devices] += tensor_bytes[tensor]
        continue
      p = processor[here]
      for e in range(consumer_offsets[first], consumer_offsets[end_tensor]):
        op = consumers[e]
        if device[op] == here:
          missing[op] -= 1
          if missing[op] == 0:
            start[op] = now  # when it became ready, until it starts
            cause[op] = reason
            key = round_base + position[op]
            if policy == EXECUTOR and code < num_ops:
              key = -key
            push(ready[p], num_ready[p], key)
            num_ready[p] += 1
  if num_started < num_ops:
    return STUCK, transfer_us, overflow
  return makespan, transfer_us, overflow


@compiled_inner
def _begin(x, s, policy, num_ready, remaining, level):
  """Sets what each op waits for, and what memory is held, before the step.

  Returns what the memory that is held for ever exceeds the devices' by.
  """
  num_ops, num_devices = x.durations.shape
  device, processor, dispatch = s.device, x.processor, x.dispatch_us
  missing, inputs, position = s.missing, x.input_offsets, s.position
  durations, ready = x.durations, s.ready
  for op in range(num_ops):
    k = device[op]
    p = processor[k]
    remaining[p] += durations[op, k]
    missing[op] = inputs[op + 1] - inputs[op]
    if dispatch[k] > 0:
      missing[op] += 1
    elif missing[op] == 0:
      s.start[op] = 0.0
      s.cause[op] = _NONE
      push(ready[p], num_ready[p], position[op])
      num_ready[p] += 1
  if policy == STRICT:
    count = np.zeros(len(ready), np.int64)
    for op in s.order:
      p = processor[device[op]]
      s.turn[op] = count[p]
      count[p] += 1
  if x.limited:
    for op in range(num_ops):
      level[device[op]] += x.persistent[op]
    s.peak[:] = level
    offsets = x.consumer_offsets
    for tensor in range(len(s.left)):
      s.left[tensor] = offsets[tensor + 1] - offsets[tensor] + 1
    s.left_there[:] = s.users
  overflow = 0
  for k in range(num_devices):
    overflow += max(level[k] - x.memory[k], 0)
  return overflow


@compiled_inner
def _dispatch(s, k, ready, num_ready, now, round_base):
  """Begins the step on a device: its ops wait for one thing less.

  Returns how many ops of the heap of its processor, `ready`, are ready then.
  """
  for op in range(len(s.device)):
    if s.device[op] == k:
      s.missing[op] -= 1
      if s.missing[op] == 0:
        s.start[op] = now
        s.cause[op] = _NONE
        push(ready, num_ready, round_base + s.position[op])
        num_ready += 1
  return num_ready


@compiled_inner
def _working(x, op):
  """The bytes that an op takes on its device as it starts."""
  total = x.temporary[op]
  for tensor in range(x.tensor_offsets[op], x.tensor_offsets[op + 1]):
    total += x.tensor_held[tensor]
  return total


@compiled_inner
def _free(x, s, op, now, level, freed_late):
  """Frees what nothing needs after an op that ends now.

  What began at this very instant is freed after all that begins at it.
  """
  num_devices = len(level)
  here = s.device[op]
  freed = freed_late if s.start[op] == now else level
  sign = 1 if s.start[op] == now else -1
  freed[here] += sign * x.temporary[op]
  for tensor in range(x.tensor_offsets[op], x.tensor_offsets[op + 1]):
    s.left[tensor] -= 1
    if s.left[tensor] == 0:
      freed[here] += sign * x.tensor_held[tensor]
  for i in range(x.input_offsets[op], x.input_offsets[op + 1]):
    tensor = x.inputs[i]
    source = x.tensor_op[tensor]
    home = s.device[source]
    s.left[tensor] -= 1
    if s.left[tensor] == 0:
      if s.start[source] == now:
        freed_late[home] += x.tensor_held[tensor]
      else:
        level[home] -= x.tensor_held[tensor]
    if home != here:
      copy = tensor * num_devices + here
      s.left_there[copy] -= 1
      if s.left_there[copy] == 0:
        if s.sent_us[copy] == now:
          freed_late[here] += x.tensor_bytes[tensor]
        else:
          level[here] -= x.tensor_bytes[tensor]


@compiled_inner
def _raise_peaks(x, s, level, freed_late, overflow):
  """Notes the memory at an instant that is over; returns the overflow so far.

  The overflow is the sum of what the devices' peaks exceed their memory by.
  """
  for k in range(len(level)):
    if level[k] > s.peak[k]:
      within = max(s.peak[k], x.memory[k])
      s.peak[k] = level[k]
      overflow += max(level[k] - within, 0)
    level[k] -= freed_late[k]
    freed_late[k] = 0
  return overflow
