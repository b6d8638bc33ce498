"""Why a plan has an op where it is: what holds it there, and what a move costs.

A move takes the op's whole group to another device, everything else staying as
it is, and simulates the step again. So a plan that the search has left cannot
be bettered by any single move that it has tried; an op whose moves change
nothing could as well be elsewhere.
"""

import dataclasses

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import simulate
from baechi_tf.simulator import Simulation


@dataclasses.dataclass(frozen=True)
class Neighbour:
  """An op that makes an input of another, or takes its output.

  Attributes:
    name: the neighbour's name.
    device: the name of the neighbour's device.
    num_bytes: the size of the tensor between the two ops; 0 for a control edge.
    arrives_us: when the tensor is on the device of the op that takes it; on one
      device, when the op that makes it has finished.
  """

  name: str
  device: str
  num_bytes: int
  arrives_us: float


@dataclasses.dataclass(frozen=True)
class Move:
  """The predicted step if an op's group were on another device.

  Attributes:
    device: the other device's name.
    makespan_us: the predicted step time.
    lacking_bytes: the memory that devices would be short of, by device name;
      empty if all have enough.
  """

  device: str
  makespan_us: float
  lacking_bytes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Explanation:
  """Why an op is where it is.

  Attributes:
    op: the op's name.
    device: the name of the op's device.
    start_us: when the op starts.
    finish_us: when the op has finished.
    makespan_us: the predicted step time of the plan.
    group: the names of the other ops that must share the op's device.
    group_persistent_bytes: the memory that the op and its group hold for ever.
    is_on_client: whether the group has an input of the step, which the caller
      makes.
    inputs: the ops whose outputs the op takes, the last to arrive first.
    outputs: the ops that take the op's outputs, the largest tensor first.
    moves: the predicted step for each other device that the group could be on;
      none if the group is on the client.
  """

  op: str
  device: str
  start_us: float
  finish_us: float
  makespan_us: float
  group: tuple[str, ...]
  group_persistent_bytes: int
  is_on_client: bool
  inputs: tuple[Neighbour, ...]
  outputs: tuple[Neighbour, ...]
  moves: tuple[Move, ...]


def explain(
  graph: OpGraph, cluster: Cluster, simulation: Simulation, op: int
) -> Explanation:
  """Returns why op number `op` is where a simulated plan has it."""
  members = np.flatnonzero(graph.group == graph.group[op])
  k = int(simulation.device[op])
  is_on_client = bool(graph.is_on_client[op])
  others = [] if is_on_client else range(cluster.num_devices)
  return Explanation(
    op=graph.names[op],
    device=cluster.device_names[k],
    start_us=float(simulation.start_time_us[op]),
    finish_us=float(simulation.finish_time_us[op]),
    makespan_us=simulation.makespan_us,
    group=tuple(graph.names[x] for x in members.tolist() if x != op),
    group_persistent_bytes=int(graph.persistent_bytes[members].sum()),
    is_on_client=is_on_client,
    inputs=_inputs(graph, cluster, simulation, op),
    outputs=_outputs(graph, cluster, simulation, op),
    moves=tuple(
      _move(graph, cluster, simulation, members, x) for x in others if x != k
    ),
  )


def _inputs(graph, cluster, simulation, op) -> tuple[Neighbour, ...]:
  first, last = graph.input_offsets[op], graph.input_offsets[op + 1]
  edges = graph.input_edges[first:last]
  inputs = [_neighbour(graph, cluster, simulation, x, True) for x in edges]
  return tuple(sorted(inputs, key=lambda x: (-x.arrives_us, x.name)))


def _outputs(graph, cluster, simulation, op) -> tuple[Neighbour, ...]:
  first, last = graph.tensor_offsets[op], graph.tensor_offsets[op + 1]
  edges = range(graph.consumer_offsets[first], graph.consumer_offsets[last])
  outputs = [_neighbour(graph, cluster, simulation, x, False) for x in edges]
  return tuple(sorted(outputs, key=lambda x: (-x.num_bytes, x.name)))


def _neighbour(graph, cluster, simulation, edge, is_input) -> Neighbour:
  """Returns the producer or the consumer at the other end of an edge."""
  tensor, consumer = int(graph.edge_tensor[edge]), int(graph.edge_op[edge])
  producer = int(graph.tensor_op[tensor])
  other = producer if is_input else consumer
  arrives_us = simulation.finish_time_us[producer]
  target = int(simulation.device[consumer])
  if simulation.device[producer] != target:
    t = simulation.transfer_of[tensor, target]
    arrives_us = simulation.transfer_finish_us[t]
  return Neighbour(
    graph.names[other],
    cluster.device_names[simulation.device[other]],
    int(graph.tensor_bytes[tensor]),
    float(arrives_us),
  )


def _move(graph, cluster, simulation, members, k) -> Move:
  device = simulation.device.copy()
  device[members] = k
  # TensorFlow's choice among ready ops knows of no plan's order.
  order = None if simulation.policy == "executor" else simulation.order
  moved = simulate(
    graph, cluster, device, policy=simulation.policy, order=order
  )
  excess = moved.peak_memory_bytes - cluster.memory_bytes
  return Move(
    cluster.device_names[k],
    moved.makespan_us,
    {
      cluster.device_names[x]: int(excess[x])
      for x in np.flatnonzero(excess > 0).tolist()
    },
  )
