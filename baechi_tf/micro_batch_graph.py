"""Micro-batches in a graph: their ops by name, their groups and their order.

A step that is cut into micro-batches has each op of the model once for each,
and names tell them apart: `scope_of`. To plan it as a pipeline, the copies of
an op and its gradients share a group, so that a layer has one device, which
keeps what the backward pass needs; and of the ops that are ready, a device runs
those of the first micro-batch that is not done (one forward, one backward; Fan
et al., *DAPPLE*, PPoPP 2021). That order lets the first stage run ahead until
the first backward pass comes back; `limit_in_flight` bounds how far, and so the
memory.
"""

import dataclasses
import re

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from baechi_tf.coarsening.coplacement import gradient_pairs
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import dense_groups
from baechi_tf.op_graph import OpGraph

_SCOPE = re.compile(r"(?:^|(?<=/))micro_batch_(\d+)/")


def scope_of(i: int) -> str:
  """Returns how the names of the ops of micro-batch `i` begin."""
  return f"micro_batch_{i}/"


def name_without_scope(name: str) -> str:
  """Returns an op's name without its micro-batch: the same for all copies."""
  return _SCOPE.sub("", name)


def micro_batch_of(names) -> np.ndarray:
  """Returns the micro-batch of each op, int64 `[n]`, from its name.

  -1 stands for ops of no micro-batch. Gradients have the scope inside their
  names: `gradient_tape/micro_batch_1/…`.

  Args:
    names: the ops' names, `[n]`.
  """
  found = (_SCOPE.search(name) for name in names)
  return np.array([int(x[1]) if x else -1 for x in found], np.int64)


def as_pipeline(graph: OpGraph) -> OpGraph:
  """Returns a graph that is planned as a pipeline of micro-batches.

  The copies of an op and its gradients share its group. The order that breaks
  ties has what the first micro-batch needs first, then what the second needs,
  and so on, and what none needs, as updates, last; inside of each by the
  longest path to the end.

  Args:
    graph: ops of some micro-batches, told apart by their names.
  """
  copies = np.flatnonzero(micro_batch_of(graph.names) >= 0)
  names = [name_without_scope(graph.names[op]) for op in copies.tolist()]
  _, copy_of = np.unique(np.array(names, object), return_inverse=True)
  # Groups are joined that have copies of one name, or a gradient and its op.
  gradient, forward = graph.group[gradient_pairs(graph).T]
  source = np.concatenate([graph.group[copies], gradient])
  target = np.concatenate([graph.num_groups + copy_of, forward])
  joined = coo_array(
    (np.ones(len(source)), (source, target)),
    shape=(graph.num_groups + graph.num_ops,) * 2,
  )
  _, component = connected_components(joined, directed=False)
  needed_by, path_us = _priorities(graph)
  order = np.lexsort((graph.rank, -path_us, needed_by))
  group = dense_groups(component[graph.group], graph.num_ops)
  return dataclasses.replace(graph, group=group).with_order(order)


def limit_in_flight(graph: OpGraph, most: int) -> OpGraph:
  """Returns a pipeline whose micro-batches wait for earlier ones to end.

  What micro-batch i takes of the batch waits for the last op of micro-batch
  i - `most`: a control edge, so no stage holds the activations of more.

  Args:
    graph: from `as_pipeline`.
    most: how many micro-batches may have begun and not ended, at least 1.
  """
  own = micro_batch_of(graph.names)
  needed_by, _ = _priorities(graph)
  from_input = after(graph, graph.is_input)
  source, target, _ = graph.op_pairs
  inner = from_input[source] & (needed_by[source] == needed_by[target])
  is_first = from_input.copy()
  is_first[target[inner]] = False
  edges = []
  for i in range(most, own.max(initial=-1) + 1):
    ended = np.flatnonzero((own == i - most) & (needed_by == i - most))
    if not len(ended):
      continue
    last = ended[np.lexsort((graph.rank[ended], graph.depth[ended]))[-1]]
    begins = np.flatnonzero(is_first & (own == i) & (needed_by == i))
    edges += [(last, op) for op in begins.tolist()]
  return _with_control_edges(graph, np.array(edges, np.int64).reshape(-1, 2))


def _with_control_edges(graph: OpGraph, edges: np.ndarray) -> OpGraph:
  """Returns a graph with more edges, int `[e, 2]`, that carry nothing."""
  is_data = ~graph.tensor_is_control
  output = np.arange(len(graph.tensor_op))
  output -= graph.tensor_offsets[graph.tensor_op]
  output = np.where(is_data, output, CONTROL)[graph.edge_tensor]
  control = np.full(len(edges), CONTROL)
  return (
    OpGraph.build(
      graph.names,
      graph.compute_time_us,
      device_types=graph.device_types,
      persistent_bytes=graph.persistent_bytes,
      temporary_bytes=graph.temporary_bytes,
      output_op=graph.tensor_op[is_data],
      output_bytes=graph.tensor_bytes[is_data],
      output_is_persistent=graph.tensor_is_persistent[is_data],
      edge_source=np.concatenate([graph.edge_source, edges[:, 0]]),
      edge_output=np.concatenate([output, control]),
      edge_target=np.concatenate([graph.edge_op, edges[:, 1]]),
      group=graph.group,
      is_input=graph.is_input,
    )
    .with_order(graph.order)
    .with_pins(graph.pin)
  )


def _priorities(graph: OpGraph) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first micro-batch that needs each op, and its path to the end.

  Int64 `[n]`, one more than the last micro-batch where none does; float64
  `[n]`, the longest path of times from the op's start, in microseconds.
  """
  own = micro_batch_of(graph.names)
  needed_by = np.where(own < 0, own.max(initial=-1) + 1, own)
  times = graph.compute_time_us.min(axis=1)
  path_us = times.copy()
  source, target, _ = graph.op_pairs  # by the topological order of sources
  pairs = zip(source[::-1].tolist(), target[::-1].tolist(), strict=True)
  for a, b in pairs:
    needed_by[a] = min(needed_by[a], needed_by[b])
    path_us[a] = max(path_us[a], times[a] + path_us[b])
  return needed_by, path_us


def after(graph: OpGraph, sources: np.ndarray) -> np.ndarray:
  """Returns the ops that are, or depend on, some ops, bool `[n]`.

  Args:
    graph: the ops and their edges.
    sources: bool `[n]`, those ops.
  """
  result = np.array(sources, bool)
  source, target, _ = graph.op_pairs
  for a, b in zip(source.tolist(), target.tolist(), strict=True):
    result[b] |= result[a]
  return result
