import networkx as nx
import numpy as np
import pytest

from baechi_tf.coarsening.coplacement import coplacement_groups
from baechi_tf.coarsening.fusion import fuse
from baechi_tf.op_graph import CONTROL
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op

SEEDS = range(40)


def a_case(seed):
  """A random graph, with many ops in groups, and groups to fuse in."""
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(
    rng,
    int(rng.integers(1, 25)),
    density=rng.choice([0.08, 0.2]),
    group_share=rng.choice([0.5, 1.0]),
    device_types=("CPU", "GPU"),
  )
  return graph, coplacement_groups(graph) if seed % 2 else graph.group


def coarse_pairs(graph, coarse_op):
  pairs = set(
    zip(coarse_op[graph.edge_source], coarse_op[graph.edge_op], strict=True)
  )
  return {(a, b) for a, b in pairs if a != b}


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_never_makes_a_cycle(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  assert nx.is_directed_acyclic_graph(
    nx.DiGraph(coarse_pairs(graph, fused.coarse_op))
  )


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_keeps_every_edge_between_coarse_ops_and_no_other(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  source, target, _ = fused.graph.op_pairs
  assert set(zip(source, target, strict=True)) == coarse_pairs(
    graph, fused.coarse_op
  )


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_conserves_times_and_persistent_bytes(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  for coarse in range(fused.graph.num_ops):
    inside = fused.coarse_op == coarse
    np.testing.assert_array_equal(
      fused.graph.compute_time_us[coarse], graph.compute_time_us[inside].sum(0)
    )
    assert (
      fused.graph.persistent_bytes[coarse]
      == graph.persistent_bytes[inside].sum()
    )
  assert set(fused.coarse_op) == set(range(fused.graph.num_ops))


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_stays_inside_groups_and_keeps_them(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  together = group[:, None] == group[None, :]
  same_op = fused.coarse_op[:, None] == fused.coarse_op[None, :]
  assert together[same_op].all()
  coarse_group = fused.graph.group[fused.coarse_op]
  np.testing.assert_array_equal(
    coarse_group[:, None] == coarse_group[None, :], together
  )


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_leaves_no_edge_to_contract(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  pairs = coarse_pairs(graph, fused.coarse_op)
  for u, v in pairs:
    if fused.graph.group[u] == fused.graph.group[v]:
      assert sum(a == u for a, _ in pairs) > 1
      assert sum(b == v for _, b in pairs) > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_listed_in_another_order_is_the_same(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  rng = np.random.default_rng(seed)
  other = contracts.relisted(graph, rng)
  moved = [other.index[name] for name in graph.names]
  other_group = np.empty_like(group)
  other_group[moved] = group
  again = fuse(other, other_group)
  assert [fused.graph.names[x] for x in fused.coarse_op] == [
    again.graph.names[x] for x in again.coarse_op[moved]
  ]
  assert sorted(contracts.ops_of(fused.graph)[1]) == sorted(
    contracts.ops_of(again.graph)[1]
  )


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_moves_the_same_bytes_for_the_same_placement(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  rng = np.random.default_rng(seed)
  cluster = make_cluster(3, types=("CPU", "GPU", "CPU"))
  device = rng.integers(3, size=fused.graph.num_groups)[fused.graph.group]
  coarse = simulate(fused.graph, cluster, device)
  fine = simulate(graph, cluster, device[fused.coarse_op])
  assert coarse.bytes_moved == fine.bytes_moved
  np.testing.assert_array_equal(coarse.busy_time_us, fine.busy_time_us)


def serial_levels(graph, sequence):
  """Memory while each op runs, when all run on one device in `sequence`."""
  position = {op: i for i, op in enumerate(sequence)}
  last = [position[op] for op in graph.tensor_op.tolist()]
  for tensor, op in zip(graph.edge_tensor, graph.edge_op, strict=True):
    last[tensor] = max(last[tensor], position[int(op)])
  return [
    int(graph.persistent_bytes.sum())
    + int(graph.temporary_bytes[op])
    + sum(
      int(graph.tensor_held_bytes[tensor])
      for tensor, source in enumerate(graph.tensor_op.tolist())
      if position[source] <= i <= last[tensor]
    )
    for i, op in enumerate(sequence)
  ]


@pytest.mark.parametrize("seed", SEEDS)
def test_fuse_memory_covers_fine_ops_run_one_coarse_op_after_another(seed):
  graph, group = a_case(seed)
  fused = fuse(graph, group)
  coarse_sequence = fused.graph.order.tolist()
  sequence = []
  for coarse in coarse_sequence:
    inside = np.flatnonzero(fused.coarse_op == coarse).tolist()
    sequence += sorted(inside, key=lambda op: graph.rank[op])
  fine_levels = dict(zip(sequence, serial_levels(graph, sequence), strict=True))
  for coarse, level in zip(
    coarse_sequence, serial_levels(fused.graph, coarse_sequence), strict=True
  ):
    inside = np.flatnonzero(fused.coarse_op == coarse).tolist()
    assert level >= max(fine_levels[op] for op in inside)


@pytest.mark.parametrize("seed", range(20))
def test_fuse_all_into_one_op_needs_exactly_the_peak_of_the_whole(seed):
  # A tree: every op but the last is wanted by one later op.
  rng = np.random.default_rng(seed)
  ops = [
    Op(
      f"op{i}",
      float(rng.integers(5)),
      tuple(rng.integers(0, 9, 2).tolist()),
      persistent=int(rng.integers(9)),
      temporary=int(rng.integers(9)),
    )
    for i in range(11)
  ]
  edges = [
    (f"op{i}", int(rng.integers(CONTROL, 2)), f"op{rng.integers(i + 1, 11)}")
    for i in range(10)
  ]
  graph = make_graph(ops, edges)
  fused = fuse(graph, np.zeros(11, np.int64))
  assert fused.graph.num_ops == 1
  cluster = make_cluster(1)
  coarse = simulate(fused.graph, cluster, [0])
  assert coarse.peak_memory_bytes == max(
    serial_levels(graph, graph.order.tolist())
  )
  assert coarse.makespan_us == graph.compute_time_us.sum()


def test_fuse_chain_becomes_one_op_with_the_peak_as_temporary():
  graph = make_graph(
    [
      Op("a", 1.0, (8,), persistent=1, temporary=2),
      Op("b", 2.0, (4, 16), persistent=2, temporary=1),
      Op("c", 3.0, (32,), persistent=4, temporary=8),
    ],
    [("a", 0, "b"), ("b", 0, "c")],
  )
  fused = fuse(graph, np.zeros(3, np.int64))
  assert fused.graph.names == ("a",)
  assert fused.graph.compute_time_us.tolist() == [[6.0]]
  assert fused.graph.persistent_bytes.tolist() == [7]
  # While c runs: its output 32, its workspace 8, and b:0. b:1 went unused.
  assert fused.graph.temporary_bytes.tolist() == [44]
  assert len(fused.graph.tensor_op) == 0


def test_fuse_diamond_in_a_group_becomes_one_op():
  graph = make_graph(
    [Op(name, 1.0, (1,)) for name in "abcd"],
    [("a", 0, "b"), ("a", 0, "c"), ("b", 0, "d"), ("c", 0, "d")],
  )
  assert fuse(graph, np.zeros(4, np.int64)).graph.num_ops == 1


def test_fuse_around_an_outside_op_would_be_a_cycle_and_is_not_done():
  graph = make_graph(
    [Op("a", 1.0, (1,), group="g"), Op("out", 1.0, (1,)), Op("c", group="g")],
    [("a", 0, "out"), ("out", 0, "c"), ("a", 0, "c")],
  )
  assert fuse(graph).coarse_op.tolist() == [0, 1, 2]


def test_fuse_keeps_outputs_that_leave_and_drops_those_that_do_not():
  graph = make_graph(
    [
      Op("a", 1.0, (1, 2, 4), group="g", persistent_outputs=(2,)),
      Op("b", 1.0, (8,), group="g"),
      Op("x"),
      Op("y"),
    ],
    [
      ("a", 0, "b"),
      ("b", 0, "x"),
      ("b", 0, "y"),
      ("b", CONTROL, "y"),
    ],
  )
  coarse = fuse(graph).graph
  assert coarse.names == ("a", "x", "y")
  assert coarse.tensor_bytes.tolist() == [8]
  assert sorted(contracts.ops_of(coarse)[1]) == [("a", 0, "x"), ("a", 0, "y")]
  # a:0 and a:1 while a runs; the persistent a:2 is paid for already.
  assert coarse.temporary_bytes.tolist() == [3, 0, 0]


def test_fuse_without_group_uses_the_graphs_own():
  graph = make_graph(
    [Op("a", 1.0, (1,), group="g"), Op("b", 1.0, (1,), group="g"), Op("c")],
    [("a", 0, "b"), ("b", 0, "c")],
  )
  assert fuse(graph).coarse_op.tolist() == [0, 0, 1]


def test_fuse_of_nothing_is_nothing():
  fused = fuse(make_graph([]))
  assert fused.graph.num_ops == 0
  assert fused.coarse_op.tolist() == []


def test_fused_ops_that_interleave_may_need_more_memory():
  # Why plans are simulated on the fine graph: there, both chains' tensors are
  # live at once, while the fused chains run one after the other.
  graph = contracts.two_chains(2, size=8)
  fused = fuse(graph, coplacement_groups(graph))
  assert fused.graph.num_ops == 2
  cluster = make_cluster(1)
  coarse = simulate(fused.graph, cluster, [0, 0])
  fine = simulate(graph, cluster, [0] * 4)
  # A chain alone: its first tensor and its last. Then the other first tensor.
  assert coarse.peak_memory_bytes.tolist() == [16]
  assert fine.peak_memory_bytes.tolist() == [24]
