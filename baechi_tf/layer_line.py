"""A step of micro-batches as a line of layers, which stages are cut from.

The forward pass of the first micro-batch says where everything is. An op of it
is as far along the line as the longest path of times to it, and brings its
group with it: its copies in other micro-batches, and its gradients. A variable
is where it is first used, and its update is with it.
"""

import dataclasses

import numpy as np

from baechi_tf.coarsening.coplacement import is_gradient
from baechi_tf.compiled import compiled
from baechi_tf.micro_batch_graph import after
from baechi_tf.micro_batch_graph import micro_batch_of
from baechi_tf.op_graph import OpGraph

_NOWHERE = np.inf


@dataclasses.dataclass(frozen=True, eq=False)
class LayerLine:
  """The groups of a pipeline in a line: n ops, g groups.

  Cut `c` comes before the group at position `c`, from 0 to g. What the fields
  say of cuts is for one micro-batch, all of the rest for the whole step.

  Attributes:
    position: int64 `[n]`, where each op's group is in the line.
    groups: int64 `[g]`, the group at each position.
    persistent_bytes: int64 `[g]`, the variables and a sum of their gradients.
    kept_bytes: int64 `[g]`, what the forward pass of one micro-batch leaves to
      its backward pass.
    num_crossing: float64 `[2, g + 1]`, how many tensors go over each cut,
      forward and backward.
    crossing_bytes: float64 `[2, g + 1]`, their bytes.
    received_bytes: float64 `[g + 1]`, the part of them that goes forward and
      is kept there for the backward pass.
  """

  position: np.ndarray
  groups: np.ndarray
  persistent_bytes: np.ndarray
  kept_bytes: np.ndarray
  num_crossing: np.ndarray
  crossing_bytes: np.ndarray
  received_bytes: np.ndarray


def layer_lines(graph: OpGraph) -> list[LayerLine]:
  """Returns two lines of a step: with each op early, and with each op late.

  They differ where a model has branches, such as an encoder and a decoder.

  Args:
    graph: a step of micro-batches, from `as_pipeline`.
  """
  own = micro_batch_of(graph.names)
  from_input = after(graph, graph.is_input)
  backward = after(
    graph, np.array([is_gradient(name) for name in graph.names], bool)
  )
  forward = from_input & (own == 0) & ~backward
  early, late = _depths(graph, forward)
  return [
    _line(graph, own, backward, _places(graph, forward, from_input, depth))
    for depth in (early, late)
  ]


def _depths(graph, forward) -> tuple[np.ndarray, np.ndarray]:
  """Returns each forward op's earliest and latest start, float64 `[n]`."""
  times = np.where(forward, graph.compute_time_us.min(axis=1), 0.0)
  source, target, _ = graph.op_pairs
  inner = forward[source] & forward[target]
  source, target = source[inner], target[inner]
  early = _longest_paths(times, source, target)
  tail = times + _longest_paths(times, target[::-1], source[::-1])
  return early, (early + tail).max(initial=0.0) - tail


@compiled
def _longest_paths(times, source, target):
  """Returns the longest path of times before each op, sources in order."""
  result = np.zeros(len(times))
  for i in range(len(source)):
    end = result[source[i]] + times[source[i]]
    result[target[i]] = max(result[target[i]], end)
  return result


def _places(graph, forward, from_input, depth) -> np.ndarray:
  """Returns where each group is, float64 `[num_groups]`."""
  place = np.full(graph.num_groups, _NOWHERE)
  np.minimum.at(place, graph.group[forward], depth[forward])
  source, target, _ = graph.op_pairs
  origin, group = graph.group[source], graph.group[target]
  free = ~from_input[source]  # variables, constants and what is made of them
  to_users = group[free][::-1], origin[free][::-1]
  _spread(place, place == _NOWHERE, *to_users)
  _spread(place, place == _NOWHERE, origin, group)
  _spread(place, place == _NOWHERE, *to_users)
  return np.where(place == _NOWHERE, 0.0, place)


@compiled
def _spread(place, is_open, origin, group):
  """Puts each open group where the first of its origins is, pair by pair."""
  for i in range(len(group)):
    if is_open[group[i]]:
      place[group[i]] = min(place[group[i]], place[origin[i]])


def _line(graph, own, backward, place) -> LayerLine:
  """Returns the groups in the order of their places, with their costs."""
  num_groups = graph.num_groups
  first = np.full(num_groups, graph.num_ops)
  np.minimum.at(first, graph.group, graph.rank)
  sequence = np.lexsort((first, place))
  of_group = np.empty(num_groups, np.int64)
  of_group[sequence] = np.arange(num_groups)
  position = of_group[graph.group]

  made, used = position[graph.tensor_op], position[graph.edge_op]
  maker, user = graph.edge_source, graph.edge_op
  is_first = own == 0
  kept = is_first[maker] & ~backward[maker] & backward[user]
  # The sum of gradients goes from one micro-batch to the next.
  summed = is_first[maker] & backward[maker] & (own[user] == 1)
  last, earliest, kept_at = made.copy(), made.copy(), made.copy()
  np.maximum.at(last, graph.edge_tensor, used)
  np.minimum.at(earliest, graph.edge_tensor, used)
  np.maximum.at(kept_at, graph.edge_tensor[kept], used[kept])
  share = ~graph.is_on_client[graph.tensor_op] / (own.max(initial=0) + 1)
  forward, back = (made, last), (earliest, made)
  size = graph.tensor_bytes * share

  def held(edges):
    chosen = np.unique(graph.edge_tensor[edges])
    held_bytes = np.zeros(num_groups, np.int64)
    np.add.at(held_bytes, made[chosen], graph.tensor_held_bytes[chosen])
    return held_bytes

  return LayerLine(
    position=position,
    groups=sequence,
    persistent_bytes=graph.group_persistent_bytes[sequence] + held(summed),
    kept_bytes=held(kept),
    num_crossing=_over_cuts(share, forward, back, num_groups),
    crossing_bytes=_over_cuts(size, forward, back, num_groups),
    received_bytes=_over_cuts(
      graph.tensor_bytes, (made, kept_at), back, num_groups
    )[0],
  )


def _over_cuts(weight, forward, back, num_groups) -> np.ndarray:
  """Returns the weights that go over each cut, float64 `[2, g + 1]`.

  Args:
    weight: `[m]`, the weight of each tensor.
    forward: the positions that each tensor goes from and to, forward.
    back: the positions that each tensor goes to and from, backward.
    num_groups: the number of groups in the line.
  """
  result = np.zeros((2, num_groups + 2))
  for row, (a, b) in zip(result, (forward, back), strict=True):
    np.add.at(row, a + 1, weight)
    np.add.at(row, b + 1, -weight)
  return result.cumsum(axis=1)[:, :-1]
