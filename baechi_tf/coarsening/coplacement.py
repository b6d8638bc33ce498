"""Co-placement: ops that gain nothing by being apart share a group.

A heuristic (Jeon et al., *Baechi*, SoCC 2020, 3.1.1): an op whose whole output
goes to one consumer joins that consumer, and a gradient op joins the forward op
that it is the gradient of. It makes latency-bound graphs placeable, and can
cost parallelism; the planner tries with and without.
"""

import re
from collections.abc import Mapping

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.op_graph import dense_groups
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph

_TAPE = "gradient_tape/"  # tf.GradientTape
_GRADIENTS = "gradients/"  # tf.compat.v1.gradients
# A scope with more forward ops is no layer, but a model.
_MAX_LAYER_OPS = 64


def coplacement_groups(
  graph: OpGraph, max_group_bytes: int | None = None
) -> np.ndarray:
  """Returns int64 `[n]`: the graph's groups with co-placed ops merged in.

  Args:
    graph: the ops.
    max_group_bytes: no two groups are merged if all memory of their ops, were
      it held at once, would exceed this; None for no limit. Single consumers
      are merged before gradients, each in topological order. Groups that are
      pinned to different devices stay apart.
  """
  if max_group_bytes is None:
    max_group_bytes = np.iinfo(np.int64).max
  pairs = np.concatenate([single_consumers(graph), gradient_pairs(graph)])
  merged = _merge_within(
    graph.group[pairs],
    graph.group_memory_bytes,
    graph.group_pin.copy(),
    max_group_bytes,
  )
  return dense_groups(merged[graph.group], graph.num_ops)


@compiled
def _merge_within(pairs, group_bytes, pin, max_group_bytes):
  """Merges the groups of each pair in turn, if the sum stays within the limit.

  And unless they are pinned to different devices; `pin` is overwritten.

  Returns a label for each group (union-find with path halving).
  """
  parent = np.arange(len(group_bytes))
  merged_bytes = group_bytes.copy()
  for i in range(len(pairs)):
    a, b = pairs[i]
    while parent[a] != a:
      parent[a] = parent[parent[a]]
      a = parent[a]
    while parent[b] != b:
      parent[b] = parent[parent[b]]
      b = parent[b]
    can_share = pin[a] == FREE or pin[b] == FREE or pin[a] == pin[b]
    within = merged_bytes[a] + merged_bytes[b] <= max_group_bytes
    if a != b and can_share and within:
      parent[b] = a
      pin[a] = max(pin[a], pin[b])
      merged_bytes[a] += merged_bytes[b]
  for group in range(len(parent)):
    root = group
    while parent[root] != root:
      root = parent[root]
    parent[group] = root
  return parent


def single_consumers(graph: OpGraph) -> np.ndarray:
  """Returns int64 `[p, 2]`: each op with one consumer, and that consumer.

  An input of the step has none: its device is known.
  """
  source, target, _ = graph.op_pairs
  num_consumers = np.bincount(source, minlength=graph.num_ops)
  single = (num_consumers[source] == 1) & ~graph.is_input[source]
  return np.stack([source[single], target[single]], axis=1)


def gradient_pairs(graph: OpGraph) -> np.ndarray:
  """Returns int64 `[p, 2]`: gradient ops and their forward ops, by name.

  `a/gradient_tape/b/MatMul/MatMul_1` is a gradient of `a/b/MatMul`,
  `gradient_tape/b/TanhGrad_1` one of `b/Tanh_1`, and
  `gradients/b/MatMul_grad/MatMul_1` one of `b/MatMul`. Where no forward op has
  the name, the first one in the innermost scope stands for its layer.
  """
  gradients, scopes = [], {}
  for op in graph.order.tolist():
    name = graph.names[op]
    if is_gradient(name):
      gradients.append(op)
      continue
    scope = name.rpartition("/")[0]
    while scope:
      first, count = scopes.get(scope, (op, 0))
      scopes[scope] = (first, count + 1)
      scope = scope.rpartition("/")[0]
  pairs = [
    (op, forward)
    for op in gradients
    if (forward := _forward_op(graph.names[op], graph.index, scopes)) != op
  ]
  return np.array(pairs, np.int64).reshape(-1, 2)


def is_gradient(name: str) -> bool:
  """Returns whether an op's name is that of an op of a backward pass."""
  return _TAPE in name or _GRADIENTS in name


def _forward_op(name: str, index: Mapping[str, int], scopes) -> int:
  """Returns the forward op of a gradient op, or itself if there is none."""
  if _TAPE in name:
    forward = re.sub(r"Grad(_\d+)?$", r"\1", name.replace(_TAPE, ""))
  else:
    head, _, tail = name.partition(_GRADIENTS)
    stem, grad, _ = tail.partition("_grad/")
    forward = head + stem if grad else ""
  candidate = forward
  while candidate:
    if candidate in index and candidate != name:
      return index[candidate]
    candidate = candidate.rpartition("/")[0]
  scope = forward.rpartition("/")[0]
  while scope and scope not in scopes:
    scope = scope.rpartition("/")[0]
  first, count = scopes.get(scope, (0, 0))
  return first if 0 < count <= _MAX_LAYER_OPS else index[name]
