import numpy as np
import pytest
from scipy.optimize import linprog

from baechi_tf.placers import favorite_child
from baechi_tf.placers.favorite_child import favorite_children
from baechi_tf.placers.favorite_child import NONE
from baechi_tf.placers.favorite_child import relaxed_edges
from baechi_tf.placers.favorite_child import ROUNDING_THRESHOLD
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op

TWO_CHILDREN = make_graph(
  [Op("a", 1.0, (100,)), Op("b", 1.0), Op("c", 1.0)],
  [("a", 0, "b"), ("a", 0, "c")],
)


def program(seed):
  """Times, ends and costs of a random graph's edges."""
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 16))
  pairs = [
    (i, j) for j in range(n) for i in range(j) if rng.random() < 0.3
  ] or [(0, 1)]
  source, target = np.array(pairs).T
  time = rng.integers(0, 10, n).astype(float)
  return time, source, target, rng.integers(0, 20, len(pairs)).astype(float)


def rows(time, source, target, cost):
  """The program's rows, dense, as written in the paper: A [x s w] <= b."""
  n, e = len(time), len(source)
  matrix, upper = [], []

  def add(bound, **terms):
    row = np.zeros(e + n + 1)
    for column, value in terms.items():
      row[int(column[1:]) + {"x": 0, "s": e, "w": e + n}[column[0]]] += value
    matrix.append(row)
    upper.append(bound)

  for k, (i, j, c) in enumerate(zip(source, target, cost, strict=True)):
    add(-time[i], **{f"x{k}": c, f"s{i}": 1, f"s{j}": -1})
  for i in range(n):
    children = np.flatnonzero(source == i)
    parents = np.flatnonzero(target == i)
    add(1 - len(children), **{f"x{k}": -1 for k in children})
    add(1 - len(parents), **{f"x{k}": -1 for k in parents})
    add(-time[i], **{f"s{i}": 1, "w0": -1})
  return np.array(matrix), np.array(upper)


def longest_path(time, source, target, weight):
  """The makespan when every edge takes its weight."""
  start = np.zeros(len(time))
  for j in range(len(time)):  # edges go from smaller to larger indices
    inward = target == j
    start[j] = max((start[source] + time[source] + weight)[inward], default=0.0)
  return (start + time).max()


@pytest.mark.parametrize("seed", range(40))
def test_relaxed_edges_satisfy_every_row_and_minimise_the_makespan(seed):
  time, source, target, cost = program(seed)
  x = relaxed_edges(len(time), time, source, target, cost)
  matrix, upper = rows(time, source, target, cost)
  e, n = len(source), len(time)
  bounds = [(0, 1)] * e + [(0, None)] * (n + 1)
  objective = np.zeros(e + n + 1)
  objective[-1] = 1
  best = linprog(
    objective, A_ub=matrix, b_ub=upper, bounds=bounds, method="highs-ipm"
  ).fun
  # With these x, starts and a makespan exist that satisfy all rows.
  makespan = longest_path(time, source, target, cost * x)
  tolerance = 1e-6 * (1 + best)  # the solver's
  assert (x >= -1e-7).all() and (x <= 1 + 1e-7).all()
  for end in (source, target):
    for op in range(n):
      assert x[end == op].sum() >= (end == op).sum() - 1 - 1e-6
  assert makespan >= best - tolerance
  # The second objective may cost a ten-thousandth of all work.
  assert makespan <= best + 1e-4 * time.sum() + tolerance


def test_relaxed_edges_two_children_is_half_and_half():
  # 1 + 100 x + 1 for both children, x + x >= 1: 52, though the optimum is 3.
  source, target = np.array([0, 0]), np.array([1, 2])
  x = relaxed_edges(3, np.ones(3), source, target, np.full(2, 100.0))
  np.testing.assert_allclose(x, [0.5, 0.5])
  assert longest_path(np.ones(3), source, target, 100 * x) == pytest.approx(52)


def children_by_name(graph, favorites):
  return {
    graph.names[i]: graph.names[j] for i, j in enumerate(favorites) if j != NONE
  }


def test_favorite_children_two_equal_children_have_no_favorite():
  favorites = favorite_children(TWO_CHILDREN, make_cluster(2))
  assert favorites.tolist() == [NONE, NONE, NONE]


def test_favorite_children_of_a_chain_are_the_next_ops():
  favorites = favorite_children(contracts.chain(5, size=8), make_cluster(2))
  assert favorites.tolist() == [1, 2, 3, 4, NONE]


def test_favorite_children_prefers_the_critical_child():
  # 1 + 5 x_b + 10 against 1 + 5 x_c + 1: b must be the favourite.
  graph = make_graph(
    [Op("a", 1.0, (5,)), Op("b", 10.0), Op("c", 1.0)],
    [("a", 0, "b"), ("a", 0, "c")],
  )
  favorites = favorite_children(graph, make_cluster(2))
  assert children_by_name(graph, favorites) == {"a": "b"}


