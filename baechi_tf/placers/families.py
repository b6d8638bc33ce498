"""Families: ops that consume the very same tensors.

Wherever its inputs are, the members of a family could start at the same time on
every device. A scheduler that looks at one member on behalf of all spares most
of its work where one tensor has very many consumers.
"""

import dataclasses

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import inlined
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph

_NO_OP = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Families:
  """The ops of a graph by family: n ops, m tensors, f families.

  Attributes:
    of_op: int64 `[n]`, each op's family.
    offsets: int64 `[f + 1]`, family `i` has members `[i]` up to `[i + 1]`.
    members: int64 `[n]`, the ops by family, in topological order inside one.
    position: int64 `[n]`, where each op is in `members`.
    consumer_offsets: int64 `[m + 1]`, tensor `x` has consumers `[x]` up to
      `[x + 1]`.
    consumers: int64, the families that consume each tensor.
  """

  of_op: np.ndarray
  offsets: np.ndarray
  members: np.ndarray
  position: np.ndarray
  consumer_offsets: np.ndarray
  consumers: np.ndarray


def find_families(graph: OpGraph) -> Families:
  """Returns the families of a graph.

  An op that must share its device with others is a family by itself: where it
  may run changes when the first of them is placed. So is a pinned op, which may
  not run where the rest of its family may.
  """
  label = _same_inputs(
    graph.num_ops, graph.consumer_offsets, graph.edge_op, len(graph.edge_op)
  )
  sizes = np.bincount(graph.group, minlength=graph.num_groups)
  alone = (sizes > 1) | (graph.group_pin != FREE)
  grouped = np.flatnonzero(alone[graph.group])
  label[grouped] = len(graph.edge_op) + 1 + np.arange(len(grouped))
  _, of_op = np.unique(label, return_inverse=True)
  num_families = int(of_op.max(initial=-1)) + 1
  members = np.lexsort((graph.rank, of_op))
  position = np.empty(graph.num_ops, np.int64)
  position[members] = np.arange(graph.num_ops)
  tensors, consumers = np.divmod(
    np.unique(graph.edge_tensor * num_families + of_op[graph.edge_op]),
    max(num_families, 1),
  )
  return Families(
    of_op=of_op,
    offsets=offsets_of(of_op[members], num_families),
    members=members,
    position=position,
    consumer_offsets=offsets_of(tensors, len(graph.tensor_op)),
    consumers=consumers,
  )


@compiled
def _same_inputs(num_ops, consumer_offsets, edge_op, num_edges):
  """Labels up to `num_edges`, equal for ops with equal inputs.

  Splits by one tensor after another: of each label so far, the ops that consume
  the tensor get a new one.
  """
  label = np.zeros(num_ops, np.int64)
  split_by = np.full(num_edges + 1, -1, np.int64)
  split_off = np.zeros(num_edges + 1, np.int64)
  num_labels = 1
  for tensor in range(len(consumer_offsets) - 1):
    first, last = consumer_offsets[tensor], consumer_offsets[tensor + 1]
    for edge in range(first, last):
      before = label[edge_op[edge]]
      if split_by[before] != tensor:
        split_by[before] = tensor
        split_off[before] = num_labels
        num_labels += 1
      label[edge_op[edge]] = split_off[before]
  return label


@inlined
def sibling(p, s, op, after):
  """The first member of the op's family, from it on, that is not placed.

  From the one after it on if `after` is 1, from the op itself if it is 0.
  -1 if there is none. Union-find with path halving: what is placed points
  past itself.
  """
  at = p.family_position[op] + after
  following = s.next_unplaced
  while following[at] != at:
    following[at] = following[following[at]]
    at = following[at]
  if at < p.family_offsets[p.family[op] + 1]:
    return p.family_members[at]
  return _NO_OP
