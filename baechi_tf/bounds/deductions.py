"""What follows from a trial makespan T, and whether it contradicts itself.

Each op has a window: its head before, its tail after. From what does not fit
in the windows follows what all schedules of T have in common (a destructive
bound; Klein and Scholl, EJOR 1999):

- Head. An op starts after its predecessors' heads and times. Those on its
  device ran there one after another; each other pays at least its transfer.
  Only prefixes of the predecessors, the latest arrival first, need to be tried
  as those that share the device: whoever leaves number k away pays for k, and
  whoever does not has the first k beside it. Ops that are known to share a
  device come together; of those that are known to be apart, one stays away.
  Tails are heads of the mirrored step.
- Together. A transfer that makes a path longer than T does not happen: both ops
  share a device. So do the ops of a group.
- Device. A set of ops that share a device has more work in some interval than
  the interval is long, or more memory than the device: its persistent bytes and
  the most that one of its ops holds at once. Then it is not there. Ops do not
  overlap even where transfers delay them, and take no less than their times.
- Apart. Two sets that have no device in common, or fit on none together.
- Order. Of two ops on one device, one cannot come first: then the other does.
- Energy. Wherever an op's window lets it run, a part of it is in an interval;
  the parts fill no more than the processors (Baptiste et al., Constraints
  1999).

If a window is too short, a set has no device, or more sets are pairwise apart
than there are devices, no schedule takes T or less.
"""

import numpy as np

from baechi_tf.compiled import compiled_inner

_SLACK = 1e-9  # of an interval: sums are rounded
_MOST_PASSES = 20


@compiled_inner
def join(cluster, allowed, apart, a, b):
  """Puts two clusters on one device; whether they can be."""
  if a == b:
    return True
  a, b = min(a, b), max(a, b)
  allowed[a] &= allowed[b]
  if apart[a, b] or allowed[a] == 0:
    return False
  for i in range(len(cluster)):
    if cluster[i] == b:
      cluster[i] = a
    if apart[b, i]:
      apart[a, i] = apart[i, a] = True
  return True


@compiled_inner
def contradicts(x, cluster, allowed, apart, above, head, tail, span):
  """Draws all conclusions; returns whether they contradict each other."""
  n = len(cluster)
  time = np.empty(n)
  forward = np.arange(n)
  backward = forward[::-1].copy()
  for _ in range(_MOST_PASSES):
    for v in range(n):
      time[v], least = np.inf, np.inf
      for k in range(len(x.dispatch)):
        if allowed[cluster[v]] >> k & 1:
          time[v] = min(time[v], x.times[v, k])
          least = min(least, x.dispatch[k])
      head[v], tail[v] = max(head[v], least), max(tail[v], least)
    known = (cluster, allowed, apart, time)
    _raise_heads(
      known, forward, above, head, x.into_offsets, x.into, x.source, x.cost
    )
    _raise_heads(
      known, backward, above.T, tail, x.out_offsets, x.out, x.target, x.cost
    )
    for v in range(n):
      if head[v] + time[v] + tail[v] > span:
        return True
    changed = False
    for i in range(len(x.source)):
      u, v = x.source[i], x.target[i]
      a, b = cluster[u], cluster[v]
      path = head[u] + time[u] + x.cost[i] + time[v] + tail[v]
      if a != b and not apart[a, b] and path > span:
        if not join(cluster, allowed, apart, a, b):
          return True
        changed = True
    if _order(cluster, above, head, tail, time, span):
      changed = True
    if changed:
      continue
    by_head = np.argsort(-head)
    for a in range(n):
      if cluster[a] == a:
        fits = _fitting(x, cluster, allowed[a], a, a, head, tail, by_head, span)
        if fits == 0:
          return True
        if fits != allowed[a]:
          allowed[a] = fits
          changed = True
    if changed:
      continue
    for a in range(n):
      if cluster[a] != a:
        continue
      for b in range(a + 1, n):
        if cluster[b] == b and not apart[a, b]:
          both = allowed[a] & allowed[b]
          if _fitting(x, cluster, both, a, b, head, tail, by_head, span) == 0:
            apart[a, b] = apart[b, a] = True
            changed = True
    if _too_many_apart(cluster, apart, len(x.dispatch)):
      return True
    if not changed:
      return _overfull(x, head, tail, time, span)
  return False


