"""Lower bounds on the makespan of any placement: the certificate of a plan.

Every bound holds for the model that `simulator` runs, whatever the placement,
the order of ops and the policy: devices and links that differ, processors that
devices share, transfers that take processor time, and dispatch included. What
transfers take of a processor only delays ops: a bound may leave it out.
"""

import dataclasses
import math

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import dense_groups
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph

# An op's predecessors beyond this many tighten its head too little to be worth
# the quadratic search; leaving them out keeps the bound valid.
_MAX_PREDECESSORS = 64


@dataclasses.dataclass(frozen=True)
class LowerBound:
  """No placement has a makespan below `us`.

  Attributes:
    us: microseconds.
    name: which bound it is: "longest path", "total work", "serial group",
      "communication-aware path" or "trial makespan".
    witness: what it comes from, in words.
  """

  us: float
  name: str
  witness: str

  def gap(self, makespan_us: float) -> float:
    """Returns `makespan / bound - 1`, 0 for an empty step."""
    # Sums of floats in another order than the simulator's may differ by a bit.
    return max(makespan_us / self.us - 1, 0.0) if self.us > 0 else 0.0


def relaxed_bound(graph: OpGraph, cluster: Cluster) -> LowerBound:
  """Returns the largest of LB0 to LB3, and where it comes from.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  if graph.num_ops == 0:
    return LowerBound(0.0, "longest path", "no ops")
  graph = with_pins_grouped(graph)
  pin = graph.group_pin[graph.group][:, None]
  elsewhere = (pin != FREE) & (pin != np.arange(cluster.num_devices))
  times = np.where(elsewhere, np.inf, graph.times_on(cluster.types))
  fastest = np.ascontiguousarray(times.min(axis=1))
  heads, first_ops = _path_heads(graph, fastest)
  tails, _ = _path_tails(graph, fastest)
  bounds = [
    _longest_path(graph, heads, first_ops),
    _total_work(graph, cluster, times),
    _serial_group(graph, cluster, times, heads, tails),
    _communication_aware(graph, cluster, fastest),
  ]
  return max(bounds, key=lambda bound: bound.us)


def with_pins_grouped(graph: OpGraph) -> OpGraph:
  """Returns the graph with all ops that are pinned to one device as a group."""
  pin = graph.group_pin[graph.group]
  if (pin == FREE).all():
    return graph
  label = np.where(pin == FREE, graph.group, graph.num_groups + pin)
  group = dense_groups(label, graph.num_ops)
  return dataclasses.replace(graph, group=group).with_order(graph.order)


def _longest_path(graph, heads, first_ops) -> LowerBound:
  """LB0: the longest chain of ops, each on its fastest device."""
  last = _first_largest(graph, heads)
  return LowerBound(
    float(heads[last]),
    "longest path",
    f"{graph.names[first_ops[last]]} ... {graph.names[last]}",
  )


def _first_largest(graph, values) -> int:
  """The op with the largest value, the first of them in topological order."""
  return int(graph.order[np.argmax(values[graph.order])])


def _total_work(graph, cluster, times) -> LowerBound:
  """LB1: total work over total speed of the processors.

  For any weights y >= 0, the ops take at least `W = sum_i min_p y_p t_ip` of
  all processors' weighted time, `t_ip` being the least time of op i on a device
  of processor p. That time ends with the makespan T; on a processor whose
  devices are all dispatched to, it begins `d_p` later and ends `d_p` earlier.
  So `W <= sum_p y_p max(0, T - 2 d_p)`. Weights are equal, or in proportion to
  the speeds, which gives work over total speed when speeds are uniform. A
  pinned op takes for ever elsewhere, which says nothing of speeds.
  """
  num_processors = cluster.num_processors
  on = [cluster.processor == p for p in range(num_processors)]
  unpinned, times = (
    np.stack([x[:, devices].min(axis=1) for devices in on], axis=1)
    for x in (graph.times_on(cluster.types), times)
  )
  overhead_us = 2 * np.array([cluster.dispatch_us[x].min() for x in on])
  # Exact sums: the bound neither depends on how the ops were listed, nor ends
  # up above a perfectly balanced plan for want of a digit.
  work = math.fsum(times.min(axis=1))
  bound = _least_span(work, np.ones(num_processors), overhead_us)
  totals = np.array([math.fsum(column) for column in unpinned.T])
  if (totals > 0).all():
    speeds = totals.min() / totals
    weighted = math.fsum((times * speeds).min(axis=1))
    bound = max(bound, _least_span(weighted, speeds, overhead_us))
  sharers = f"{cluster.num_devices} devices"
  if num_processors < cluster.num_devices:
    sharers = f"the {num_processors} processors of {sharers}"
    if num_processors == 1:
      sharers = f"the one processor of {cluster.num_devices} devices"
  return LowerBound(bound, "total work", f"all ops, shared by {sharers}")


def _least_span(work, speeds, overhead_us) -> float:
  """Returns the least T with `work <= sum_p speeds_p max(0, T - overhead_p)`.

  Any subset of the processors gives a T that is at least that; the right one is
  among those of least overhead.
  """
  by_overhead = np.argsort(overhead_us, kind="stable")
  spans = []
  for count in range(1, len(speeds) + 1):
    first = by_overhead[:count]
    lost = math.fsum(speeds[first] * overhead_us[first])
    spans.append((work + lost) / math.fsum(speeds[first]))
  return min(spans)


def _serial_group(graph, cluster, times, heads, tails) -> LowerBound:
  """LB2: a group's ops run one after another on one device.

  Nothing of the group starts before the least head of its ops, nor before its
  device's dispatch; after its end the least tail is still to come, and the
  client hears of the end no earlier than the device's dispatch after it.
  """
  fastest = times.min(axis=1)
  num_groups = graph.num_groups
  before = np.full(num_groups, np.inf)
  after = np.full(num_groups, np.inf)
  np.minimum.at(before, graph.group, heads - fastest)
  np.minimum.at(after, graph.group, tails - fastest)
  dispatch_us = cluster.dispatch_us
  bounds = (
    np.maximum(before[:, None], dispatch_us)
    + graph.sum_by_group(times)
    + np.maximum(after[:, None], dispatch_us)
  ).min(axis=1)
  group = graph.group[_first_largest(graph, bounds[graph.group])]
  members = graph.order[graph.group[graph.order] == group]
  return LowerBound(
    float(bounds[group]),
    "serial group",
    f"the {len(members)} ops that share a device with"
    f" {graph.names[members[0]]}",
  )


def _communication_aware(graph, cluster, fastest) -> LowerBound:
  """LB3: heads and tails that pay for communication or for sharing a device.

  The predecessors of an op that share its device run there one after another;
  every other pays at least its transfer. Whichever of them share, the op starts
  no earlier than the best trade between the two. Devices that share a processor
  pay for transfers as others do.
  """
  source, target, cost = cheapest_transfers(graph, cluster)
  rank = graph.rank
  heads = _aware_heads(graph.order, fastest, source, target, cost, rank)
  tails = _aware_heads(
    np.ascontiguousarray(graph.order[::-1]),
    fastest,
    target,
    source,
    cost,
    -rank,
  )
  through = heads + tails - fastest
  op = _first_largest(graph, through)
  return LowerBound(
    float(through[op]),
    "communication-aware path",
    f"the paths through {graph.names[op]}",
  )


def cheapest_transfers(graph, cluster):
  """Returns pairs of joined ops and the least time their tensors can take.

  If the two are apart, the second starts no earlier than this after the first
  has ended: all tensors have arrived, and its processor has worked for all of
  them since.
  """
  source, target, pair_of_edge = graph.op_pairs
  d = cluster.num_devices
  if d == 1:
    return source, target, np.full(len(source), np.inf)
  apart = ~np.eye(d, dtype=bool)
  latency_us = cluster.latency_us[apart].min()
  us_per_byte = cluster.us_per_byte[apart].min()
  each = latency_us + graph.tensor_bytes[graph.edge_tensor] * us_per_byte
  cost = np.zeros(len(source))
  if cluster.channel == "parallel":
    np.maximum.at(cost, pair_of_edge, each)
  else:  # tensors for one device follow each other through one channel
    np.add.at(cost, pair_of_edge, each)
  receive_us = cluster.receive_us[apart].min()
  receive_us_per_byte = cluster.receive_us_per_byte[apart].min()
  each = (
    receive_us + graph.tensor_bytes[graph.edge_tensor] * receive_us_per_byte
  )
  return (
    source,
    target,
    np.maximum(cost, np.bincount(pair_of_edge, each, len(source))),
  )


@compiled
def _longest(order, offsets, other, fastest, rank):
  """Longest path to each op, by fastest times, and the path's first op."""
  length = fastest.copy()
  first = np.arange(len(order))
  for op in order:
    for i in range(offsets[op], offsets[op + 1]):
      through = length[other[i]] + fastest[op]
      origin = first[other[i]]
      if through > length[op] or (
        through == length[op] and rank[origin] < rank[first[op]]
      ):
        length[op] = through
        first[op] = origin
  return length, first


