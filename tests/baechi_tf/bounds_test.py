"""Bounds against every schedule of tiny graphs, and the formulas themselves."""

import itertools
import math

import numpy as np
import pytest

from baechi_tf.bounds import check_memory
from baechi_tf.bounds import lower_bound
from baechi_tf.bounds import LowerBound
from baechi_tf.bounds.relaxations import relaxed_bound
from baechi_tf.cluster import CHANNELS
from baechi_tf.op_graph import CONTROL
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def assignments(graph, num_devices):
  """Every device of every op that keeps groups together."""
  for of_group in itertools.product(
    range(num_devices), repeat=graph.num_groups
  ):
    yield np.array(of_group, np.int64)[graph.group]


class Search:
  """The least makespan over all placements and orders of ops and transfers.

  For one placement, ops and transfers are jobs: each takes some resources for
  some time after others have ended. Some best schedule arises from appending
  jobs in the order of their starts, each as early as it can be.
  """

  def __init__(self, graph, cluster):
    self.best = math.inf
    for device in assignments(graph, cluster.num_devices):
      self.durations, self.resources, self.before = jobs(graph, cluster, device)
      self.free = dict.fromkeys(itertools.chain(*self.resources.values()), 0.0)
      self.extend({}, 0.0)

  def extend(self, finish, latest_start):
    if len(finish) == len(self.durations):
      self.best = min(self.best, max(finish.values(), default=0.0))
      return
    for job, duration in self.durations.items():
      if job in finish or any(x not in finish for x in self.before[job]):
        continue
      start = max(
        [0.0]
        + [finish[x] for x in self.before[job]]
        + [self.free[x] for x in self.resources[job]]
      )
      if start < latest_start or start + duration >= self.best:
        continue
      kept = {x: self.free[x] for x in self.resources[job]}
      for x in kept:
        self.free[x] = start + duration
      self.extend({**finish, job: start + duration}, start)
      self.free.update(kept)


def jobs(graph, cluster, device):
  """Durations, resources and predecessors of all ops and transfers."""
  times = graph.times_on(cluster.types)
  durations, resources, before = {}, {}, {}
  for op, k in enumerate(device.tolist()):
    durations["op", op] = float(times[op, k])
    resources["op", op] = [("device", k)]
    before["op", op] = set()
  for tensor, op in zip(
    graph.edge_tensor.tolist(), graph.edge_op.tolist(), strict=True
  ):
    source = int(graph.tensor_op[tensor])
    a, b = int(device[source]), int(device[op])
    if a == b:
      before["op", op].add(("op", source))
      continue
    job = ("transfer", tensor, b)
    before["op", op].add(job)
    before[job] = {("op", source)}
    link = cluster.links.get((min(a, b), max(a, b)), cluster.link)
    size = int(graph.tensor_bytes[tensor])
    durations[job] = link.latency_us + size / link.bytes_per_us
    resources[job] = {
      "half_duplex": [("channel", a), ("channel", b)],
      "full_duplex": [("send", a), ("receive", b)],
      "parallel": [],
    }[cluster.channel]
  return durations, resources, before


def a_case(seed, channel, num_ops, num_devices):
  rng = np.random.default_rng(seed)
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = contracts.random_graph(
    rng,
    num_ops,
    density=rng.choice([0.3, 0.5]),
    device_types=types,
    group_share=0.3,
    max_size=int(rng.choice([4, 16])),
  )
  return graph, contracts.random_cluster(
    rng, num_devices, channel=channel, types=types
  )


@pytest.mark.parametrize("channel", CHANNELS)
def test_lower_bound_holds_for_every_schedule(channel):
  tight = 0
  for seed in range(40):
    graph, cluster = a_case(seed, channel, num_ops=4, num_devices=2)
    best = Search(graph, cluster).best
    bound = lower_bound(graph, cluster).us
    assert bound <= best + 1e-9, seed
    tight += bound >= best - 1e-9
  assert tight > 10  # and it is not idle talk


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("num_devices", [2, 3])
def test_lower_bound_holds_for_every_simulated_placement(channel, num_devices):
  for seed in range(12):
    graph, cluster = a_case(
      seed, channel, 6 if num_devices == 2 else 5, num_devices
    )
    best = min(
      simulate(graph, cluster, device).makespan_us
      for device in assignments(graph, num_devices)
    )
    assert lower_bound(graph, cluster).us <= best + 1e-9, seed


