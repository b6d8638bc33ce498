"""Adds up the memory of a step that has run, by the rules of `simulator`."""

import numpy as np

from baechi_tf.compiled import compiled_inner
from baechi_tf.event_loop import NUM_TRANSFERS


@compiled_inner
def add_up_memory(x, s):
  """Returns the sum of what the devices' peaks exceed their memory by.

  Goes through what began and ended in the order of time. At one instant, what
  began earlier is freed first, then what begins is taken, then what began at
  that very instant is freed.
  """
  schedule, num_devices = s.schedule, len(x.memory)
  start, finish = schedule.start, schedule.finish
  started, ended, first = schedule.started, schedule.ended, schedule.first
  begin, following = schedule.begin, schedule.following
  num_ops = len(started)
  _count_holders(x, s)
  level = s.held.copy()
  s.peak[:] = level
  freed_late = np.zeros(num_devices, np.int64)
  coming = first.copy()
  num_started, num_ended = 0, 0
  while num_ended < num_ops:
    now = finish[ended[num_ended]]
    if num_started < num_ops:
      now = min(now, start[started[num_started]])
    for k in range(num_devices):
      i = coming[k]
      while i >= 0 and begin[i] < now:
        level[k] += x.step.tensor_bytes[schedule.tensor[i]]
        i = following[i]
      coming[k] = i
      s.peak[k] = max(s.peak[k], level[k])
    while num_started < num_ops and start[started[num_started]] == now:
      _take(x, schedule, level, started[num_started])
      num_started += 1
    while num_ended < num_ops and finish[ended[num_ended]] == now:
      _free(x, s, level, freed_late, ended[num_ended], now)
      num_ended += 1
    for k in range(num_devices):
      i = coming[k]
      while i >= 0 and begin[i] == now:
        level[k] += x.step.tensor_bytes[schedule.tensor[i]]
        i = following[i]
      coming[k] = i
      s.peak[k] = max(s.peak[k], level[k])
      level[k] -= freed_late[k]
      freed_late[k] = 0
  overflow = 0
  for k in range(num_devices):
    overflow += max(s.peak[k] - x.memory[k], 0)
  return overflow


@compiled_inner
def _count_holders(x, s):
  """Counts what holds each tensor on its device, and each copy elsewhere."""
  step, schedule, num_devices = x.step, s.schedule, len(x.memory)
  offsets, consumers, device = (
    step.consumer_offsets,
    step.consumers,
    schedule.device,
  )
  for tensor in range(len(s.left)):
    s.left[tensor] = offsets[tensor + 1] - offsets[tensor] + 1
  for i in range(schedule.count[NUM_TRANSFERS]):
    tensor, target = schedule.tensor[i], schedule.target[i]
    copy = tensor * num_devices + target
    s.sent_us[copy] = schedule.begin[i]
    users = 0
    for e in range(offsets[tensor], offsets[tensor + 1]):
      users += device[consumers[e]] == target
    s.left_there[copy] = users


@compiled_inner
def _take(x, schedule, level, op):
  """Takes the memory that an op needs as it starts."""
  k = schedule.device[op]
  level[k] += x.temporary[op]
  offsets = x.step.tensor_offsets
  for tensor in range(offsets[op], offsets[op + 1]):
    level[k] += x.tensor_held[tensor]


@compiled_inner
def _free(x, s, level, freed_late, op, now):
  """Frees what nothing needs after an op that ends now.

  What began at this very instant is freed after all that begins at it.
  """
  device, start, num_devices = s.schedule.device, s.schedule.start, len(level)
  offsets, tensor_op = x.step.tensor_offsets, x.step.tensor_op
  here = device[op]
  _let_go(level, freed_late, here, x.temporary[op], start[op], now)
  for tensor in range(offsets[op], offsets[op + 1]):
    s.left[tensor] -= 1
    if s.left[tensor] == 0:
      _let_go(level, freed_late, here, x.tensor_held[tensor], start[op], now)
  for i in range(x.input_offsets[op], x.input_offsets[op + 1]):
    tensor = x.inputs[i]
    source = tensor_op[tensor]
    home = device[source]
    s.left[tensor] -= 1
    if s.left[tensor] == 0:
      _let_go(
        level, freed_late, home, x.tensor_held[tensor], start[source], now
      )
    if home != here:
      copy = tensor * num_devices + here
      s.left_there[copy] -= 1
      if s.left_there[copy] == 0:
        size = x.step.tensor_bytes[tensor]
        _let_go(level, freed_late, here, size, s.sent_us[copy], now)


@compiled_inner
def _let_go(level, freed_late, device, size, since, now):
  """Frees some bytes that were held since an instant."""
  if since == now:
    freed_late[device] += size
  else:
    level[device] -= size
