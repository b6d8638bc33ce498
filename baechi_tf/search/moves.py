"""Moves of the search: which ops go where.

A move takes whole groups, so that a placement that keeps groups together stays
one that does. It takes a cluster of the hierarchy, the part of one that is on
one device, or a connected region of one device; it begins at any op or at one
of the critical chain; and it goes to any device or to that of a neighbour. A
swap sends a cluster of that device back.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled_inner
from baechi_tf.search.evaluation import place
from baechi_tf.search.hierarchy import Hierarchy
from baechi_tf.search.instance import Instance

# How likely each kind is, summed up.
_ANY_CLUSTER, _CRITICAL_CLUSTER, _REGION, _PART = 0.30, 0.45, 0.80, 0.90
_PIECE = 0.3  # how likely a cluster is a piece of the line
# How likely a move begins on the device that lacks most memory, if one does.
_OVERFULL = 0.5
_LEAP = 0.8  # how likely a region takes a neighbour
_MOST_CONSUMERS = 16  # of a tensor, that a region looks at


class Room(NamedTuple):
  """Room for one move at a time; n ops."""

  ops: np.ndarray  # int32 [n], those that were moved
  homes: np.ndarray  # int32 [n], and where they were
  queue: np.ndarray  # int32 [n], ops that stand for their groups
  seen: np.ndarray  # int64 [groups], the last move that saw each group
  chain: np.ndarray  # int32 [n], ops of the critical chain
  random: np.ndarray  # uint64 [1], a generator's state
  count: np.ndarray  # int64 [2], moves so far; ops in `chain`


def make_room(x: Instance, hierarchy: Hierarchy, seed: int) -> Room:
  """Returns room for moves; equal seeds give equal moves."""
  num_ops = len(x.step.durations)
  start = np.random.default_rng(seed).integers(1, 2**63, 1, np.uint64)
  return Room(
    ops=np.zeros(num_ops, np.int32),
    homes=np.zeros(num_ops, np.int32),
    queue=np.zeros(num_ops, np.int32),
    seen=np.zeros(int(hierarchy.cluster[0].max()) + 1, np.int64),
    chain=np.zeros(num_ops, np.int32),
    random=start,
    count=np.zeros(2, np.int64),
  )


@compiled_inner
def uniform(state):
  """A random number in [0, 1) (xorshift64; Marsaglia, 2003)."""
  x = state[0]
  x ^= x << np.uint64(13)
  x ^= x >> np.uint64(7)
  x ^= x << np.uint64(17)
  state[0] = x
  return np.float64(x >> np.uint64(11)) / 9007199254740992.0


@compiled_inner
def below(state, n):
  """A random whole number in [0, n)."""
  return np.int64(uniform(state) * n)


@compiled_inner
def move(x, s, h, room):
  """Moves some ops at random; returns how many."""
  random, ops, homes = room.random, room.ops, room.homes
  num_ops, num_devices = x.step.durations.shape
  room.count[0] += 1
  kind = uniform(random)
  # A level is half as likely as the one below.
  level = 0
  while level + 1 < h.num_joined and uniform(random) < 0.5:
    level += 1
  num_pieces = len(h.cluster) - h.num_joined
  if num_pieces > 0 and uniform(random) < _PIECE:
    level = h.num_joined + below(random, num_pieces)
  guided = kind < _CRITICAL_CLUSTER
  if kind < _ANY_CLUSTER:
    guided = False
  elif kind >= _CRITICAL_CLUSTER:
    guided = uniform(random) < 0.5
  if guided and room.count[1] > 0:
    seed = room.chain[below(random, room.count[1])]
  else:
    seed = below(random, num_ops)
  if x.limited and uniform(random) < _OVERFULL:
    seed = _on_fullest(x, s, random, seed)
  home = s.schedule.device[seed]
  if _CRITICAL_CLUSTER <= kind < _REGION:
    taken = _region(x, s, h, room, seed)
  else:
    taken = _cluster(h, s, level, seed, ops, _REGION <= kind < _PART)
  target = below(random, num_devices)
  if uniform(random) < 0.5:
    target = _device_of_neighbour(x, s, random, ops[below(random, taken)])
  moved = 0
  for i in range(taken):
    op = ops[i]
    if s.schedule.device[op] != target and not x.fixed[op]:
      ops[moved] = op
      homes[moved] = s.schedule.device[op]
      moved += 1
  if kind >= _PART and target != home and moved > 0:
    other = below(random, num_ops)
    for _ in range(20):
      if s.schedule.device[other] == target:
        break
      other = below(random, num_ops)
    cluster = h.cluster[level, other]
    if cluster != h.cluster[level, seed] and s.schedule.device[other] == target:
      forth = moved
      for i in range(h.offsets[cluster], h.offsets[cluster + 1]):
        if s.schedule.device[h.ops[i]] == target and not x.fixed[h.ops[i]]:
          ops[moved] = h.ops[i]
          homes[moved] = target
          moved += 1
      for i in range(forth, moved):
        place(x, s, ops[i], home)
      for i in range(forth):
        place(x, s, ops[i], target)
      return moved
  for i in range(moved):
    place(x, s, ops[i], target)
  return moved


@compiled_inner
def _on_fullest(x, s, random, seed):
  """An op of the device that lacks most memory; the seed if none does."""
  fullest, most = -1, 0
  for k in range(len(x.memory)):
    if s.peak[k] - x.memory[k] > most:
      fullest, most = k, s.peak[k] - x.memory[k]
  for _ in range(20 if fullest >= 0 else 0):
    op = below(random, len(x.fixed))
    if s.schedule.device[op] == fullest:
      return op
  return seed


@compiled_inner
def reorder(x, s, room):
  """Puts an op elsewhere in the order, near or far.

  Returns the op and where it was.
  """
  random, schedule = room.random, s.schedule
  num_ops = len(schedule.order)
  op = below(random, num_ops)
  if room.count[1] > 0 and uniform(random) < 0.5:
    op = np.int64(room.chain[below(random, room.count[1])])
  at = np.int64(schedule.position[op])
  far = np.int64(num_ops ** uniform(random))
  to = at - far if uniform(random) < 0.5 else at + far
  shift(x, s, op, min(max(to, 0), num_ops - 1))
  return op, at


@compiled_inner
def shift(x, s, op, to):
  """Puts an op to a position of the order; those between move up."""
  schedule = s.schedule
  order, position, sources = schedule.order, schedule.position, schedule.sources
  i = np.int64(position[op])
  step = 1 if to > i else -1
  while i != to:
    order[i] = order[i + step]
    position[order[i]] = i
    i += step
  order[to] = op
  position[op] = to
  if x.step.num_inputs[op] == 0:
    count = 0
    for i in range(len(order)):
      if x.step.num_inputs[order[i]] == 0:
        sources[count] = order[i]
        count += 1


@compiled_inner
def undo(x, s, room, moved):
  """Takes the last move back."""
  for i in range(moved - 1, -1, -1):
    place(x, s, room.ops[i], room.homes[i])


@compiled_inner
def _cluster(h, s, level, seed, ops, on_one_device):
  """Lists the ops of a cluster, perhaps only those beside the seed."""
  cluster = h.cluster[level, seed]
  taken = 0
  for i in range(h.offsets[cluster], h.offsets[cluster + 1]):
    op = h.ops[i]
    if not on_one_device or s.schedule.device[op] == s.schedule.device[seed]:
      ops[taken] = op
      taken += 1
  return taken


@compiled_inner
def _region(x, s, h, room, seed):
  """Lists a connected region of groups on the seed's device, 2 to 256 ops."""
  random, queue, seen, group = room.random, room.queue, room.seen, h.cluster[0]
  home = s.schedule.device[seed]
  most = 2.0 ** (1 + 7 * uniform(random))
  tick = room.count[0]
  head, tail, taken = 0, 1, 0
  queue[0] = seed
  seen[group[seed]] = tick
  while head < tail and taken < most:
    g = group[queue[head]]
    head += 1
    for i in range(h.offsets[g], h.offsets[g + 1]):
      op = h.ops[i]
      room.ops[taken] = op
      taken += 1
      for j in range(x.input_offsets[op], x.input_offsets[op + 1]):
        near = x.step.tensor_op[x.inputs[j]]
        if s.schedule.device[near] == home and seen[group[near]] != tick:
          if uniform(random) < _LEAP:
            seen[group[near]] = tick
            queue[tail] = near
            tail += 1
      for t in range(x.step.tensor_offsets[op], x.step.tensor_offsets[op + 1]):
        first, end = x.step.consumer_offsets[t], x.step.consumer_offsets[t + 1]
        for j in range(first, min(end, first + _MOST_CONSUMERS)):
          near = x.step.consumers[j]
          if s.schedule.device[near] == home and seen[group[near]] != tick:
            if uniform(random) < _LEAP:
              seen[group[near]] = tick
              queue[tail] = near
              tail += 1
  return taken


@compiled_inner
def _device_of_neighbour(x, s, random, op):
  """The device of a random producer or consumer of an op."""
  num_inputs = x.input_offsets[op + 1] - x.input_offsets[op]
  first = x.step.consumer_offsets[x.step.tensor_offsets[op]]
  num_outputs = x.step.consumer_offsets[x.step.tensor_offsets[op + 1]] - first
  if num_inputs + num_outputs == 0:
    return below(random, len(x.memory))
  i = below(random, num_inputs + num_outputs)
  if i < num_inputs:
    return np.int64(
      s.schedule.device[x.step.tensor_op[x.inputs[x.input_offsets[op] + i]]]
    )
  return np.int64(s.schedule.device[x.step.consumers[first + i - num_inputs]])