def linear_extensions(graph):
  parents = {
    op: set(graph.edge_source[graph.edge_op == op].tolist())
    for op in range(graph.num_ops)
  }
  for order in itertools.permutations(range(graph.num_ops)):
    if all(parents[op] <= set(order[:i]) for i, op in enumerate(order)):
      yield np.array(order)


def least_simulated_us(graph, cluster):
  """The least makespan over all placements and orders of ops."""
  orders = list(linear_extensions(graph))
  return min(
    simulate(graph, cluster, device, policy="strict", order=order).makespan_us
    for device in assignments(graph, cluster.num_devices)
    for order in orders
  )


@pytest.mark.parametrize("channel", CHANNELS)
def test_lower_bound_holds_with_work_dispatch_and_shared_processors(channel):
  tight = 0
  for seed in range(40):
    graph, cluster = a_case(seed, channel, 4, 2 + seed % 4 // 3)
    cluster = contracts.costly(np.random.default_rng(seed), cluster)
    best = least_simulated_us(graph, cluster)
    bound = lower_bound(graph, cluster).us
    assert bound <= best + 1e-9, seed
    tight += bound >= best - 1e-9
  assert tight > 10


def test_lower_bound_devices_of_one_processor_share_the_work():
  graph = contracts.independent(4, time_us=2.0)
  cluster = make_cluster(3, processors=["p", "p", "p"])
  bound = lower_bound(graph, cluster)
  assert (bound.us, bound.name) == (8.0, "total work")
  assert bound.witness == "all ops, shared by the one processor of 3 devices"
  bound = lower_bound(graph, make_cluster(3, processors=["p", "", "p"]))
  assert bound.us == 4.0
  assert bound.witness == "all ops, shared by the 2 processors of 3 devices"


@pytest.mark.parametrize(
  ("dispatch_us", "expected", "num_away"),
  [
    (0.0, 6.0, 6),  # 12 us on two devices
    (1.0, 7.0, 5),  # 7 on the client, 5 from 1 to 6 on the other
    (6.0, 12.0, 0),  # the client would hear too late
    (50.0, 12.0, 0),
  ],
)
def test_lower_bound_dispatch_leaves_less_time(dispatch_us, expected, num_away):
  graph = contracts.independent(12)
  cluster = make_cluster(2, dispatch_us=dispatch_us)
  assert lower_bound(graph, cluster).us == expected
  device = np.arange(12) < num_away
  assert simulate(graph, cluster, device).makespan_us == expected


def test_lower_bound_group_pays_for_its_devices_dispatch():
  graph = make_graph(
    [Op("a", (9.0, 1.0), group="g"), Op("b", (9.0, 1.0), group="g")],
    device_types=("CPU", "GPU"),
  )
  cluster = make_cluster(2, types=("CPU", "GPU"), dispatch_us=3.0)
  bound = lower_bound(graph, cluster)
  assert (bound.us, bound.name) == (8.0, "serial group")
  assert least_simulated_us(graph, cluster) == 8.0


def test_lower_bound_receiver_works_longer_than_the_transfer():
  graph = make_graph(
    [Op("a", 10.0, (1,)), Op("b", 10.0, (1,)), Op("c", 10.0)],
    [("a", 0, "c"), ("b", 0, "c")],
  )
  # a beside c; b's tensor is there at once, and takes 4 us of c's processor.
  cluster = make_cluster(2, receive_us=4.0, bytes_per_us=math.inf)
  bound = lower_bound(graph, cluster)
  assert (bound.us, bound.name) == (24.0, "communication-aware path")
  assert least_simulated_us(graph, cluster) == 24.0


def one_machine(jobs):
  """When one machine is done with (release, work) pairs."""
  now = 0.0
  for release, work in sorted(jobs):
    now = max(now, release) + work
  return now


def aware_heads(times, edges):
  """LB3's f, literally; `edges` maps (u, v) to the least cost, u < v."""
  head = {}
  for v in range(len(times)):
    before = sorted(
      (u for u, w in edges if w == v),
      key=lambda u: -(head[u] + edges[u, v]),
    )
    choices = []
    for k in range(len(before) + 1):
      shared = one_machine([(head[u] - times[u], times[u]) for u in before[:k]])
      away = head[before[k]] + edges[before[k], v] if k < len(before) else 0.0
      choices.append(max(shared, away))
    head[v] = times[v] + min(choices)
  return head


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("seed", range(30))
def test_relaxed_bound_is_the_largest_of_the_formulas(channel, seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 12, density=0.2, group_share=0.3)
  latency_us, num_devices = 2.0, 3
  cluster = make_cluster(num_devices, channel=channel, latency_us=latency_us)
  # In topological order, so that edges go from smaller to larger numbers.
  n = graph.num_ops
  times = graph.compute_time_us[graph.order, 0].tolist()
  group = graph.group[graph.order].tolist()
  edges = {}
  for tensor, op in zip(graph.edge_tensor, graph.edge_op, strict=True):
    pair = int(graph.rank[graph.tensor_op[tensor]]), int(graph.rank[op])
    each = latency_us + graph.tensor_bytes[tensor]
    if channel == "parallel":
      edges[pair] = max(edges.get(pair, 0.0), each)
    else:
      edges[pair] = edges.get(pair, 0.0) + each
  backward = {(n - 1 - v, n - 1 - u): c for (u, v), c in edges.items()}

  head, tail = {}, {}
  for v in range(n):
    head[v] = times[v] + max((head[u] for u, w in edges if w == v), default=0)
  for v in reversed(range(n)):
    tail[v] = times[v] + max((tail[w] for u, w in edges if u == v), default=0)
  expected = [max(head[v] + tail[v] - times[v] for v in range(n))]  # LB0
  expected.append(sum(times) / num_devices)  # LB1
  for g in set(group):  # LB2
    inside = [v for v in range(n) if group[v] == g]
    expected.append(
      min(head[v] - times[v] for v in inside)
      + sum(times[v] for v in inside)
      + min(tail[v] - times[v] for v in inside)
    )
  head = aware_heads(times, edges)
  tail = aware_heads(times[::-1], backward)
  tail = {v: tail[n - 1 - v] for v in range(n)}
  expected.append(max(head[v] + tail[v] - times[v] for v in range(n)))  # LB3
  assert relaxed_bound(graph, cluster).us == pytest.approx(max(expected))


def test_lower_bound_of_two_dear_children_is_their_optimum():
  # The raw relaxed program says 52 here: that is no bound.
  graph = make_graph(
    [Op("a", 1.0, (100,)), Op("b", 1.0), Op("c", 1.0)],
    [("a", 0, "b"), ("a", 0, "c")],
  )
  cluster = make_cluster(2)
  assert Search(graph, cluster).best == 3
  bound = lower_bound(graph, cluster)
  assert bound.us == 3
  assert bound.name == "communication-aware path"
  assert bound.witness == "the paths through a"


def test_lower_bound_chain_is_its_length():
  bound = lower_bound(contracts.chain(5, time_us=2.0), make_cluster(3))
  assert bound == LowerBound(10.0, "longest path", "op000 ... op004")


def test_lower_bound_witness_is_one_chain_in_any_listing():
  # Two chains are equally long: the ends named belong to the same one.
  graph = contracts.two_chains(3, size=1)
  for seed in range(5):
    other = contracts.relisted(graph, np.random.default_rng(seed))
    assert lower_bound(other, make_cluster(3)).witness == "a000 ... a002"


@pytest.mark.parametrize("seed", range(30))
def test_lower_bound_witness_does_not_depend_on_the_listing(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 15, group_share=0.4, max_time=3)
  other = contracts.relisted(graph, rng)
  cluster = make_cluster(4, latency_us=seed % 3)
  assert lower_bound(other, cluster) == lower_bound(graph, cluster)


def test_lower_bound_independent_ops_share_the_devices():
  bound = lower_bound(contracts.independent(7, time_us=2.0), make_cluster(2))
  assert (bound.us, bound.name) == (7.0, "total work")
  assert bound.witness == "all ops, shared by 2 devices"


@pytest.mark.parametrize("num_devices", [3, 7])
def test_lower_bound_total_work_is_exact_in_any_listing(num_devices):
  # A third of each time is no binary number, and yet: a third of the sum.
  rng = np.random.default_rng(0)
  times = rng.integers(1, 1000, 210).astype(float)
  expected = times.sum() / num_devices
  for _ in range(5):
    graph = make_graph(
      [Op(f"op{i}", time) for i, time in enumerate(rng.permutation(times))]
    )
    assert lower_bound(graph, make_cluster(num_devices)).us == expected


def test_lower_bound_serial_group_waits_for_heads_and_tails():
  # 2 before, then 3 + 4 on one device, then 5: 14. The longest path is 11.
  graph = make_graph(
    [
      Op("first", 2.0, (0,)),
      Op("g1", 3.0, (0,), group="g"),
      Op("g2", 4.0, (0,), group="g"),
      Op("last", 5.0),
    ],
    [
      ("first", CONTROL, "g1"),
      ("first", CONTROL, "g2"),
      ("g1", CONTROL, "last"),
      ("g2", CONTROL, "last"),
    ],
  )
  bound = lower_bound(graph, make_cluster(4, bytes_per_us=math.inf))
  assert (bound.us, bound.name) == (14.0, "serial group")
  assert "2 ops that share a device with g1" in bound.witness


def test_lower_bound_unequal_devices_work_in_proportion_to_their_speeds():
  # One op of four on the CPU (3), the rest on the GPU (3 * 1): 3 is optimal.
  graph = make_graph(
    [Op(name, (3.0, 1.0)) for name in "abcd"], device_types=("CPU", "GPU")
  )
  cluster = make_cluster(2, types=("CPU", "GPU"))
  assert lower_bound(graph, cluster).us == pytest.approx(3.0)
  assert Search(graph, cluster).best == 3


def test_lower_bound_one_device_is_the_sum_of_all_times():
  for seed in range(10):
    graph = contracts.random_graph(np.random.default_rng(seed), 12)
    total = graph.compute_time_us.sum()
    assert lower_bound(graph, make_cluster(1)).us == total


def test_lower_bound_more_predecessors_than_are_looked_at_still_holds():
  width = 200
  graph = contracts.fork_join(width, size=1000)
  one_device = simulate(graph, make_cluster(2), [0] * (width + 2))
  assert one_device.makespan_us == width + 2
  assert width / 2 < lower_bound(graph, make_cluster(2)).us <= width + 2
  assert lower_bound(graph, make_cluster(1)).us == width + 2


def test_lower_bound_of_nothing_is_zero():
  bound = lower_bound(make_graph([]), make_cluster(2))
  assert bound.us == 0.0
  assert bound.gap(0.0) == 0.0


def test_gap_is_relative_to_the_bound():
  assert LowerBound(4.0, "", "").gap(5.0) == 0.25


def test_lower_bound_unknown_device_type_is_an_error():
  graph = make_graph([Op("a", (3.0,))], device_types=("GPU",))
  with pytest.raises(ValueError, match="no compute times .* 'CPU'"):
    lower_bound(graph, make_cluster(1))


def test_check_memory_passes_what_just_fits():
  graph = make_graph(
    [Op("a", 1.0, (2,), persistent=3, temporary=4), Op("b", persistent=9)]
  )
  check_memory(graph, make_cluster(2, memory=9))
  check_memory(make_graph([]), make_cluster(1))


def test_check_memory_too_much_state_error_names_the_largest():
  graph = make_graph([Op("a", persistent=3), Op("big", persistent=6)])
  with pytest.raises(
    InfeasiblePlacementError,
    match="needs 9 bytes .* together have 8; the largest .* 'big' with 6 bytes",
  ):
    check_memory(graph, make_cluster(2, memory=4))


def test_check_memory_too_large_op_error_names_it():
  graph = make_graph(
    [Op("a", persistent=3), Op("big", 1.0, (2,), persistent=3, temporary=4)]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"op 'big' .*: d0 would need 9 bytes \(3 persistent \+ 2 outputs \+ 4"
    r" temporary\) and has 8 left; d1 would need 9 bytes",
  ):
    check_memory(graph, make_cluster(2, memory=8))


def test_check_memory_too_large_group_error_names_its_largest_op():
  graph = make_graph(
    [
      Op("a", persistent=3, group="g"),
      Op("big", persistent=4, group="g"),
      Op("c", temporary=2, group="g"),
    ]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"op 'big' \(with 2 ops .*: d0 would need 9 bytes \(7 persistent \+ 2"
    r" temporary\)",
  ):
    check_memory(graph, make_cluster(2, memory=8))


@pytest.mark.parametrize(
  ("num_devices", "memory"),
  [(2, 9), (8, 4)],  # too little for all, too little for any
)
def test_check_memory_equal_culprits_error_names_the_first(num_devices, memory):
  ops = [Op(name, persistent=5) for name in "abcd"]
  cluster = make_cluster(num_devices, memory=memory)
  for listed in (ops, ops[::-1]):
    with pytest.raises(InfeasiblePlacementError, match="op 'a'"):
      check_memory(make_graph(listed), cluster)


@pytest.mark.parametrize("seed", range(30))
def test_check_memory_error_means_that_no_placement_fits(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 5, group_share=0.4)
  cluster = make_cluster(2, memory=int(rng.integers(20, 60)))
  try:
    check_memory(graph, cluster)
  except InfeasiblePlacementError:
    for device in assignments(graph, 2):
      peak = simulate(graph, cluster, device).peak_memory_bytes
      assert (peak > cluster.memory_bytes).any()
