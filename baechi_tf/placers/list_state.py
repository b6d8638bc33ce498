"""The state of a list schedule in the making: what is given, what is decided.

NamedTuples of arrays, which compiled code can take: `list_scheduling` decides,
`bookings` writes it down, `awake` asks.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled_inner
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.placers.families import find_families
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import LinkCosts

NONE = -1
NEVER = np.inf
# Kinds of queues: ops that may run on other devices too, ops whose group is on
# the device, and ops by when they are urgent. A free device takes of the first
# two, an awake device of the last two.
OPEN, PINNED, URGENT = range(3)


class Problem(NamedTuple):
  """The graph and the cluster as arrays that compiled code can take."""

  times: np.ndarray  # [n, D]
  fastest: np.ndarray  # [n]
  rank: np.ndarray
  order: np.ndarray
  working_bytes: np.ndarray  # [n] temporary and outputs
  temporary_bytes: np.ndarray
  tensor_op: np.ndarray
  tensor_offsets: np.ndarray
  tensor_bytes: np.ndarray
  tensor_held_bytes: np.ndarray
  consumer_offsets: np.ndarray
  edge_op: np.ndarray
  input_offsets: np.ndarray
  input_tensor: np.ndarray  # in topological order, then see sort_inputs
  group: np.ndarray
  group_offsets: np.ndarray
  group_members: np.ndarray
  group_pin: np.ndarray  # device, or NONE
  group_persistent: np.ndarray
  group_working: np.ndarray
  family: np.ndarray  # [n], and the rest of Families' arrays
  family_offsets: np.ndarray
  family_members: np.ndarray
  family_position: np.ndarray
  family_consumer_offsets: np.ndarray
  family_consumers: np.ndarray
  favorite_child: np.ndarray  # [n], or empty: no device is ever awake
  memory: np.ndarray
  processor: np.ndarray  # [D]
  dispatch_us: np.ndarray  # [D]
  links: LinkCosts
  takes_work: bool  # whether any transfer takes processor time


class State(NamedTuple):
  """The state of a list schedule: all that has been decided."""

  device: np.ndarray  # [n], NONE until placed
  is_ready: np.ndarray  # [n], all parents placed, itself not
  finish: np.ndarray  # [n]
  group_device: np.ndarray
  device_free: np.ndarray  # [D], its processor free, and memory it waited for
  processor_free: np.ndarray  # [D], the same for devices that share one
  send_free: np.ndarray
  receive_free: np.ndarray
  arrived: np.ndarray  # [m, D], when a tensor is there; NEVER: not sent
  last_use: np.ndarray  # [m, D], when its last placed consumer there ends
  unplaced_parents: np.ndarray  # [n], edges from ops that are not placed
  unplaced_consumers: np.ndarray  # [m]
  reserved: np.ndarray  # [D] persistent bytes of the groups placed there
  live: np.ndarray  # [D] outputs, copies and workspace held there
  next_unplaced: np.ndarray  # [n + 1], position in the families, see sibling
  # The log of transfers booked, and how many there are.
  log_source: np.ndarray
  log_target: np.ndarray
  log_length: np.ndarray  # [1]
  # For `awake`, [f] and [D]: what has been found out, to be brought up to date.
  urgent_at: np.ndarray  # a family's inputs could not be anywhere before
  urgent_device: np.ndarray  # because of this device
  urgent_log: np.ndarray  # log length when all devices had been asked, or NONE
  rival: np.ndarray  # where the awaited child could start as early as here
  rival_start: np.ndarray  # the child cannot start elsewhere before
  rival_child: np.ndarray  # which child
  rival_parents: np.ndarray  # how many of its parents were not placed


class Queues(NamedTuple):
  """Heaps of what is to come.

  Device `k` has a queue of each kind, number `kind * num_devices + k`.
  """

  arriving: list  # (when the inputs are there, rank)
  waiting: list  # ranks of ops whose inputs are there once the device is free
  blocked: list  # ranks of ops that do not fit for now
  releases: list  # per device, (when, bytes that will be freed)


def new_problem(
  graph: OpGraph, cluster: Cluster, favorite_child: np.ndarray | None
) -> Problem:
  """Returns the problem; `favorite_child` as for `list_scheduling.schedule`.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  by_op = np.lexsort(
    (graph.edge_tensor, graph.rank[graph.edge_source], graph.edge_op)
  )
  members = np.lexsort((graph.rank, graph.group))
  times = graph.times_on(cluster.types)
  families = find_families(graph)
  links = link_costs(cluster)
  return Problem(
    times=times,
    fastest=times.min(axis=1),
    rank=graph.rank,
    order=graph.order,
    working_bytes=graph.working_bytes,
    temporary_bytes=graph.temporary_bytes,
    tensor_op=graph.tensor_op,
    tensor_offsets=graph.tensor_offsets,
    tensor_bytes=graph.tensor_bytes,
    tensor_held_bytes=graph.tensor_held_bytes,
    consumer_offsets=graph.consumer_offsets,
    edge_op=graph.edge_op,
    input_offsets=graph.input_offsets,
    input_tensor=graph.edge_tensor[by_op],
    group=graph.group,
    group_offsets=offsets_of(graph.group, graph.num_groups),
    group_members=members,
    group_pin=graph.group_pin,
    group_persistent=graph.group_persistent_bytes,
    group_working=graph.group_working_bytes,
    family=families.of_op,
    family_offsets=families.offsets,
    family_members=families.members,
    family_position=families.position,
    family_consumer_offsets=families.consumer_offsets,
    family_consumers=families.consumers,
    favorite_child=np.array(
      () if favorite_child is None else favorite_child, np.int64
    ),
    memory=cluster.memory_bytes,
    processor=cluster.processor,
    dispatch_us=cluster.dispatch_us,
    links=links,
    takes_work=bool(links.work_us.any() or links.work_us_per_byte.any()),
  )


