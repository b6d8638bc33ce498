"""Favourite children: which successor should follow each op on its device.

The linear relaxation of Hanen and Munier's small-communication-times problem
("An approximation algorithm for scheduling dependent tasks on m processors
with small communication delays", Discrete Applied Mathematics 2001), rounded;
and a greedy matching for graphs on which the program would take too long.
"""

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.op_graph import OpGraph

NONE = -1
# HiGHS needs up to 2 s for a program of this many ops and edges, up to 10 s for
# twice as many.
LP_MAX_SIZE = 20_000
# An edge is a favourite when its relaxed x is below this (Jeon et al.).
ROUNDING_THRESHOLD = 0.1
# Weight of the second objective. The program is massively degenerate: without
# a second objective, the result depends on the solver's path.
_EPSILON = 1e-4


class LinearProgramError(ValueError):
  """The solver found no solution, though there always is one."""


def favorite_children(graph: OpGraph, cluster: Cluster) -> np.ndarray:
  """Returns int64 `[n]`: each op's favourite child, or `NONE`.

  By the linear program up to `LP_MAX_SIZE` ops and edges, greedily beyond.

  Raises:
    LinearProgramError: the solver failed on the program.
    ValueError: the graph has no times for a device's type.
  """
  source, target, cost = _edge_costs(graph, cluster)
  time = graph.times_on(cluster.types).mean(axis=1)
  if len(source) == 0:
    return np.full(graph.num_ops, NONE, np.int64)
  if uses_lp(graph):
    # The program in topological order, so that which of many optima the solver
    # finds does not depend on how the ops were listed.
    x = relaxed_edges(
      graph.num_ops,
      time[graph.order],
      graph.rank[source],
      graph.rank[target],
      cost,
    )
    chosen = x < ROUNDING_THRESHOLD
    # Smaller x first, then dearer edges; lexsort's last key is the first.
    # Rounded, because the last digits are the solver's, not the problem's.
    keys = (graph.rank[target], graph.rank[source], -cost, x.round(6))
  else:
    chosen = np.ones(len(source), bool)
    upward = _upward_ranks(
      graph.num_ops, time, source, target, cost, graph.rank[source]
    )
    keys = (graph.rank[target], graph.rank[source], -(cost + upward[target]))
  by_preference = np.lexsort(keys)
  return _matching(
    graph.num_ops, source, target, by_preference[chosen[by_preference]]
  )


def uses_lp(graph: OpGraph) -> bool:
  """Whether a graph is small enough for the linear program."""
  return graph.num_ops + len(graph.edge_op) <= LP_MAX_SIZE


def _edge_costs(graph, cluster):
  """Returns source, target and cost of each pair of joined ops.

  The cost is the time to send all distinct tensors of the pair, in
  microseconds, averaged over the cluster's links. In topological order.
  """
  source, target, pair_of_edge = graph.op_pairs
  d = cluster.num_devices
  num_links = max(d * (d - 1), 1)
  latency_us = cluster.latency_us.sum() / num_links
  us_per_byte = cluster.us_per_byte.sum() / num_links
  each = latency_us + graph.tensor_bytes[graph.edge_tensor] * us_per_byte
  return source, target, np.bincount(pair_of_edge, each, len(source))


def relaxed_edges(
  num_ops: int,
  time: np.ndarray,
  source: np.ndarray,
  target: np.ndarray,
  cost: np.ndarray,
) -> np.ndarray:
  """Returns float64 `[e]`: x of every edge in the relaxed program.

  x = 0 says "the target is the source's favourite child". Minimises the
  makespan w, and a little of the communication that is left.

  Args:
    num_ops: the number of ops.
    time: float64 `[num_ops]` microseconds per op.
    source: int `[e]`, each pair of ops once.
    target: int `[e]`.
    cost: float64 `[e]` microseconds to send the edge's tensors.

  Raises:
    LinearProgramError: the solver failed on the program.
  """
  num_edges = len(source)
  scale = max(time.max(initial=0), cost.max(initial=0)) or 1.0
  p, c = time / scale, cost / scale
  s0, w = num_edges, num_edges + num_ops  # columns: x, s, w
  edge = np.arange(num_edges)
  op = np.arange(num_ops)
  num_children = np.bincount(source, minlength=num_ops)
  num_parents = np.bincount(target, minlength=num_ops)
  rows = _Rows(w + 1)
  # s_i + p_i + c_ij x_ij <= s_j
  rows.add(
    num_edges,
    [(edge, edge, c), (edge, s0 + source, 1.0), (edge, s0 + target, -1.0)],
    -p[source],
  )
  # s_i + p_i <= w; that of the sinks suffices.
  sinks = op[num_children == 0]
  row = np.arange(len(sinks))
  rows.add(len(sinks), [(row, s0 + sinks, 1.0), (row, w, -1.0)], -p[sinks])
  # At most one favourite child, at most one favourite parent. One edge alone
  # is no constraint.
  for end, degree in ((source, num_children), (target, num_parents)):
    several = np.flatnonzero(degree > 1)
    row_of = np.full(num_ops, NONE)
    row_of[several] = np.arange(len(several))
    inside = row_of[end] != NONE
    rows.add(
      len(several),
      [(row_of[end[inside]], edge[inside], -1.0)],
      1.0 - degree[several],
    )
  objective = np.zeros(w + 1)
  objective[:num_edges] = _EPSILON * c / max(c.sum(), 1e-300)
  objective[w] = 1.0 / max(p.sum(), 1e-300)
  bounds = np.zeros((w + 1, 2))
  bounds[:num_edges, 1] = 1.0
  bounds[num_edges:, 1] = np.inf
  matrix, upper = rows.matrix()
  result = linprog(
    objective, A_ub=matrix, b_ub=upper, bounds=bounds, method="highs-ds"
  )
  if result.x is None:
    raise LinearProgramError(
      "the linear program of favourite children has no solution that HiGHS"
      f" finds ({result.message}); its costs may differ by too many orders of"
      " magnitude"
    )
  return result.x[:num_edges]


class _Rows:
  """Rows of `A x <= b`, gathered block by block."""

  def __init__(self, num_columns: int):
    self.num_columns = num_columns
    self.entries = []
    self.upper = []
    self.num_rows = 0

  def add(self, num_rows, entries, upper):
    for row, column, value in entries:
      row, column, value = np.broadcast_arrays(row, column, value)
      self.entries.append((self.num_rows + row, column, value))
    self.upper.append(upper)
    self.num_rows += num_rows

  def matrix(self):
    row, column, value = map(np.concatenate, zip(*self.entries, strict=True))
    shape = (self.num_rows, self.num_columns)
    return (
      coo_array((value, (row, column)), shape=shape).tocsr(),
      np.concatenate(self.upper),
    )


@compiled
def _matching(num_ops, source, target, by_preference):
  """Takes edges in order while both ends are free."""
  child = np.full(num_ops, NONE, np.int64)
  has_parent = np.zeros(num_ops, np.bool_)
  for edge in by_preference:
    i, j = source[edge], target[edge]
    if child[i] == NONE and not has_parent[j]:
      child[i] = j
      has_parent[j] = True
  return child


@compiled
def _upward_ranks(num_ops, time, source, target, cost, rank_of_source):
  """Longest path from each op to the end, communication included."""
  upward = time.copy()
  for edge in np.argsort(-rank_of_source):
    i, j = source[edge], target[edge]
    upward[i] = max(upward[i], time[i] + cost[edge] + upward[j])
  return upward
