"""Awake devices: those that wait for the favourite child of what they ran.

Hanen and Munier's "small communication times" (SCT), which m-SCT adds to m-ETF.

Both questions asked here are about all devices, and asked for every device at
every step. So the answers are kept, with what would change them: only a look at
what has happened since is needed, as a rule at one device.
"""

import numpy as np

from baechi_tf.compiled import compiled_inner
from baechi_tf.placers.bookings import inputs_there
from baechi_tf.placers.bookings import may_run
from baechi_tf.placers.bookings import start_after
from baechi_tf.placers.bookings import transfer_end
from baechi_tf.placers.list_state import NEVER
from baechi_tf.placers.list_state import NONE
from baechi_tf.transfer import HALF_DUPLEX


@compiled_inner
def inputs_anywhere(p, s, op, by):
  """When the inputs of a ready op could be on any device that may run it.

  From then on the op is urgent: nothing is gained by waiting for a better one.
  Whether those devices are busy does not matter; if it did, a single busy one
  would keep all awake devices idle.

  If that is later than `by`, the result may be too early, but is above `by`.
  """
  where = s.group_device[p.group[op]]
  if where != NONE:
    return inputs_there(p, s, op, where)
  family = p.family[op]
  if s.urgent_at[family] > by:
    return s.urgent_at[family]
  if _ask_device(p, s, op, s.urgent_device[family]) > by:
    return s.urgent_at[family]
  num_devices = len(p.memory)
  first, last = s.urgent_log[family], s.log_length[0]
  if first == NONE or last - first > num_devices:
    return _ask_all_devices(p, s, op, by)
  for i in range(first, last):
    source, target = s.log_source[i], s.log_target[i]
    if _sends_through(p, s, op, source, target):
      return _ask_all_devices(p, s, op, by)
    _ask_device(p, s, op, target)
    if p.links.channel == HALF_DUPLEX:
      _ask_device(p, s, op, source)
  s.urgent_log[family] = last
  return s.urgent_at[family]


@compiled_inner
def _ask_all_devices(p, s, op, by):
  family = p.family[op]
  # The channel that is booked the longest is as a rule the answer: two looks,
  # not one at each device, tell that the op is not urgent by then.
  if _ask_device(p, s, op, np.argmax(s.receive_free)) > by:
    return s.urgent_at[family]
  for k in range(len(p.memory)):
    if _ask_device(p, s, op, k) > by:
      return s.urgent_at[family]
  s.urgent_log[family] = s.log_length[0]
  return s.urgent_at[family]


@compiled_inner
def _ask_device(p, s, op, k):
  """Notes it if the inputs could be on `k` only later than known so far."""
  family = p.family[op]
  there = inputs_there(p, s, op, k)
  if there > s.urgent_at[family]:
    s.urgent_at[family] = there
    s.urgent_device[family] = k
  return there


@compiled_inner
def ask_anew(p, s, op):
  """Forgets what is known of an op's family and finds out when it is urgent."""
  family = p.family[op]
  s.urgent_at[family] = 0.0
  s.urgent_log[family] = NONE
  return inputs_anywhere(p, s, op, NEVER)


@compiled_inner
def _sends_through(p, s, op, source, target):
  """Whether a transfer used a channel by which an op's inputs would leave."""
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    home = s.device[p.tensor_op[p.input_tensor[i]]]
    if home == source or (p.links.channel == HALF_DUPLEX and home == target):
      return True
  return False


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
  # Elsewhere it can start no earlier than when `k` last asked, unless a parent
  # has been placed since.
  parents = s.unplaced_parents[child]
  if s.rival_child[k] == child and s.rival_parents[k] == parents:
    if here < s.rival_start[k]:
      return True
  rival = s.rival[k]
  if rival != NONE and may_run(p, s, child, rival):
    if _earliest_child_start(p, s, child, rival, now) <= here:
      return False
  return _find_rival(p, s, child, k, now, here) == NONE


@compiled_inner
def _find_rival(p, s, child, k, now, here):
  """Another device on which the child could start by `here`, or `NONE`."""
  least = NEVER
  for other in range(len(p.memory)):
    if other != k and may_run(p, s, child, other):
      start = _earliest_child_start(p, s, child, other, now)
      if start <= here:
        s.rival[k] = other
        return other
      least = min(least, start)
  s.rival_start[k] = least
  s.rival_child[k] = child
  s.rival_parents[k] = s.unplaced_parents[child]
  return NONE


@compiled_inner
def _earliest_child_start(p, s, op, k, now):
  """When `op`, perhaps not ready, could start on `k` at the earliest.

  A parent that is not placed yet cannot have ended before `now` plus its time,
  and says nothing of where it will be.
  """
  latest = start_after(p, s, op, k, 0.0)
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
      end = transfer_end(p, s, tensor, k, s.receive_free[k])
    latest = max(latest, end)
  return latest
