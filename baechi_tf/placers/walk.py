"""The order in which m-TOPO and the contiguous split walk a graph.

Any topological order would do for the rules; this one keeps together what
belongs together. Depth first from the ends of the step, the earliest end first
and the deepest input first, each op comes right after what it needs: constants
and variables just before their first use, a weight's gradient just before its
update, not all of them at the start or at the end.
"""

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.op_graph import OpGraph


def depth_first_order(graph: OpGraph) -> np.ndarray:
  """Returns int64 `[n]`: the ops in a topological order, depth first."""
  deepest_first = np.lexsort((-graph.rank[graph.edge_source], graph.edge_op))
  num_outputs = np.diff(graph.consumer_offsets[graph.tensor_offsets])
  ends = graph.order[num_outputs[graph.order] == 0]
  return _depth_first(
    ends, graph.edge_source[deepest_first], graph.input_offsets
  )


def groups_in_order(graph: OpGraph) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ops group by group, groups by their first op in the walk.

  Int64 `[n]`, in the order of the walk inside a group, and the offsets of the
  groups in it, int64 `[num_groups + 1]`.
  """
  walk = depth_first_order(graph)
  position = np.empty(graph.num_ops, np.int64)
  position[walk] = np.arange(graph.num_ops)
  _, first = np.unique(graph.group[walk], return_index=True)
  sequence = np.lexsort((position, first[graph.group]))
  lengths = np.bincount(graph.group, minlength=graph.num_groups)
  offsets = np.concatenate([[0], np.cumsum(lengths[np.argsort(first)])])
  return sequence, offsets


@compiled
def _depth_first(ends, source, input_offsets):
  num_ops = len(input_offsets) - 1
  order = np.empty(num_ops, np.int64)
  count = 0
  next_input = input_offsets[:-1].copy()
  is_seen = np.zeros(num_ops, np.bool_)
  stack = np.empty(num_ops, np.int64)
  for end in ends:
    depth = 0
    stack[0] = end
    is_seen[end] = True
    while depth >= 0:
      op = stack[depth]
      if next_input[op] == input_offsets[op + 1]:
        order[count] = op
        count += 1
        depth -= 1
        continue
      before = source[next_input[op]]
      next_input[op] += 1
      if not is_seen[before]:
        is_seen[before] = True
        depth += 1
        stack[depth] = before
  return order
