"""A graph and a cluster as the flat arrays that the search works on.

Ops are numbered by their topological rank: neighbours in the graph are then
neighbours in memory, and ties need no second table. Indices are 32 bits wide
for the same reason: an evaluation is bound by the memory that it touches.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import LinkCosts
from baechi_tf.transfer import takes_processors


class Instance(NamedTuple):
  """A graph on a cluster: n ops, m tensors, e edges, D devices.

  Ops are in topological order, tensors in the order of their ops.
  """

  durations: np.ndarray  # float64 [n, D]
  tail: np.ndarray  # float64 [n], least time from the op's end to the step's
  tensor_offsets: np.ndarray  # int32 [n + 1], an op's tensors
  tensor_op: np.ndarray  # int32 [m]
  tensor_bytes: np.ndarray  # int64 [m]
  tensor_held: np.ndarray  # int64 [m], bytes on its own device
  tensor_id: np.ndarray  # int64 [m], the graph's number of each tensor
  tensor_of_id: np.ndarray  # int64 [m], and back
  consumer_offsets: np.ndarray  # int32 [m + 1]
  consumers: np.ndarray  # int32 [e]
  input_offsets: np.ndarray  # int32 [n + 1]
  inputs: np.ndarray  # int32 [e], tensors
  persistent: np.ndarray  # int64 [n] bytes
  temporary: np.ndarray  # int64 [n] bytes
  fixed: np.ndarray  # bool [n], ops that no move takes
  memory: np.ndarray  # int64 [D] bytes
  limited: bool  # whether a device could run out of memory
  processor: np.ndarray  # int64 [D]
  dispatch_us: np.ndarray  # float64 [D]
  links: LinkCosts
  works: bool  # whether transfers take processor time


def make_instance(graph: OpGraph, cluster: Cluster) -> Instance:
  """Returns the arrays of a graph on a cluster.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  order, rank = graph.order, graph.rank
  durations = np.array(graph.times_on(cluster.types)[order])
  tensor_rank = rank[graph.tensor_op]
  tensors = np.argsort(tensor_rank, kind="stable")
  place = np.empty(len(tensors), np.int64)
  place[tensors] = np.arange(len(tensors))
  edges = np.lexsort((rank[graph.edge_op], place[graph.edge_tensor]))
  edge_tensor = place[graph.edge_tensor[edges]]
  consumers = rank[graph.edge_op[edges]]
  by_consumer = np.argsort(consumers, kind="stable")
  links = link_costs(cluster)
  tensor_op = tensor_rank[tensors]
  held = graph.tensor_held_bytes
  # All at once on every device is more than any placement holds there.
  most = int((graph.persistent_bytes + graph.working_bytes).sum()) + int(
    graph.tensor_bytes.sum()
  )
  return Instance(
    durations=durations,
    tail=_tails(durations.min(axis=1), tensor_op[edge_tensor], consumers),
    tensor_offsets=offsets_of(tensor_op, graph.num_ops).astype(np.int32),
    tensor_op=tensor_op.astype(np.int32),
    tensor_bytes=graph.tensor_bytes[tensors],
    tensor_held=held[tensors],
    tensor_id=tensors,
    tensor_of_id=place,
    consumer_offsets=offsets_of(edge_tensor, len(tensors)).astype(np.int32),
    consumers=consumers.astype(np.int32),
    input_offsets=offsets_of(consumers[by_consumer], graph.num_ops).astype(
      np.int32
    ),
    inputs=edge_tensor[by_consumer].astype(np.int32),
    persistent=graph.persistent_bytes[order],
    temporary=graph.temporary_bytes[order],
    fixed=graph.is_on_client[order],
    memory=cluster.memory_bytes,
    limited=bool(most > cluster.memory_bytes.min()),
    processor=cluster.processor,
    dispatch_us=cluster.dispatch_us,
    links=links,
    works=takes_processors(links),
  )


@compiled
def _tails(times, edge_source, edge_op):
  """The longest path of times after each op; edges sorted by their sources."""
  tail = np.zeros(len(times))
  for edge in range(len(edge_op) - 1, -1, -1):
    source, op = edge_source[edge], edge_op[edge]
    tail[source] = max(tail[source], times[op] + tail[op])
  return tail


class State(NamedTuple):
  """A placement, and room for one evaluation of it; P processors."""

  device: np.ndarray  # int32 [n]
  users: np.ndarray  # int32 [m * D], consumers of a tensor on a device
  position: np.ndarray  # int64 [n], where each op is in the given order
  order: np.ndarray  # int32 [n], the given order
  # Of the last evaluation.
  start: np.ndarray  # float64 [n]
  finish: np.ndarray  # float64 [n]
  cause: np.ndarray  # int32 [n], the op whose end let each op start, or -1
  peak: np.ndarray  # int64 [D] bytes
  # While it runs.
  missing: np.ndarray  # int32 [n]
  turn: np.ndarray  # int32 [n]
  ready: np.ndarray  # int64 [P, n], a heap of each processor
  event_us: np.ndarray  # float64 [h], a heap with `event`
  event: np.ndarray  # int64 [h]
  sent_us: np.ndarray  # float64 [m * D]
  sent_after: np.ndarray  # int32 [m * D], the op that made each transfer begin
  left: np.ndarray  # int32 [m], what still holds a tensor on its device
  left_there: np.ndarray  # int32 [m * D], what still holds a copy


def make_state(x: Instance, device: np.ndarray) -> State:
  """Returns a placement in topological order.

  Args:
    x: the instance.
    device: int `[n]`, of each op of the instance.
  """
  num_ops, num_devices = x.durations.shape
  num_tensors, num_edges = len(x.tensor_op), len(x.consumers)
  num_events = 5 * num_edges + 3 * num_devices + 8
  device = np.array(device, np.int32)
  users = np.zeros(num_tensors * num_devices, np.int32)
  tensor = np.repeat(np.arange(num_tensors), np.diff(x.consumer_offsets))
  np.add.at(users, tensor * num_devices + device[x.consumers], 1)
  return State(
    device=device,
    users=users,
    position=np.arange(num_ops),
    order=np.arange(num_ops, dtype=np.int32),
    start=np.zeros(num_ops),
    finish=np.zeros(num_ops),
    cause=np.full(num_ops, -1, np.int32),
    peak=np.zeros(num_devices, np.int64),
    missing=np.zeros(num_ops, np.int32),
    turn=np.zeros(num_ops, np.int32),
    ready=np.zeros((int(x.processor.max()) + 1, num_ops), np.int64),
    event_us=np.zeros(num_events),
    event=np.zeros(num_events, np.int64),
    sent_us=np.zeros(len(users)),
    sent_after=np.zeros(len(users), np.int32),
    left=np.zeros(num_tensors, np.int32),
    left_there=np.zeros(len(users), np.int32),
  )