@compiled_inner
def _raise_heads(known, order, above, head, offsets, pairs, other, cost):
  """Raises each op's head to what its predecessors allow.

  `above[u, v]`: u is one of them, perhaps of no pair. For tails, all mirrored.
  """
  cluster, allowed, apart, time = known
  n = len(order)
  beside = np.empty(n, np.int64)  # by head
  unit = np.empty(n, np.int64)
  arrival = np.empty(n)
  for v in order:
    home = cluster[v]
    num_beside = 0
    for u in range(n):
      if cluster[u] == home and above[u, v]:
        num_beside = _insert(beside, num_beside, head, u)
    base = head[v]
    num_units = 0
    for i in range(offsets[v], offsets[v + 1]):
      u = other[pairs[i]]
      a = cluster[u]
      end = head[u] + time[u]
      base = max(base, end)
      if a == home:
        continue
      end += cost[pairs[i]]
      if apart[a, home]:
        base = max(base, end)
        continue
      j = 0
      while j < num_units and unit[j] != a:
        j += 1
      if j == num_units:
        num_units += 1
        unit[j] = a
        arrival[j] = end
      arrival[j] = max(arrival[j], end)
      while j > 0 and arrival[j - 1] < arrival[j]:
        unit[j - 1], unit[j] = unit[j], unit[j - 1]
        arrival[j - 1], arrival[j] = arrival[j], arrival[j - 1]
        j -= 1
    best = np.inf
    for k in range(num_units + 1):
      together = 0.0
      for i in range(num_beside):
        u = beside[i]
        together = max(together, head[u]) + time[u]
      away = arrival[k] if k < num_units else 0.0
      best = min(best, max(together, away))
      if together >= away:
        break
      a = unit[k]
      alone = False
      for j in range(k):
        alone |= apart[a, unit[j]] or allowed[a] & allowed[unit[j]] == 0
      if alone:
        break
      for u in range(n):
        if cluster[u] == a and above[u, v]:
          num_beside = _insert(beside, num_beside, head, u)
    head[v] = max(base, best)


@compiled_inner
def _insert(ops, count, head, op):
  """Adds an op to ops sorted by head; returns how many there are."""
  i = count
  while i > 0 and head[ops[i - 1]] > head[op]:
    ops[i] = ops[i - 1]
    i -= 1
  ops[i] = op
  return count + 1


@compiled_inner
def _order(cluster, above, head, tail, time, span):
  """Orders ops of one device; returns whether that says anything new."""
  n = len(cluster)
  changed = False
  for u in range(n):
    for v in range(n):
      if u == v or cluster[u] != cluster[v] or above[u, v] or above[v, u]:
        continue
      if head[v] + time[v] + time[u] + tail[u] > span:
        above[u, v] = changed = True
  return changed


@compiled_inner
def _fitting(x, cluster, allowed, a, b, head, tail, by_head, span):
  """Returns the devices, of the allowed, that can take two clusters.

  No instant needs more memory than a device has, and no interval, from some
  head to some tail, has more work than it is long.
  """
  n = len(cluster)
  members = np.empty(n, np.int64)
  count = 0
  bytes_held = most = 0
  for v in by_head:
    if cluster[v] == a or cluster[v] == b:
      members[count] = v
      count += 1
      bytes_held += x.persistent[v]
      most = max(most, x.working[v])
  bytes_held += most
  fits = 0
  known = 0
  good = 0
  for k in range(len(x.dispatch)):
    if not allowed >> k & 1:
      continue
    like = x.like[k]
    if not known >> like & 1:
      known |= 1 << like
      fine = bytes_held <= x.memory[k]
      end = 0
      while fine and end < count:
        # The interval up to the end of this member's window.
        last = max(tail[members[end]], x.dispatch[k])
        work = 0.0
        for i in range(count):
          v = members[i]
          if max(tail[v], x.dispatch[k]) >= last:
            work += x.times[v, k]
            first = max(head[v], x.dispatch[k])
            if first + work + last > span:
              fine = False
        end += 1
      if fine:
        good |= 1 << like
    if good >> like & 1:
      fits |= 1 << k
  return fits


@compiled_inner
def _too_many_apart(cluster, apart, num_devices):
  """Whether more clusters than devices are found that are pairwise apart."""
  n = len(cluster)
  chosen = np.empty(n, np.int64)
  for a in range(n):
    if cluster[a] != a:
      continue
    chosen[0] = a
    count = 1
    for b in range(n):
      if cluster[b] != b or b == a:
        continue
      i = 0
      while i < count and apart[chosen[i], b]:
        i += 1
      if i == count:
        chosen[count] = b
        count += 1
    if count > num_devices:
      return True
  return False


@compiled_inner
def _overfull(x, head, tail, time, span):
  """Whether an interval must hold more work than the processors can do."""
  n = len(head)
  for i in range(n):
    first = head[i]
    for j in range(n):
      last = span - tail[j]
      length = last - first
      if length <= 0:
        continue
      work = 0.0
      for v in range(n):
        late = span - tail[v] - time[v]
        inside = min(head[v] + time[v] - first, last - late)
        work += max(0.0, min(inside, time[v], length))
      if work > x.processors * length * (1 + _SLACK):
        return True
  return False
