"""The event loop against a literal transcription of its stated rules."""

import math

import numpy as np
import pytest

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Link
from baechi_tf.event_loop import POLICIES
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


class Reference:
  """One step, by the rules, each looked up afresh at every instant."""

  def __init__(self, graph, cluster, device, policy, order):
    self.graph, self.cluster, self.device = graph, cluster, list(device)
    self.policy, self.order = policy, list(order)
    times = graph.times_on(cluster.types)
    self.duration = [float(times[i, k]) for i, k in enumerate(self.device)]
    self.edges = list(
      zip(graph.edge_tensor.tolist(), graph.edge_op.tolist(), strict=True)
    )
    self.start, self.finish, self.ended = {}, {}, set()
    self.round = 0
    self.known = {}  # a transfer, or a device that has begun -> in which round
    # Op -> in which round it became ready, negative if a local op did it.
    self.ready_since = {}
    self.transfers = {}  # (tensor, to) -> (begin, end), in booking order
    self.works = {}  # (is receiving, tensor, to) -> (when, device, work)
    self.taken_until = [0.0] * cluster.num_processors
    now = 0.0
    while now < math.inf:
      while self.end_and_start(now):
        pass
      later = [t for t in self.instants() if t > now]
      now = min(later, default=math.inf)

  def instants(self):
    yield from self.finish.values()
    yield from self.taken_until
    yield from self.cluster.dispatch_us.tolist()
    for _, end in self.transfers.values():
      yield end
    for at, _, _ in self.works.values():
      yield at

  def end_and_start(self, now):
    """Returns whether anything happened."""
    done = [x for x in self.start if self.finish[x] <= now]
    done = [x for x in done if x not in self.ended]
    for op in sorted(done, key=lambda x: self.graph.rank[x]):
      self.ended.add(op)
      for tensor in np.flatnonzero(self.graph.tensor_op == op).tolist():
        wanted = {self.device[to] for x, to in self.edges if x == tensor}
        for target in sorted(wanted - {self.device[op]}):
          self.send(tensor, self.device[op], target, now)
    for key in sorted(self.works):
      if self.works[key][0] <= now:
        self.take(now, *self.works.pop(key)[1:])
    self.round += 1
    for key, (_, end) in self.transfers.items():
      if end <= now:
        self.known.setdefault(key, self.round)
    for k, begin in enumerate(self.cluster.dispatch_us.tolist()):
      if begin <= now:
        self.known.setdefault(k, self.round)
    before = len(self.start)
    for op in self.order:
      if op not in self.ready_since and self.is_ready(op, now):
        made_so_locally = all(
          self.known[x] < self.round for x in self.awaited(op)
        )
        self.ready_since[op] = self.round * (-1 if made_so_locally else 1)
    for p in range(self.cluster.num_processors):
      self.start_one(p, now)
    return bool(done) or len(self.start) > before

  def running(self, p):
    for op in self.start:
      if self.processor(op) == p and op not in self.ended:
        return op
    return None

  def processor(self, op):
    return self.cluster.processor[self.device[op]]

  def start_one(self, p, now):
    if self.running(p) is not None or self.taken_until[p] > now:
      return
    waiting = [x for x in self.order if self.processor(x) == p]
    waiting = [x for x in waiting if x not in self.start]
    if self.policy == "strict":
      waiting = waiting[:1]
    waiting = [x for x in waiting if x in self.ready_since]
    if self.policy == "executor":
      local = [x for x in waiting if self.ready_since[x] < 0]
      waiting.sort(key=lambda x: self.ready_since[x])  # stable
      if local:  # the newest, of several the last in the order
        newest = self.ready_since[waiting[0]]
        waiting = [x for x in local if self.ready_since[x] == newest][-1:]
    if waiting:
      self.start[waiting[0]] = now
      self.finish[waiting[0]] = now + self.duration[waiting[0]]

  def take(self, now, k, work):
    p = self.cluster.processor[k]
    op = self.running(p)
    if op is not None:
      self.finish[op] += work
    else:
      self.taken_until[p] = max(now, self.taken_until[p]) + work

  def awaited(self, op):
    """Its device's beginning, and the transfers that it needs."""
    k = self.device[op]
    yield k
    for tensor, to in self.edges:
      if to == op and self.device[self.graph.tensor_op[tensor]] != k:
        yield tensor, k

  def is_ready(self, op, now):
    if now < self.cluster.dispatch_us[self.device[op]]:
      return False
    for tensor, to in self.edges:
      if to != op:
        continue
      source = int(self.graph.tensor_op[tensor])
      if source not in self.ended:
        return False
      if self.device[source] != self.device[op]:
        if self.transfers[tensor, self.device[op]][1] > now:
          return False
    return True

  def send(self, tensor, source, target, now):
    begin = now
    for (other, to), (_, end) in self.transfers.items():
      sender = self.device[self.graph.tensor_op[other]]
      if contracts.excludes(
        self.cluster.channel, (sender, to), (source, target)
      ):
        begin = max(begin, end)
    link = contracts.link_between(self.cluster, source, target)
    size = int(self.graph.tensor_bytes[tensor])
    end = begin + link.latency_us + size / link.bytes_per_us
    self.transfers[tensor, target] = (begin, end)
    work = link.send_us + size * link.send_us_per_byte
    if work > 0:
      self.works[False, tensor, target] = (begin, source, work)
    work = link.receive_us + size * link.receive_us_per_byte
    if work > 0:
      self.works[True, tensor, target] = (max(begin, end - work), target, work)

  def makespan(self):
    ends = (
      end + self.cluster.dispatch_us[self.device[op]]
      for op, end in self.finish.items()
    )
    return max(ends, default=0.0)


