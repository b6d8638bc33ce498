"""Awake devices: those that wait for the favourite child of what they ran.

Hanen and Munier's "small communication times" (SCT), which m-SCT adds to m-ETF.
"""

from baechi_tf.compiled import compiled_inner
from baechi_tf.placers.bookings import inputs_there
from baechi_tf.placers.bookings import may_run
from baechi_tf.placers.bookings import NEVER
from baechi_tf.placers.bookings import NONE
from baechi_tf.placers.bookings import transfer_end


@compiled_inner
def inputs_anywhere(p, s, op):
  """When the inputs of a ready op could be on any device that may run it.

  From then on the op is urgent: nothing is gained by waiting for a better one.
  Whether those devices are busy does not matter; if it did, a single busy one
  would keep all awake devices idle.
  """
  latest = 0.0
  for k in range(len(p.memory)):
    if may_run(p, s, op, k):
      latest = max(latest, inputs_there(p, s, op, k))
  return latest


@compiled_inner
def awaits(p, s, op, k):
  """Whether `k` should wait for the favourite child of `op`, just run there.

  So it should while the child is not placed, may run on `k`, and can start
  there earlier than on any other device. Hanen and Munier reserve the device
  from the moment the parent ends; the original Baechi only once the child is
  ready.
  """
  child = NONE if op == NONE else p.favorite_child[op]
  if child == NONE or not may_run(p, s, child, k):
    return False
  group = p.group[child]
  if s.group_device[group] == NONE:
    if s.reserved[k] + p.group_persistent[group] > p.memory[k]:
      return False
  now = s.device_free[k]
  here = _earliest_child_start(p, s, child, k, now)
  for other in range(len(p.memory)):
    if other != k and may_run(p, s, child, other):
      if _earliest_child_start(p, s, child, other, now) <= here:
        return False
  return True


@compiled_inner
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
    elif s.arrived[tensor, k] < NEVER:
      end = s.arrived[tensor, k]
    else:
      end = transfer_end(
        p, tensor, home, k, s.finish[source], s.send_free, s.receive_free
      )
    latest = max(latest, end)
  return latest