def test_favorite_children_without_edges_are_none():
  graph = contracts.independent(3)
  favorites = favorite_children(graph, make_cluster(2))
  assert favorites.tolist() == [NONE] * 3
  assert favorite_children(make_graph([]), make_cluster(2)).tolist() == []


def check_matching(graph, favorites):
  source, target, _ = graph.op_pairs
  joined = set(zip(source.tolist(), target.tolist(), strict=True))
  chosen = [(i, j) for i, j in enumerate(favorites.tolist()) if j != NONE]
  assert set(chosen) <= joined
  assert len({j for _, j in chosen}) == len(chosen)


@pytest.mark.parametrize("seed", range(40))
def test_favorite_children_round_to_a_maximal_matching(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 15, max_time=20)
  cluster = contracts.random_cluster(rng, 3)
  favorites = favorite_children(graph, cluster)
  check_matching(graph, favorites)
  # Every edge below the threshold is taken, or one of its ends is.
  source, target, pair = graph.op_pairs
  links = ~np.eye(3, dtype=bool)
  latency, us_per_byte = (
    matrix[links].mean() for matrix in (cluster.latency_us, cluster.us_per_byte)
  )
  cost = np.zeros(len(source))
  for edge, tensor in enumerate(graph.edge_tensor):
    cost[pair[edge]] += latency + graph.tensor_bytes[tensor] * us_per_byte
  x = relaxed_edges(
    graph.num_ops,
    graph.compute_time_us[graph.order, 0],
    graph.rank[source],
    graph.rank[target],
    cost,
  )
  taken = set(favorites.tolist())
  for i, j, relaxed in zip(source, target, x, strict=True):
    if favorites[i] == j:
      assert relaxed < ROUNDING_THRESHOLD + 1e-6
    elif relaxed < ROUNDING_THRESHOLD - 1e-6:
      assert favorites[i] != NONE or j in taken


@pytest.mark.parametrize("seed", range(40))
def test_favorite_children_do_not_depend_on_the_listing(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 20, density=0.15)
  cluster = contracts.random_cluster(rng, 3)
  other = contracts.relisted(graph, rng)
  assert children_by_name(
    graph, favorite_children(graph, cluster)
  ) == children_by_name(other, favorite_children(other, cluster))


def test_favorite_children_beyond_the_limit_are_matched_greedily(monkeypatch):
  # Dearest cost plus upward rank first: a->c (8 + 1), then b->d (4 + 1),
  # for a->d (2 + 1) and b->c (1 + 1) have lost an end.
  graph = make_graph(
    [Op("a", 1.0, (8, 2)), Op("b", 1.0, (1, 4)), Op("c", 1.0), Op("d", 1.0)],
    [("a", 0, "c"), ("a", 1, "d"), ("b", 0, "c"), ("b", 1, "d")],
  )
  size = graph.num_ops + len(graph.edge_op)
  monkeypatch.setattr(favorite_child, "LP_MAX_SIZE", size)
  assert favorite_child.uses_lp(graph)
  monkeypatch.setattr(favorite_child, "LP_MAX_SIZE", size - 1)
  assert not favorite_child.uses_lp(graph)
  monkeypatch.delattr(favorite_child, "linprog")
  favorites = favorite_children(graph, make_cluster(2))
  assert children_by_name(graph, favorites) == {"a": "c", "b": "d"}


@pytest.mark.parametrize("seed", range(40))
def test_favorite_children_greedy_follows_cost_plus_upward_rank(
  monkeypatch, seed
):
  monkeypatch.setattr(favorite_child, "LP_MAX_SIZE", 0)
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 15)
  cluster = make_cluster(2, latency_us=2.0)
  cost = {}
  for tensor, j in zip(graph.edge_tensor, graph.edge_op, strict=True):
    pair = int(graph.tensor_op[tensor]), int(j)
    cost[pair] = cost.get(pair, 0.0) + 2.0 + graph.tensor_bytes[tensor]

  def upward(i):
    after = [c + upward(b) for (a, b), c in cost.items() if a == i]
    return graph.compute_time_us[i, 0] + max(after, default=0.0)

  expected, has_parent = {}, set()
  for i, j in sorted(
    cost,
    key=lambda e: (-cost[e] - upward(e[1]), graph.rank[e[0]], graph.rank[e[1]]),
  ):
    if i not in expected and j not in has_parent:
      expected[i] = j
      has_parent.add(j)
  favorites = favorite_children(graph, cluster)
  check_matching(graph, favorites)
  assert {i: j for i, j in enumerate(favorites) if j != NONE} == expected


def test_favorite_children_unknown_device_type_is_an_error():
  graph = make_graph([Op("a", (3.0,))], device_types=("GPU",))
  with pytest.raises(ValueError, match="no compute times .* 'CPU'"):
    favorite_children(graph, make_cluster(1))
