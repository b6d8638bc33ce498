"""Evaluates a placement: its makespan, its transfers and what memory it lacks.

`event_loop` runs the step, and stops as soon as the cost must be above a limit;
only what gets to its end has its memory added up.
"""

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.event_loop import ABORTED
from baechi_tf.event_loop import run_step
from baechi_tf.search.memory import add_up_memory

# Sums of durations that moves change are rounded: never stop for less.
_SLACK = 1 + 1e-6


@compiled_inner
def place(x, s, op, device):
  """Moves an op to a device."""
  durations, processor = x.step.durations, x.step.processor
  schedule = s.schedule
  before = schedule.device[op]
  schedule.load[processor[before]] -= schedule.duration[op]
  schedule.duration[op] = durations[op, device]
  schedule.load[processor[device]] += schedule.duration[op]
  schedule.device[op] = device
  s.held[before] -= x.persistent[op]
  s.held[device] += x.persistent[op]


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
  lacking = 0
  for k in range(len(x.memory)):
    lacking += max(s.held[k] - x.memory[k], 0)
  least = memory_price * lacking
  for p in range(len(s.schedule.load)):
    if s.schedule.load[p] + least > limit * _SLACK:
      return ABORTED, 0.0, lacking
  makespan, transfer_us = run_step(
    x.step, s.schedule, policy, transfer_price, limit - least
  )
  if not x.limited or makespan < 0 or makespan == ABORTED:
    return makespan, transfer_us, lacking
  overflow = add_up_memory(x, s)
  cost = makespan + transfer_price * transfer_us + memory_price * overflow
  if cost > limit:
    makespan = ABORTED
  return makespan, transfer_us, overflow