def _path_heads(graph, fastest):
  sources = graph.edge_source[graph.input_edges]
  return _longest(
    graph.order, graph.input_offsets, sources, fastest, graph.rank
  )


def _path_tails(graph, fastest):
  # Edges are sorted by tensor, so by producer: its edges are together.
  offsets = graph.consumer_offsets[graph.tensor_offsets]
  order = np.ascontiguousarray(graph.order[::-1])
  return _longest(order, offsets, graph.edge_op, fastest, graph.rank)


def _aware_heads(order, fastest, source, target, cost, rank) -> np.ndarray:
  """Returns the earliest finish of each op that LB3 allows."""
  by_target = np.lexsort((rank[source], target))
  counts = np.bincount(target, minlength=len(order))
  offsets = np.concatenate([[0], np.cumsum(counts)])
  return _aware_heads_loop(
    order, fastest, source[by_target], cost[by_target], offsets
  )


@compiled
def _aware_heads_loop(order, fastest, source, cost, offsets):
  head = np.zeros(len(order))
  for op in order:
    first, last = offsets[op], offsets[op + 1]
    num = last - first
    remote = np.empty(num)  # finish at the source, plus the transfer
    for i in range(num):
      remote[i] = head[source[first + i]] + cost[first + i]
    by_remote = np.argsort(-remote)
    best = remote[by_remote[0]] if num > 0 else 0.0
    # Let the first k share the device: those that would arrive last.
    releases = np.empty(min(num, _MAX_PREDECESSORS))
    works = np.empty(min(num, _MAX_PREDECESSORS))
    shared = 0.0
    for k in range(len(releases)):
      p = fastest[source[first + by_remote[k]]]
      release = head[source[first + by_remote[k]]] - p
      i = k  # keep sorted by release
      while i > 0 and releases[i - 1] > release:
        releases[i], works[i] = releases[i - 1], works[i - 1]
        i -= 1
      releases[i], works[i] = release, p
      shared = 0.0
      for j in range(k + 1):
        shared = max(shared, releases[j]) + works[j]
      others = remote[by_remote[k + 1]] if k + 1 < num else 0.0
      best = min(best, max(shared, others))
      if shared >= others:
        break
    if num > len(releases) and shared < best:
      best = shared  # the rest, unexamined, might share for free
    head[op] = fastest[op] + best
  return head
