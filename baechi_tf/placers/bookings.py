"""What placing an op books: its processor's time, its channels, its memory.

What a transfer takes of a processor (`transfer.transfer_work`) is booked when
the transfer is, at the end of all that its processor has to do so far: an op
that needs transfers starts no earlier than its processor has received them, and
a sender's next op starts as much later as sending takes. What was placed before
keeps its times, where the simulator delays the op that runs then.
"""

import heapq

from baechi_tf.compiled import compiled_inner
from baechi_tf.compiled import inlined
from baechi_tf.placers.list_state import NEVER
from baechi_tf.placers.list_state import NONE
from baechi_tf.transfer import RECEIVE
from baechi_tf.transfer import SEND
from baechi_tf.transfer import transfer_start
from baechi_tf.transfer import transfer_work
from baechi_tf.transfer import wall_end

_transfer_work = inlined(transfer_work)


@inlined
def transfer_end(p, s, tensor, k, receive_free):
  """When a tensor would be on `k`, were its transfer the next to be booked.

  `receive_free` is from when the channel into `k` is free.
  """
  op = p.tensor_op[tensor]
  home = s.device[op]
  begin = transfer_start(
    p.links.channel, s.send_free[home], receive_free, s.finish[op]
  )
  return wall_end(begin, p.links, home, k, p.tensor_bytes[tensor])


@inlined
def inputs_there(p, s, op, k):
  """When the last input of a ready op would be on `k`.

  The transfers are tried in the order in which placing the op would book them.
  All go through the channel into `k`, one after another: what they do to the
  senders' channels can delay none of them further.
  """
  latest = 0.0
  receive_free = s.receive_free[k]
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    end = s.arrived[tensor, k]
    if s.device[source] == k:
      end = s.finish[source]
    elif end == NEVER:
      end = transfer_end(p, s, tensor, k, receive_free)
      receive_free = end
    latest = max(latest, end)
  return latest


@inlined
def start_after(p, s, op, k, there):
  """When an op whose inputs are there at `there` could start on `k`.

  Transfers of inputs that parents on other devices have yet to send take time
  of the processor before: receiving, and sending where it is the sender's too.
  Parents that are not placed say nothing yet.
  """
  free = s.processor_free[k]
  if p.takes_work:
    for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
      tensor = p.input_tensor[i]
      home = s.device[p.tensor_op[tensor]]
      if home != NONE and home != k and s.arrived[tensor, k] == NEVER:
        size = p.tensor_bytes[tensor]
        free += _transfer_work(p.links, RECEIVE, home, k, size)
        if p.processor[home] == p.processor[k]:
          free += _transfer_work(p.links, SEND, home, k, size)
  return max(s.device_free[k], free, there)


@inlined
def may_run(p, s, op, k):
  """Whether the op is not placed, and its group not on another device."""
  where = s.group_device[p.group[op]]
  return s.device[op] == NONE and (where == NONE or where == k)


@inlined
def received_bytes(p, s, op, k):
  """Bytes of inputs that `k` would have to receive, and hold, for the op."""
  total = 0
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    home = s.device[p.tensor_op[tensor]]
    if home != k and s.arrived[tensor, k] == NEVER:
      total += p.tensor_bytes[tensor]
  return total


@inlined
def _needs(p, s, op, k):
  """Bytes that placing the op on `k` would take there at its start."""
  working = p.working_bytes[op] + received_bytes(p, s, op, k)
  group = p.group[op]
  if s.group_device[group] != NONE:
    return working
  # The first op of a group brings all of it.
  return p.group_persistent[group] + max(working, p.group_working[group])


@inlined
def fits(p, s, q, op, k, now):
  """Whether `k` can hold the op from `now` on, after what is freed by then."""
  excess = s.reserved[k] + s.live[k] + _needs(p, s, op, k) - p.memory[k]
  return excess <= 0 or excess <= _freed_by(q, k, now)


@compiled_inner
def _freed_by(q, k, now):
  """Bytes that `k` need not hold from `now` on.

  Only counted: another op may yet start there before they are freed.
  """
  freed = 0
  for at, size in q.releases[k]:
    if at <= now:
      freed += size
  return freed