def a_case(seed, channel):
  """A random graph on a random cluster, placed at random, and an order.

  Half of the cases have transfers that take processor time, dispatch and shared
  processors. The order is one that the graph allows, and not its own.
  """
  rng = np.random.default_rng(seed)
  graph, cluster, device = contracts.placed_at_random(
    rng, seed, channel, with_work=seed % 4 > 1
  )
  return graph, cluster, device, a_linear_extension(rng, graph)


def a_linear_extension(rng, graph):
  order = []
  parents = [set() for _ in range(graph.num_ops)]
  for source, op in zip(graph.edge_source, graph.edge_op, strict=True):
    parents[op].add(int(source))
  while len(order) < graph.num_ops:
    allowed = [
      x for x, p in enumerate(parents) if x not in order and p <= set(order)
    ]
    order.append(int(rng.choice(allowed)))
  return np.array(order)


def same_times(simulation, other):
  for name in (
    "start_time_us",
    "finish_time_us",
    "transfer_start_us",
    "transfer_finish_us",
    "order",
  ):
    np.testing.assert_array_equal(
      getattr(simulation, name), getattr(other, name)
    )
  assert simulation.makespan_us == other.makespan_us


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_random_graphs_agree_with_the_rules(channel, policy):
  for seed in range(100):
    graph, cluster, device, order = a_case(seed, channel)
    if seed % 3 == 0:
      order = graph.order
    expected = Reference(graph, cluster, device, policy, order)
    simulation = simulate(graph, cluster, device, policy=policy, order=order)
    ops = range(graph.num_ops)
    assert simulation.start_time_us.tolist() == [expected.start[x] for x in ops]
    assert simulation.finish_time_us.tolist() == [
      expected.finish[x] for x in ops
    ]
    assert simulation.order.tolist() == list(expected.start)
    assert simulation.makespan_us == expected.makespan()
    transfers = zip(
      simulation.transfer_tensor.tolist(),
      simulation.transfer_target.tolist(),
      simulation.transfer_start_us.tolist(),
      simulation.transfer_finish_us.tolist(),
      strict=True,
    )
    assert {(x, k): times for x, k, *times in transfers} == {
      key: list(times) for key, times in expected.transfers.items()
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_strict_replay_of_a_simulation_gives_the_same_times(policy):
  for seed in range(120):
    channel = CHANNELS[seed % 3]
    graph, cluster, device, order = a_case(seed, channel)
    simulation = simulate(graph, cluster, device, policy=policy, order=order)
    replay = simulate(
      graph, cluster, device, policy="strict", order=simulation.order
    )
    same_times(simulation, replay)


def test_processor_time_is_op_time_plus_what_transfers_take():
  for seed in range(2, 120, 4):
    graph, cluster, device, _ = a_case(seed, CHANNELS[seed % 3])
    simulation = simulate(graph, cluster, device)
    durations = graph.times_on(cluster.types)[np.arange(graph.num_ops), device]
    delays = simulation.finish_time_us - simulation.start_time_us - durations
    assert (delays >= 0).all()
    sent = simulation.send_work_us.sum() + simulation.receive_work_us.sum()
    assert delays.sum() <= sent == simulation.transfer_work_us.sum()
    np.testing.assert_array_equal(
      simulation.busy_time_us,
      np.bincount(device, durations, cluster.num_devices),
    )
    # All that a processor did lies between the step's begin and its end.
    used = np.bincount(
      cluster.processor, simulation.busy_time_us + simulation.transfer_work_us
    )
    assert (used <= simulation.makespan_us).all()


def starts(simulation, graph):
  return dict(zip(graph.names, simulation.start_time_us.tolist(), strict=True))


def finishes(simulation, graph):
  return dict(zip(graph.names, simulation.finish_time_us.tolist(), strict=True))


# One tensor of 8 bytes from a on d0, at 1, to c on d1; b keeps d0 busy, d d1.
ONE_SEND = make_graph(
  [Op("a", 1.0, (8,)), Op("b", 10.0), Op("c", 2.0), Op("d", 6.0)],
  [("a", 0, "c")],
)
SENT_AWAY = [0, 0, 1, 1]


def test_sender_that_runs_an_op_ends_it_later():
  cluster = make_cluster(2, send_us=2.0, send_us_per_byte=0.25)
  simulation = simulate(ONE_SEND, cluster, SENT_AWAY)
  # Sent 1-9; all that ends ends before b starts: its 10 us begin after the 4.
  assert finishes(simulation, ONE_SEND) == {"a": 1, "b": 15, "c": 11, "d": 6}
  assert starts(simulation, ONE_SEND)["b"] == 5
  assert simulation.send_work_us.tolist() == [4]
  assert simulation.transfer_work_us.tolist() == [4, 0]
  assert simulation.busy_time_us.tolist() == [11, 8]
  # With a on d1's other side: while d0 runs b, a's tensor comes at 1 from d1.
  cluster = make_cluster(2, receive_us=2.0, receive_us_per_byte=0.25)
  simulation = simulate(ONE_SEND, cluster, [1, 0, 0, 1])
  # Sent 1-9, received 5-9, while b runs 0-10: it ends at 14, then c.
  assert finishes(simulation, ONE_SEND) == {"a": 1, "b": 14, "c": 16, "d": 7}
  assert simulation.receive_work_us.tolist() == [4]
  assert simulation.transfer_work_us.tolist() == [4, 0]


def test_receiver_works_up_to_the_arrival_or_longer_than_the_transfer():
  # d runs on d1 0-6. Received from 9 - 2 = 7 on, when d1 is idle.
  cluster = make_cluster(2, receive_us=2.0)
  simulation = simulate(ONE_SEND, cluster, SENT_AWAY)
  assert finishes(simulation, ONE_SEND) == {"a": 1, "b": 11, "c": 11, "d": 6}
  # From 9 - 4 = 5 on, when d still runs: it ends at 10, and c starts then.
  cluster = make_cluster(2, receive_us=4.0)
  simulation = simulate(ONE_SEND, cluster, SENT_AWAY)
  assert finishes(simulation, ONE_SEND) == {"a": 1, "b": 11, "c": 12, "d": 10}
  # 20 us are more than the transfer takes: from 1 on, d ends at 26.
  cluster = make_cluster(2, receive_us=20.0)
  simulation = simulate(ONE_SEND, cluster, SENT_AWAY)
  assert finishes(simulation, ONE_SEND) == {"a": 1, "b": 11, "c": 28, "d": 26}


def test_idle_processor_starts_nothing_while_transfers_take_its_time():
  graph = make_graph(
    [Op("a", 1.0, (2,)), Op("b", 1.0, (2,)), Op("c", 1.0), Op("d", 5.0)],
    [("a", 0, "c"), ("b", 0, "c"), ("a", 0, "d")],
  )
  cluster = make_cluster(3, channel="parallel", receive_us=3.0)
  # Both are sent 1-3, and received from 1 on: 1-4, then 4-7.
  simulation = simulate(graph, cluster, [0, 1, 2, 2])
  assert starts(simulation, graph) == {"a": 0, "b": 0, "c": 7, "d": 8}
  # Sent at one instant: a's sender is kept from 1 to 7, by two tensors of 3.
  cluster = make_cluster(3, channel="parallel", send_us=3.0)
  simulation = simulate(graph, cluster, [0, 0, 1, 2])
  # a's two transfers: b starts at 1 + 6; c has both at 8 + 2.
  assert starts(simulation, graph) == {"a": 0, "b": 7, "c": 10, "d": 3}


def test_several_transfers_at_once_delay_the_running_op_by_all_their_work():
  graph = make_graph(
    [Op("a", 1.0, (2,)), Op("b", 1.0, (2,)), Op("c", 1.0), Op("d", 5.0)],
    [("a", 0, "c"), ("b", 0, "c")],
  )
  cluster = make_cluster(3, channel="parallel", receive_us=1.5)
  simulation = simulate(graph, cluster, [0, 1, 2, 2])
  # d runs 0-5 on d2; both tensors, sent 1-3, take 1.5 us of it.
  assert finishes(simulation, graph) == {"a": 1, "b": 1, "c": 9, "d": 8}


def test_work_is_taken_when_the_transfer_begins_not_when_its_tensor_is_ready():
  graph = make_graph(
    [
      Op("a", 1.0, (4, 4)),
      Op("b", 1.0),
      Op("c", 1.0),
      Op("d", 1.0),
    ],
    [("a", 0, "c"), ("a", 1, "d")],
  )
  cluster = make_cluster(3, send_us=1.0)
  # Full duplex: sent 1-5, then 5-9. b waits for the first only: 2-3.
  simulation = simulate(graph, cluster, [0, 0, 1, 2])
  assert simulation.transfer_start_us.tolist() == [1, 5]
  assert finishes(simulation, graph) == {"a": 1, "b": 3, "c": 6, "d": 10}


def test_op_that_ends_at_an_instant_loses_nothing_to_its_transfers():
  graph = make_graph(
    [Op("a", 2.0, (4,)), Op("b", 2.0), Op("c", 1.0)], [("a", 0, "c")]
  )
  cluster = make_cluster(2, receive_us=4.0)
  # b ends on d1 at 2, when receiving begins: only c is to come.
  simulation = simulate(graph, cluster, [0, 1, 1])
  assert finishes(simulation, graph) == {"a": 2, "b": 2, "c": 7}


def test_devices_that_share_a_processor_run_one_op_at_a_time():
  graph = contracts.independent(4, time_us=2.0)
  own = make_cluster(2)
  shared = make_cluster(2, processors=["host", "host"])
  device = [0, 1, 0, 1]
  assert simulate(graph, own, device).makespan_us == 4
  simulation = simulate(graph, shared, device)
  assert simulation.start_time_us.tolist() == [0, 2, 4, 6]
  assert simulation.busy_time_us.tolist() == [4, 4]


def test_transfer_inside_a_processor_takes_both_ends_of_it():
  graph = make_graph([Op("a", 1.0, (8,)), Op("b", 1.0)], [("a", 0, "b")])
  cluster = make_cluster(
    2, processors=["p", "p"], send_us=6.0, receive_us=5.0, bytes_per_us=1.0
  )
  # Sent 1-9: the processor is taken 1-7 and from 4 on 5 more, so until 12.
  assert simulate(graph, cluster, [0, 1]).start_time_us.tolist() == [0, 12]


def test_dispatch_delays_a_device_and_what_the_client_hears():
  graph = make_graph(
    [Op("a", 1.0, (2,)), Op("b", 1.0), Op("c", 1.0), Op("d", 1.0)],
    [("a", 0, "b")],
  )
  cluster = make_cluster(3, dispatch_us=10.0)
  # b has its input at 3; d1 begins at 10, topologically c comes first.
  simulation = simulate(graph, cluster, [0, 1, 1, 0])
  assert starts(simulation, graph) == {"a": 0, "b": 11, "c": 10, "d": 1}
  assert simulation.makespan_us == 12 + 10
  # The client is the first device; nothing is said of one without ops.
  assert simulate(graph, cluster, [0] * 4).makespan_us == 4
  assert simulate(graph, cluster, [2] * 4).makespan_us == 10 + 4 + 10
  together = make_cluster(3, dispatch_us=10.0, processors=["p", "p", ""])
  assert simulate(graph, together, [0, 1, 1, 0]).makespan_us == 4


def test_dispatch_and_a_shared_processor_wait_for_their_own_device_only():
  graph = contracts.independent(2, time_us=2.0)
  cluster = make_cluster(
    3,
    dispatch_us=3.0,
    processors=["", "p", "p"],
    links={(0, 2): Link(0.0, 1.0, dispatch_us=1.0)},
  )
  # d2 begins at 1, d1 at 3, when op001 ends: then op000 runs.
  simulation = simulate(graph, cluster, [1, 2])
  assert starts(simulation, graph) == {"op000": 3, "op001": 1}
  assert simulation.makespan_us == 3 + 2 + 3


def test_executor_goes_on_with_what_it_has_just_made_ready():
  graph = make_graph(
    [Op("a", 1.0), Op("b", 1.0), Op("c", 1.0), Op("d", 1.0), Op("e", 1.0)],
    [("a", -1, "c"), ("a", -1, "d"), ("c", -1, "e")],
  )
  executor = simulate(graph, make_cluster(1), [0] * 5, policy="executor")
  # a makes c and d ready: the last first. b was ready at the beginning.
  assert [graph.names[x] for x in executor.order] == ["a", "d", "c", "e", "b"]


def test_executor_leaves_what_a_tensor_made_ready_for_later():
  graph = make_graph(
    [Op("a", 3.0), Op("b", 1.0), Op("x", 1.0), Op("y", 1.0), Op("z", 1.0)],
    [("a", -1, "z"), ("b", -1, "x"), ("b", -1, "y")],
  )
  # x and y are ready at 1, z at 3, when d0 is free.
  executor = simulate(
    graph, make_cluster(2), [0, 1, 0, 0, 0], policy="executor"
  )
  assert starts(executor, graph) == {"a": 0, "b": 0, "z": 3, "x": 4, "y": 5}


def test_executor_breaks_ties_by_the_order():
  graph = contracts.independent(3)
  cluster = make_cluster(1)
  executor = simulate(graph, cluster, [0] * 3, policy="executor")
  assert executor.order.tolist() == [0, 1, 2]
  executor = simulate(
    graph, cluster, [0] * 3, policy="executor", order=[1, 2, 0]
  )
  assert executor.order.tolist() == [1, 2, 0]


def test_priority_goes_by_the_order_and_waits_for_nothing():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b", 1.0), Op("c", 1.0)], [("a", 0, "b")]
  )
  simulation = simulate(graph, make_cluster(2), [0, 1, 1], order=[1, 0, 2])
  assert starts(simulation, graph) == {"a": 0, "b": 5, "c": 0}


