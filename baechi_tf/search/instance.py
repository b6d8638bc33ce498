"""A graph and a cluster as the flat arrays that the search works on.

Ops are numbered by their topological rank: neighbours in the graph are then
neighbours in memory, and ties need no second table. Indices are 32 bits wide
for the same reason: an evaluation is bound by the memory that it touches.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.schedule import new_schedule
from baechi_tf.schedule import Schedule
from baechi_tf.schedule import Step
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import takes_processors


class Instance(NamedTuple):
  """A graph on a cluster: n ops, m tensors, e edges, D devices.

  Ops are in topological order, tensors in the order of their ops.
  """

  step: Step
  input_offsets: np.ndarray  # int32 [n + 1]
  inputs: np.ndarray  # int32 [e], tensors
  persistent: np.ndarray  # int64 [n] bytes
  temporary: np.ndarray  # int64 [n] bytes
  tensor_held: np.ndarray  # int64 [m], bytes on its own device
  fixed: np.ndarray  # bool [n], ops that no move takes
  memory: np.ndarray  # int64 [D] bytes
  limited: bool  # whether a device could run out of memory


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
  # All at once on every device is more than any placement holds there.
  most = int((graph.persistent_bytes + graph.working_bytes).sum()) + int(
    graph.tensor_bytes.sum()
  )
  input_offsets = offsets_of(consumers[by_consumer], graph.num_ops)
  step = Step(
    durations=durations,
    tail=_tails(durations.min(axis=1), tensor_op[edge_tensor], consumers),
    rank=np.arange(graph.num_ops, dtype=np.int32),
    num_inputs=np.diff(input_offsets).astype(np.int32),
    tensor_offsets=offsets_of(tensor_op, graph.num_ops).astype(np.int32),
    tensor_op=tensor_op.astype(np.int32),
    tensor_bytes=graph.tensor_bytes[tensors],
    tensor_id=tensors,
    tensor_of_id=place,
    consumer_offsets=offsets_of(edge_tensor, len(tensors)).astype(np.int32),
    consumers=consumers.astype(np.int32),
    processor=cluster.processor,
    dispatch_us=cluster.dispatch_us,
    links=links,
    works=takes_processors(links),
  )
  return Instance(
    step=step,
    input_offsets=input_offsets.astype(np.int32),
    inputs=edge_tensor[by_consumer].astype(np.int32),
    persistent=graph.persistent_bytes[order],
    temporary=graph.temporary_bytes[order],
    tensor_held=graph.tensor_held_bytes[tensors],
    fixed=graph.fixed_device[order] != FREE,
    memory=cluster.memory_bytes,
    limited=bool(most > cluster.memory_bytes.min()),
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
  """A placement, and room for one evaluation of it."""

  schedule: Schedule
  held: np.ndarray  # int64 [D], persistent bytes on each device
  peak: np.ndarray  # int64 [D] bytes, of the last evaluation
  # While memory is added up.
  left: np.ndarray  # int32 [m], what still holds a tensor on its device
  left_there: np.ndarray  # int32 [m * D], what still holds a copy
  sent_us: np.ndarray  # float64 [m * D], when it was sent


def make_state(
  x: Instance, device: np.ndarray, order: np.ndarray | None = None
) -> State:
  """Returns a placement that has not been evaluated.

  Args:
    x: the instance.
    device: int `[n]`, of each op of the instance.
    order: int `[n]`, the order that the policy goes by; topological by default.
  """
  num_devices = len(x.memory)
  if order is None:
    order = np.arange(len(x.fixed))
  schedule = new_schedule(x.step, device, order)
  held = np.zeros(num_devices, np.int64)
  np.add.at(held, schedule.device, x.persistent)
  num_copies = len(x.tensor_held) * num_devices if x.limited else 0
  return State(
    schedule=schedule,
    held=held,
    peak=np.zeros(num_devices, np.int64),
    left=np.zeros(len(x.tensor_held), np.int32),
    left_there=np.zeros(num_copies, np.int32),
    sent_us=np.zeros(num_copies),
  )