@compiled_inner
def sort_inputs(p, s, op):
  """Puts a ready op's inputs in the order in which they became ready.

  They start in topological order, which ties keep and which is nearly it.
  """
  first, last = p.input_offsets[op], p.input_offsets[op + 1]
  for i in range(first + 1, last):
    tensor = p.input_tensor[i]
    finish = s.finish[p.tensor_op[tensor]]
    while i > first and s.finish[p.tensor_op[p.input_tensor[i - 1]]] > finish:
      p.input_tensor[i] = p.input_tensor[i - 1]
      i -= 1
    p.input_tensor[i] = tensor


@compiled_inner
def place_op(p, s, q, op, k, begin):
  """Places the op: books its transfers, its time and its memory.

  Returns the tensors that are sent to `k` for its sake.
  """
  sent = [0 for _ in range(0)]
  group = p.group[op]
  if s.group_device[group] == NONE:
    s.group_device[group] = k
    s.reserved[k] += p.group_persistent[group]
  end = begin + p.times[op, k]
  s.device[op] = k
  s.next_unplaced[p.family_position[op]] += 1
  s.finish[op] = end
  s.live[k] += p.working_bytes[op]
  heapq.heappush(q.releases[k], (end, p.temporary_bytes[op]))
  for i in range(p.input_offsets[op], p.input_offsets[op + 1]):
    tensor = p.input_tensor[i]
    source = p.tensor_op[tensor]
    home = s.device[source]
    if home != k and s.arrived[tensor, k] == NEVER:
      arrival = transfer_end(p, s, tensor, k, s.receive_free[k])
      s.arrived[tensor, k] = arrival
      s.send_free[home] = arrival
      s.receive_free[k] = arrival
      s.live[k] += p.tensor_bytes[tensor]
      if p.takes_work:
        _book_sending(p, s, tensor, home, k)
      sent.append(tensor)
      s.log_source[s.log_length[0]] = home
      s.log_target[s.log_length[0]] = k
      s.log_length[0] += 1
    s.last_use[tensor, k] = max(s.last_use[tensor, k], end)
    s.unplaced_consumers[tensor] -= 1
    if s.unplaced_consumers[tensor] == 0:
      _release(p, s, q, tensor, home)
  for tensor in range(p.tensor_offsets[op], p.tensor_offsets[op + 1]):
    if s.unplaced_consumers[tensor] == 0:
      heapq.heappush(q.releases[k], (end, p.tensor_held_bytes[tensor]))
  for other in range(len(p.processor)):
    if p.processor[other] == p.processor[k]:
      s.processor_free[other] = end
      s.device_free[other] = max(s.device_free[other], end)
  return sent


@compiled_inner
def _book_sending(p, s, tensor, home, k):
  """Adds what sending a tensor to `k` takes to the sender's processor."""
  work = _transfer_work(p.links, SEND, home, k, p.tensor_bytes[tensor])
  for other in range(len(p.processor)):
    if p.processor[other] == p.processor[home]:
      s.processor_free[other] += work
      s.device_free[other] = max(s.device_free[other], s.processor_free[other])


@compiled_inner
def _release(p, s, q, tensor, home):
  """Notes when a tensor is freed, now that all its consumers are placed."""
  last = 0.0
  for k in range(len(p.memory)):
    last = max(last, s.last_use[tensor, k])
    if s.arrived[tensor, k] < NEVER:
      heapq.heappush(
        q.releases[k], (s.last_use[tensor, k], p.tensor_bytes[tensor])
      )
  heapq.heappush(q.releases[home], (last, p.tensor_held_bytes[tensor]))


@compiled_inner
def free_memory(s, q, k, now):
  """Frees what `k` need not hold from `now` on; blocked ops try again."""
  s.device_free[k] = max(s.device_free[k], now)
  while len(q.releases[k]) > 0 and q.releases[k][0][0] <= now:
    s.live[k] -= heapq.heappop(q.releases[k])[1]
  for queue in range(k, len(q.blocked), len(s.live)):
    for r in q.blocked[queue]:
      heapq.heappush(q.waiting[queue], r)
    q.blocked[queue].clear()
