"""A placed and ordered step as the flat arrays that compiled loops work on.

`Step` is what no placement changes. `Schedule` is a placement, an order and
what the last run of `event_loop` did. Moves change it in place.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.transfer import LinkCosts


class Step(NamedTuple):
  """A step, wherever it is placed: n ops, m tensors, e edges, D devices.

  Indices are 32 bits wide: a run is bound by the memory that it touches.
  """

  durations: np.ndarray  # float64 [n, D]
  tail: np.ndarray  # float64 [n], least time from the op's end to the step's
  rank: np.ndarray  # int32 [n], where each op is in topological order
  num_inputs: np.ndarray  # int32 [n]
  tensor_offsets: np.ndarray  # int32 [n + 1], an op's tensors
  tensor_op: np.ndarray  # int32 [m]
  tensor_bytes: np.ndarray  # int64 [m]
  tensor_id: np.ndarray  # int64 [m], the number by which ties break
  tensor_of_id: np.ndarray  # int64 [m], and back
  consumer_offsets: np.ndarray  # int32 [m + 1]
  consumers: np.ndarray  # int32 [e]
  processor: np.ndarray  # int64 [D]
  dispatch_us: np.ndarray  # float64 [D]
  links: LinkCosts
  works: bool  # whether transfers take processor time


class Schedule(NamedTuple):
  """A placement and an order, and what happens in a run; P processors.

  The first five change with the placement or the order only.
  """

  device: np.ndarray  # int32 [n]
  duration: np.ndarray  # float64 [n], on its device
  load: np.ndarray  # float64 [P], the sum of its ops' durations
  order: np.ndarray  # int32 [n], the given order
  position: np.ndarray  # int32 [n], where each op is in it
  # What the last run did.
  start: np.ndarray  # float64 [n]
  finish: np.ndarray  # float64 [n]
  cause: np.ndarray  # int32 [n], the op whose end let each op start, or -1
  started: np.ndarray  # int32 [n], ops in the order in which they started
  ended: np.ndarray  # int32 [n], and in which they ended
  # Transfers, in the order in which they were booked.
  tensor: np.ndarray  # int32 [e]
  target: np.ndarray  # int32 [e]
  begin: np.ndarray  # float64 [e]
  end: np.ndarray  # float64 [e]
  after: np.ndarray  # int32 [e], the op whose end let each begin
  following: np.ndarray  # int32 [e], the next to the same device, or -1
  first: np.ndarray  # int64 [D], the first to each device, or -1
  count: np.ndarray  # int64 [3], ops that started, transfers, events
  # While it runs.
  missing: np.ndarray  # int32 [n], what each op still waits for
  turn: np.ndarray  # int32 [n], where each is among its processor's ops
  sources: np.ndarray  # int32 [s], ops without inputs in the given order
  queue: np.ndarray  # int32 [s], those of one processor after another
  # Per processor, a heap of its ready ops by position; for `executor`, by the
  # round in which they became ready and then position, negative for those that
  # an op of the processor made ready.
  ready: np.ndarray  # int64 [P * n]
  # When the op of each processor ends; when what is on its way to each device
  # arrives there, unless it is in the heap of events.
  next_us: np.ndarray  # float64 [P + D]
  # A heap of (when, what); by number, a transfer arrives, takes its sending
  # work or its receiving work, a device may begin, a processor may go on.
  event_us: np.ndarray  # float64 [h]
  event: np.ndarray  # int64 [h]


def new_schedule(x: Step, device: np.ndarray, order: np.ndarray) -> Schedule:
  """Returns a placement that has not run yet.

  Args:
    x: the step.
    device: int `[n]`.
    order: int `[n]`, every op once.
  """
  num_ops, num_devices = x.durations.shape
  num_edges, num_processors = len(x.consumers), int(x.processor.max()) + 1
  num_events = 3 * num_edges + num_devices + num_processors + 1
  position = np.empty(num_ops, np.int32)
  position[order] = np.arange(num_ops)
  device = np.array(device, np.int32)
  duration = x.durations[np.arange(num_ops), device]
  sources = order[x.num_inputs[order] == 0]
  return Schedule(
    device=device,
    duration=duration,
    load=np.bincount(x.processor[device], duration, num_processors),
    order=np.array(order, np.int32),
    position=position,
    start=np.zeros(num_ops),
    finish=np.zeros(num_ops),
    cause=np.full(num_ops, -1, np.int32),
    started=np.zeros(num_ops, np.int32),
    ended=np.zeros(num_ops, np.int32),
    tensor=np.zeros(num_edges, np.int32),
    target=np.zeros(num_edges, np.int32),
    begin=np.zeros(num_edges),
    end=np.zeros(num_edges),
    after=np.zeros(num_edges, np.int32),
    following=np.zeros(num_edges, np.int32),
    first=np.zeros(num_devices, np.int64),
    count=np.zeros(3, np.int64),
    missing=np.zeros(num_ops, np.int32),
    turn=np.zeros(num_ops, np.int32),
    sources=sources.astype(np.int32),
    queue=np.zeros(len(sources), np.int32),
    ready=np.zeros(num_processors * num_ops, np.int64),
    next_us=np.zeros(num_processors + num_devices),
    event_us=np.zeros(num_events),
    event=np.zeros(num_events, np.int64),
  )