def new_state(p: Problem) -> State:
  """Returns the state in which nothing has been placed.

  Devices hold the persistent bytes of what is pinned to them from the start.
  """
  num_ops, num_devices = p.times.shape
  num_tensors = len(p.tensor_op)
  num_edges = len(p.edge_op)
  num_families = len(p.family_offsets) - 1
  send_free = np.zeros(num_devices)
  half = p.links.channel == HALF_DUPLEX
  reserved = np.zeros(num_devices, np.int64)
  pinned = p.group_pin != NONE
  np.add.at(reserved, p.group_pin[pinned], p.group_persistent[pinned])
  return State(
    device=np.full(num_ops, NONE, np.int64),
    is_ready=np.zeros(num_ops, bool),
    finish=np.zeros(num_ops),
    group_device=p.group_pin.copy(),
    device_free=p.dispatch_us.copy(),
    processor_free=np.zeros(num_devices),
    send_free=send_free,
    receive_free=send_free if half else np.zeros(num_devices),
    arrived=np.full((num_tensors, num_devices), NEVER),
    last_use=np.zeros((num_tensors, num_devices)),
    unplaced_parents=np.diff(p.input_offsets),
    unplaced_consumers=np.diff(p.consumer_offsets),
    reserved=reserved,
    live=np.zeros(num_devices, np.int64),
    next_unplaced=np.arange(num_ops + 1),
    log_source=np.empty(num_edges, np.int64),
    log_target=np.empty(num_edges, np.int64),
    log_length=np.zeros(1, np.int64),
    urgent_at=np.zeros(num_families),
    urgent_device=np.zeros(num_families, np.int64),
    urgent_log=np.full(num_families, NONE),
    rival=np.full(num_devices, NONE),
    rival_start=np.zeros(num_devices),
    rival_child=np.full(num_devices, NONE),
    rival_parents=np.zeros(num_devices, np.int64),
  )


@compiled_inner
def new_queues(num_devices):
  """Empty queues, which compiled code has to make itself."""
  queues = range(3 * num_devices)
  none = range(0)  # gives an empty list its type
  return Queues(
    [[(0.0, np.int64(0)) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[np.int64(0) for _ in none] for _ in queues],
    [[(0.0, np.int64(0)) for _ in none] for _ in range(num_devices)],
  )