def test_strict_waits_for_the_next_op():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b", 1.0), Op("c", 1.0)], [("a", 0, "b")]
  )
  cluster = make_cluster(2)
  simulation = simulate(
    graph, cluster, [0, 1, 1], policy="strict", order=[1, 0, 2]
  )
  assert starts(simulation, graph) == {"a": 0, "b": 5, "c": 6}


def test_strict_on_a_shared_processor_goes_by_one_order():
  graph = contracts.independent(4)
  cluster = make_cluster(2, processors=["p", "p"])
  order = [3, 0, 2, 1]
  simulation = simulate(
    graph, cluster, [0, 1, 0, 1], policy="strict", order=order
  )
  assert simulation.order.tolist() == order


# a -> b and c -> d cross from one device to the other.
CROSSED = make_graph(
  [Op("a", 1.0, (1,)), Op("b", 1.0), Op("c", 1.0, (1,)), Op("d", 1.0)],
  [("a", 0, "b"), ("c", 0, "d")],
)


@pytest.mark.parametrize(
  ("order", "message"),
  [
    (
      [3, 0, 1, 2],
      "followed: 'd' needs 'c', which comes after 'b'; 'b' needs 'a', which"
      " comes after 'd'$",
    ),
    ([1, 2, 3], r"lacks op 'a'; it must list each of the 4 ops once"),
    ([0, 1, 2, 2, 3], r"repeats op 'c'; it must list"),
    ([0, 1, 2, 3, 4], r"5 entries, must be a list of the indices of 4 ops"),
    ([0, 1, 2, -1], r"lacks op 'd'"),
  ],
)
def test_strict_order_that_cannot_run_is_an_error(order, message):
  with pytest.raises(ValueError, match=message):
    simulate(
      CROSSED, make_cluster(2), [0, 1, 1, 0], policy="strict", order=order
    )


def test_strict_order_against_an_edge_of_one_device_is_an_error():
  with pytest.raises(ValueError, match="followed: 'b' needs 'a', which comes"):
    simulate(
      CROSSED, make_cluster(1), [0] * 4, policy="strict", order=[2, 1, 0, 3]
    )
  # Another policy goes round it.
  simulation = simulate(CROSSED, make_cluster(1), [0] * 4, order=[2, 1, 0, 3])
  assert simulation.order.tolist() == [2, 0, 1, 3]


def test_unknown_policy_is_an_error():
  with pytest.raises(ValueError, match="policy is 'lifo', must be one of prio"):
    simulate(CROSSED, make_cluster(1), [0] * 4, policy="lifo")
