"""Placements of a training step as a folded line: backward beside forward.

The longest path to an op says where it is on the line from the step's begin to
its end. Folded in the right place, which is where the tensors that the forward
pass leaves to the backward pass span least, the line has each backward op
beside the forward op whose results it needs, without a look at names. Each
device gets one stretch of it.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.search.instance import Instance

_FOLDS = np.linspace(0.2, 0.6, 17)  # where the line may be folded
# How much a stretch's memory counts against its work.
_MEMORY_SHARES = (0.0, 0.25, 0.5, 1.0)


class Folded(NamedTuple):
  """A step of n ops as a folded line."""

  line: np.ndarray  # float64 [n], where each op is, from 0 to 1 at the fold
  is_forward: np.ndarray  # bool [n]


def fold(x: Instance) -> Folded | None:
  """Returns the folded line of an instance; None if its ops take no time."""
  step = x.step
  tensor = np.repeat(
    np.arange(len(step.tensor_op)), np.diff(step.consumer_offsets)
  )
  source = step.tensor_op[tensor]
  depth = _depths(step.durations.min(axis=1), source, step.consumers)
  if depth.max(initial=0.0) == 0:
    return None
  depth /= depth.max()
  lines = [_line(x, depth, at, source) for at in _FOLDS]
  size = step.tensor_bytes[tensor]
  spans = [size @ np.abs(p[source] - p[step.consumers]) for p in lines]
  best = int(np.argmin(spans))
  return Folded(lines[best], depth < _FOLDS[best])


def folded_placements(
  x: Instance, folded: Folded, group: np.ndarray
) -> list[np.ndarray]:
  """Returns placements, int64 `[n]` each, of one stretch for each device.

  Args:
    x: the instance.
    folded: its folded line.
    group: int `[n]`, the group of each op; groups stay together.
  """
  # Results of the backward pass are not kept.
  kept = np.bincount(x.step.tensor_op, x.tensor_held, len(group))
  memory = x.persistent + kept * folded.is_forward
  _, first, member = np.unique(group, return_index=True, return_inverse=True)
  line = folded.line[first]
  return [
    _stretches(x, line, member, memory, share)[member]
    for share in _MEMORY_SHARES
  ]


def _line(x, depth, at, source) -> np.ndarray:
  """Returns where ops are on the folded line, from 0 to 1 at the fold."""
  line = np.where(depth < at, depth / at, 1 - (depth - at) / (1 - at))
  # What needs nothing, as a variable, is beside the first that needs it.
  used = x.step.num_inputs == 0
  used &= np.bincount(source, minlength=len(depth)) > 0
  line[used] = 1.0
  inner = used[source]
  np.minimum.at(line, source[inner], line[x.step.consumers[inner]])
  return line


def _stretches(x, line, member, memory, share) -> np.ndarray:
  """Returns the device of each group: the first has the line's begin."""
  sequence = np.argsort(line, kind="stable")
  mixed, room = np.zeros(len(line)), np.zeros(len(x.memory))
  for part, weight, capacity in (
    (1 - share, x.step.durations.mean(axis=1), 1 / _time(x)),
    (share, memory, x.memory),
  ):
    weight = np.bincount(member, weight)
    mixed += part * weight / max(weight.sum(), 1e-9)
    room += part * capacity / capacity.sum()
  middle = np.cumsum(mixed[sequence]) - mixed[sequence] / 2
  ends = np.cumsum(room)[:-1] * (mixed.sum() / room.sum())
  device = np.empty(len(line), np.int64)
  device[sequence] = np.searchsorted(ends, middle, side="right")
  return device


def _time(x) -> np.ndarray:
  """Returns what all ops take on each device."""
  return np.maximum(x.step.durations.sum(axis=0), 1e-9)


@compiled
def _depths(times, edge_source, edge_op):
  """The longest path of times before each op; edges sorted by their sources."""
  depth = np.zeros(len(times))
  for edge in range(len(edge_op)):
    source, op = edge_source[edge], edge_op[edge]
    depth[op] = max(depth[op], depth[source] + times[source])
  return depth
