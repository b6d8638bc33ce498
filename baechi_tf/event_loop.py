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

import heapq
from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import LinkCosts
from baechi_tf.transfer import receive_begin
from baechi_tf.transfer import transfer_start
from baechi_tf.transfer import wall_end

POLICIES = ("priority", "executor", "strict")
PRIORITY, EXECUTOR, STRICT = range(len(POLICIES))
_NONE = -1
_receive_begin = inlined(receive_begin)


@compiled
def find_transfers(num_devices, device, tensor_op, consumer_offsets, edge_op):
  """Returns the transfers of a placement, by tensor and then receiving device.

  Of each transfer its tensor and its receiver; for each edge the transfer that
  serves it (-1: the tensor is there already).
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


class Step(NamedTuple):
  """A placed step as arrays: n ops, m tensors, c transfers, D devices."""

  device: np.ndarray  # [n]
  durations: np.ndarray  # [n]
  topological: np.ndarray  # [n] ops
  rank: np.ndarray  # [n] where each op is in `topological`
  order: np.ndarray  # [n] ops, the given order
  tensor_offsets: np.ndarray  # [n + 1], an op's tensors
  tensor_bytes: np.ndarray  # [m]
  consumer_offsets: np.ndarray  # [m + 1], a tensor's consumers
  edge_op: np.ndarray
  transfer_tensor: np.ndarray  # [c]
  transfer_source: np.ndarray  # [c] devices
  transfer_target: np.ndarray  # [c] devices
  send_work_us: np.ndarray  # [c]
  receive_work_us: np.ndarray  # [c]
  first_transfer: np.ndarray  # [m + 1], a tensor's transfers
  processor: np.ndarray  # [D]
  dispatch_us: np.ndarray  # [D]
  links: LinkCosts
  policy: int


class _Run(NamedTuple):
  """The state of a step in progress, on P processors."""

  start: np.ndarray  # [n]
  finish: np.ndarray  # [n]
  sent: np.ndarray  # [c]
  arrived: np.ndarray  # [c]
  started: np.ndarray  # [n] ops in the order in which they started
  missing: np.ndarray  # [n], what each op still waits for
  position: np.ndarray  # [n], where each op is in the given order
  turn: np.ndarray  # [n], the same among the ops of its processor
  turns_begun: np.ndarray  # [P]
  send_free: np.ndarray  # [D], when a channel is free
  receive_free: np.ndarray  # [D]
  running: np.ndarray  # [P], the op that runs, or _NONE
  taken_until: np.ndarray  # [P], until when transfers keep it from starting
  has_wake_up: np.ndarray  # [P], whether an event says so
  # Per processor, a heap of its ready ops by position; for `executor`, by the
  # round in which they became ready and then position, negative for those that
  # an op of the processor made ready.
  ready: list
  # A heap of (when, what); by number, an op (its topological rank) ends, a
  # transfer arrives, takes its sending work or its receiving work, a device may
  # begin, a processor may go on.
  events: list


@compiled
def run_step(x):
  """Runs a `Step`.

  Returns start and finish of every op, start and finish of every transfer, and
  the ops in the order in which they started: fewer than n if no processor of a
  strict order can go on.
  """
  run = _new_run(x)
  # Names of their own: each access to a field counts a reference to its array.
  device, order, rank, topological = x.device, x.order, x.rank, x.topological
  durations, processor, edge_op = x.durations, x.processor, x.edge_op
  tensor_offsets, consumer_offsets = x.tensor_offsets, x.consumer_offsets
  tensor_bytes, first_transfer = x.tensor_bytes, x.first_transfer
  transfer_tensor, transfer_target = x.transfer_tensor, x.transfer_target
  send_work, receive_work = x.send_work_us, x.receive_work_us
  links, policy = x.links, x.policy
  start, finish, sent, arrived = run.start, run.finish, run.sent, run.arrived
  running, taken_until, turn = run.running, run.taken_until, run.turn
  turns_begun, started, missing = run.turns_begun, run.started, run.missing
  send_free, receive_free = run.send_free, run.receive_free
  position, ready, events = run.position, run.ready, run.events
  num_ops, num_transfers = len(device), len(transfer_tensor)
  sends, receives = num_ops + num_transfers, num_ops + 2 * num_transfers
  num_started, now, round_base = 0, 0.0, 0
  while True:
    for p in range(len(running)):
      if running[p] != _NONE or taken_until[p] > now or len(ready[p]) == 0:
        continue
      op = order[abs(ready[p][0]) % num_ops]
      if policy == STRICT and turn[op] != turns_begun[p]:
        continue
      heapq.heappop(ready[p])
      running[p] = op
      turns_begun[p] += 1
      started[num_started] = op
      num_started += 1
      start[op] = now
      finish[op] = now + durations[op]
      heapq.heappush(events, (finish[op], rank[op]))
    if len(events) == 0:
      break
    if policy == EXECUTOR:
      round_base += num_ops
    now = events[0][0]
    # All that happens now happens before anything starts.
    while len(events) > 0 and events[0][0] == now:
      event = heapq.heappop(events)[1]
      if event < num_ops:
        op = topological[event]
        if finish[op] > now:  # transfers have taken some of its time
          heapq.heappush(events, (finish[op], event))
          continue
        here = device[op]
        running[processor[here]] = _NONE
        first, last = tensor_offsets[op], tensor_offsets[op + 1]
        for tensor in range(first, last):
          for t in range(first_transfer[tensor], first_transfer[tensor + 1]):
            target = transfer_target[t]
            begin = transfer_start(
              links.channel, send_free[here], receive_free[target], now
            )
            end = wall_end(begin, links, here, target, tensor_bytes[tensor])
            send_free[here] = end
            receive_free[target] = end
            sent[t], arrived[t] = begin, end
            heapq.heappush(events, (end, num_ops + t))
            if send_work[t] > 0:
              heapq.heappush(events, (begin, sends + t))
            if receive_work[t] > 0:
              at = _receive_begin(begin, end, receive_work[t])
              heapq.heappush(events, (at, receives + t))
      elif event < sends:
        here = transfer_target[event - num_ops]
        first = transfer_tensor[event - num_ops]
        last = first + 1
      else:
        _happen(x, run, now, round_base, event)
        continue
      for edge in range(consumer_offsets[first], consumer_offsets[last]):
        op = edge_op[edge]
        if device[op] == here:
          missing[op] -= 1
          if missing[op] == 0:
            key = round_base + position[op]
            if policy == EXECUTOR and event < num_ops:
              key = -key
            heapq.heappush(ready[processor[here]], key)
  return start, finish, sent, arrived, started[:num_started]


@compiled_inner
def _new_run(x):
  """The state before the first op starts."""
  num_ops, num_transfers = len(x.device), len(x.transfer_tensor)
  num_devices, num_processors = len(x.processor), x.processor.max() + 1
  position = np.empty(num_ops, np.int64)
  turn = np.empty(num_ops, np.int64)
  count = np.zeros(num_processors, np.int64)
  for i, op in enumerate(x.order):
    p = x.processor[x.device[op]]
    position[op] = i
    turn[op] = count[p]
    count[p] += 1
  missing = np.ones(num_ops, np.int64)  # each op waits for the step to begin
  for op in x.edge_op:
    missing[op] += 1
  send_free = np.zeros(num_devices)
  half = x.links.channel == HALF_DUPLEX
  none = range(0)  # gives an empty list its type
  run = _Run(
    np.zeros(num_ops),
    np.zeros(num_ops),
    np.zeros(num_transfers),
    np.zeros(num_transfers),
    np.empty(num_ops, np.int64),
    missing,
    position,
    turn,
    np.zeros(num_processors, np.int64),
    send_free,
    send_free if half else np.zeros(num_devices),
    np.full(num_processors, _NONE),
    np.zeros(num_processors),
    np.zeros(num_processors, np.bool_),
    [[np.int64(0) for _ in none] for _ in range(num_processors)],
    [(0.0, np.int64(0)) for _ in none],
  )
  for op in x.topological:
    if x.dispatch_us[x.device[op]] == 0:
      _arrive(x, run, 0, op)
  dispatches = num_ops + 3 * num_transfers
  for k in range(num_devices):
    if x.dispatch_us[k] > 0:
      heapq.heappush(run.events, (x.dispatch_us[k], dispatches + k))
  return run


@compiled_inner
def _arrive(x, run, round_base, op):
  """Notes that an op waits for one thing less; perhaps it is ready."""
  run.missing[op] -= 1
  if run.missing[op] == 0:
    p = x.processor[x.device[op]]
    heapq.heappush(run.ready[p], round_base + run.position[op])


@compiled_inner
def _happen(x, run, now, round_base, event):
  """An event that is neither the end of an op nor an arrival."""
  num_transfers = len(x.transfer_tensor)
  sends = len(x.device) + num_transfers
  receives = sends + num_transfers
  dispatches = receives + num_transfers
  wake_ups = dispatches + len(x.processor)
  if event < receives:
    t = event - sends
    p = x.processor[x.transfer_source[t]]
    _take(run, now, p, x.send_work_us[t], wake_ups)
  elif event < dispatches:
    t = event - receives
    p = x.processor[x.transfer_target[t]]
    _take(run, now, p, x.receive_work_us[t], wake_ups)
  elif event < wake_ups:
    for op in x.topological:
      if x.device[op] == event - dispatches:
        _arrive(x, run, round_base, op)
  else:
    p = event - wake_ups
    run.has_wake_up[p] = run.taken_until[p] > now  # more has been taken
    if run.has_wake_up[p]:
      heapq.heappush(run.events, (run.taken_until[p], event))


@compiled_inner
def _take(run, now, p, work, wake_ups):
  """Takes a transfer's work of a processor: of its op, or before its next."""
  if run.running[p] != _NONE:
    run.finish[run.running[p]] += work  # its event is brought up to date later
    return
  run.taken_until[p] = max(now, run.taken_until[p]) + work
  if not run.has_wake_up[p]:
    run.has_wake_up[p] = True
    heapq.heappush(run.events, (run.taken_until[p], wake_ups + p))
