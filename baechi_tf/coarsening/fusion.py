"""Fusion: contracts edges inside groups, so that there is less to place.

An edge `u -> v` is contracted when `v` is all that consumes `u` or `u` is all
that `v` consumes: then there is no other path from `u` to `v`, and no cycle can
arise. A cycle would be a deadlock in TensorFlow.
"""

import dataclasses

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from baechi_tf.compiled import compiled
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph


@dataclasses.dataclass(frozen=True, eq=False)
class Fused:
  """A coarse graph, and for every fine op the coarse op it is part of."""

  graph: OpGraph
  coarse_op: np.ndarray  # int64 [n]


def fuse(graph: OpGraph, group: np.ndarray | None = None) -> Fused:
  """Returns `graph` with edges inside groups contracted until none is left.

  Times and persistent bytes add up. A fused op holds its outputs to others;
  what its ops hold between themselves, run one after another in topological
  order, counts as temporary. So a device that runs one fused op after another
  never needs more memory than the coarse graph says; one that interleaves their
  fine ops may, which is why plans are simulated on the fine graph.

  Args:
    graph: the fine graph.
    group: int64 `[n]` group ids to obey and fuse in, default `graph.group`;
      they must be unions of the graph's own groups.
  """
  if group is None:
    group = graph.group
  edges = np.stack([graph.edge_source, graph.edge_op], axis=1)
  coarse_op = np.arange(graph.num_ops)
  num_coarse = graph.num_ops
  while True:
    before = num_coarse
    for end in (0, 1):  # single consumer, then single producer
      coarse_op, num_coarse = _contract(
        edges, coarse_op, num_coarse, group, end
      )
    if num_coarse == before:
      break
  return Fused(_coarse_graph(graph, group, coarse_op, num_coarse), coarse_op)


def _contract(edges, coarse_op, num_coarse, group, end):
  """Contracts all edges whose `end` (0: source, 1: target) has no other edge.

  All at once: contracting one leaves the others' single edge single.
  """
  group_of = np.empty(num_coarse, np.int64)
  group_of[coarse_op] = group
  pairs = coarse_op[edges]
  pairs = pairs[pairs[:, 0] != pairs[:, 1]]
  pairs = np.divmod(
    np.unique(pairs[:, 0] * num_coarse + pairs[:, 1]), max(num_coarse, 1)
  )
  degree = np.bincount(pairs[end], minlength=num_coarse)
  chosen = (degree[pairs[end]] == 1) & (
    group_of[pairs[0]] == group_of[pairs[1]]
  )
  joined = coo_array(
    (np.ones(chosen.sum(), bool), (pairs[0][chosen], pairs[1][chosen])),
    shape=(num_coarse, num_coarse),
  )
  num_merged, merged = connected_components(joined, directed=False)
  return merged[coarse_op].astype(np.int64), num_merged


def _coarse_graph(graph, group, coarse_op, num_coarse) -> OpGraph:
  """Returns the graph of fused ops, each named after its first op."""
  # Coarse ops in the order of their first op, whatever SciPy numbered them.
  sequence = np.lexsort((graph.rank, coarse_op))
  offsets = offsets_of(coarse_op[sequence], num_coarse)
  first_op = sequence[offsets[:-1]]
  source = coarse_op[graph.edge_source]
  target = coarse_op[graph.edge_op]
  leaves = source != target
  outward = np.zeros(len(graph.tensor_op), bool)
  outward[graph.edge_tensor[leaves]] = True

  # Fine tensors that leave become the outputs, in topological order of their
  # ops: how those were listed must not show.
  outputs = np.flatnonzero(outward & ~graph.tensor_is_control)
  maker = graph.tensor_op[outputs]
  outputs = outputs[np.lexsort((outputs, graph.rank[maker], coarse_op[maker]))]
  output_op = coarse_op[graph.tensor_op[outputs]]
  number = np.full(len(graph.tensor_op), -1)  # -1 is CONTROL
  first_output = offsets_of(output_op, num_coarse)
  number[outputs] = np.arange(len(outputs)) - first_output[output_op]

  persistent = np.zeros(num_coarse, np.int64)
  np.add.at(persistent, coarse_op, graph.persistent_bytes)
  times = np.zeros((num_coarse, graph.compute_time_us.shape[1]))
  # In topological order: float sums do not depend on how ops were listed.
  np.add.at(times, coarse_op[sequence], graph.compute_time_us[sequence])
  group_of = np.empty(num_coarse, np.int64)
  group_of[coarse_op] = group
  pin = np.full(num_coarse, FREE)
  np.maximum.at(pin, coarse_op, graph.pin)
  return OpGraph.build(
    [graph.names[op] for op in first_op.tolist()],
    times,
    device_types=graph.device_types,
    persistent_bytes=persistent,
    temporary_bytes=_temporary_bytes(
      sequence,
      offsets,
      *_internal_lifetimes(graph, coarse_op, sequence, outward),
    ),
    output_op=output_op,
    output_bytes=graph.tensor_bytes[outputs],
    output_is_persistent=graph.tensor_is_persistent[outputs],
    edge_source=source[leaves],
    edge_output=number[graph.edge_tensor[leaves]],
    edge_target=target[leaves],
    group=group_of,
  ).with_pins(pin)


def _internal_lifetimes(graph, coarse_op, sequence, outward):
  """Returns per op: workspace, bytes of inner outputs, and bytes it frees.

  An inner tensor is freed by its last consumer in `sequence`, in which the ops
  of one coarse op are together.
  """
  position = np.empty(graph.num_ops, np.int64)
  position[sequence] = np.arange(graph.num_ops)
  inner = ~outward
  last = position[graph.tensor_op]
  np.maximum.at(last, graph.edge_tensor, position[graph.edge_op])
  made = np.zeros(graph.num_ops, np.int64)
  freed = np.zeros(graph.num_ops, np.int64)
  held = graph.tensor_held_bytes[inner]
  np.add.at(made, graph.tensor_op[inner], held)
  np.add.at(freed, sequence[last[inner]], held)
  return graph.temporary_bytes, made, freed


@compiled
def _temporary_bytes(sequence, offsets, temporary, made, freed):
  """Peak of what each coarse op's ops hold between themselves."""
  peaks = np.zeros(len(offsets) - 1, np.int64)
  for coarse in range(len(peaks)):
    live, peak = 0, 0
    for i in range(offsets[coarse], offsets[coarse + 1]):
      op = sequence[i]
      live += made[op]
      peak = max(peak, live + temporary[op])
      live -= freed[op]
    peaks[coarse] = peak
  return peaks
