"""Tries makespans: the largest that no placement and no order can reach.

A makespan is refuted if what follows from it contradicts itself (`deductions`).
If it does not, two ops that may or may not share a device, or that share one in
either order, are tried both ways: every schedule is one or the other, so that
the makespan is refuted if both are. The number of such cases is limited, and
where it does not suffice nothing is known. Bisection finds the largest makespan
that is refuted.
"""

import math
from typing import NamedTuple

import numpy as np

from baechi_tf.bounds.deductions import contradicts
from baechi_tf.bounds.deductions import join
from baechi_tf.bounds.memory import input_bytes
from baechi_tf.bounds.relaxations import cheapest_transfers
from baechi_tf.cluster import Cluster
from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import offsets_of
from baechi_tf.op_graph import OpGraph

MOST_OPS = 200  # of a graph: what is known of pairs of ops is kept in tables
MOST_DEVICES = 62  # they are bits of an int64
_CASES = 200  # to prove a plan, of a graph of up to `_SMALL` ops; fewer of more
_SMALL = 30
_SLACK = 1e-9  # of a makespan: sums are rounded
_PRECISION = 1e-4  # of the bound, where times are not whole microseconds
_DOUBLINGS = 10
_NONE = -1
_SLOTS = 300  # at most so many cases are open
_SHARE, _ORDER = range(2)  # what is tried both ways


class Instance(NamedTuple):
  """A step and its cluster; ops are numbered in topological order."""

  times: np.ndarray  # [n, D], microseconds
  dispatch: np.ndarray  # [D], microseconds
  processors: int
  like: np.ndarray  # int64 [D], the first device with equal times and memory
  memory: np.ndarray  # [D], bytes
  persistent: np.ndarray  # [n], bytes
  working: np.ndarray  # [n], bytes that an op holds at once
  source: np.ndarray  # [q] of each pair of joined ops
  target: np.ndarray  # [q]
  cost: np.ndarray  # [q], the least time between them if they are apart
  into: np.ndarray  # [q], the pairs by target
  into_offsets: np.ndarray  # [n + 1]
  out: np.ndarray  # [q], the pairs by source
  out_offsets: np.ndarray  # [n + 1]


class Cases(NamedTuple):
  """What is known in the open cases, one a slot: S of them."""

  cluster: np.ndarray  # int64 [S, n], the first op of those on one device
  allowed: np.ndarray  # int64 [S, n], bits of the devices of a cluster
  apart: np.ndarray  # bool [S, n, n], by clusters
  above: np.ndarray  # bool [S, n, n], the first ends before the second starts
  head: np.ndarray  # [S, n], no op starts before
  tail: np.ndarray  # [S, n], the step ends no sooner after an op's end


def largest_refuted(
  graph: OpGraph, cluster: Cluster, low_us: float, makespan_us: float | None
) -> tuple[float, int]:
  """Returns a makespan that nothing beats, and how many cases show that.

  It is at least `low_us`, then of 0 cases.

  Args:
    graph: at most `MOST_OPS` ops.
    cluster: at most `MOST_DEVICES` devices.
    low_us: a lower bound.
    makespan_us: a makespan that can be reached, which is tried first.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  x = _instance(graph, cluster)
  cases = _cases(graph, cluster, x)
  most = max(1, int(_CASES * min(1.0, (_SMALL / graph.num_ops) ** 2)))
  whole = _is_whole(graph, cluster, x.times)
  low, high, shown = low_us, makespan_us, 0
  if whole:
    low = float(math.ceil(low * (1 - _SLACK)))
  if high is None:
    high = float((x.times.sum(axis=0) + 2 * x.dispatch).min())
    for _ in range(_DOUBLINGS):  # where memory is short for one device
      if not _refuted(x, cases, high, 1):
        break
      high *= 2
  elif low < high:
    fewer = high - 1 if whole else high * (1 - 4 * _SLACK)
    shown = _refuted(x, cases, fewer, most)
    if shown:
      return high, shown
  for budget in sorted({1, max(1, most // 4)}):
    above = high  # what is not refuted, or not tried
    step = 1.0 if whole else _PRECISION * above
    while above - low >= step:
      middle = low + (above - low) // 2 if whole else (low + above) / 2
      count = _refuted(x, cases, middle, budget)
      if count:
        low, shown = middle + 1 if whole else middle, count
      else:
        above = middle
  return low, shown


def _is_whole(graph, cluster, times) -> bool:
  """Returns whether all times are whole microseconds, makespans as well."""
  size = graph.tensor_bytes[:, None]
  links = (
    times,
    cluster.dispatch_us,
    cluster.latency_us,
    cluster.send_us,
    cluster.receive_us,
    size * np.unique(cluster.us_per_byte),
    size * np.unique(cluster.send_us_per_byte),
    size * np.unique(cluster.receive_us_per_byte),
  )
  return all(np.array_equal(values, np.rint(values)) for values in links)


def _instance(graph, cluster) -> Instance:
  n = graph.num_ops
  source, target, cost = cheapest_transfers(graph, cluster)
  source, target = graph.rank[source], graph.rank[target]
  into = np.argsort(target, kind="stable")
  out = np.argsort(source, kind="stable")
  times = graph.times_on(cluster.types)[graph.order]
  memory = cluster.memory_bytes
  kinds = np.vstack([times, cluster.dispatch_us, memory])
  _, first, kind = np.unique(
    kinds, axis=1, return_index=True, return_inverse=True
  )
  return Instance(
    times=times,
    dispatch=np.array(cluster.dispatch_us),
    processors=cluster.num_processors,
    like=first[kind.reshape(-1)],
    memory=memory,
    persistent=graph.persistent_bytes[graph.order],
    working=(graph.working_bytes + input_bytes(graph, cluster))[graph.order],
    source=source,
    target=target,
    cost=cost,
    into=into,
    into_offsets=offsets_of(target[into], n),
    out=out,
    out_offsets=offsets_of(source[out], n),
  )


def _cases(graph, cluster, x) -> Cases:
  """Returns open cases; slot 0 holds what is known whatever the makespan."""
  n = graph.num_ops
  slots = _SLOTS + 1
  above = np.zeros((n, n), bool)
  for u, v in zip(x.source[x.out[::-1]], x.target[x.out[::-1]], strict=True):
    above[u, v] = True
    above[u] |= above[v]
  _, first, group = np.unique(
    graph.group[graph.order], return_index=True, return_inverse=True
  )
  cases = Cases(
    cluster=np.zeros((slots, n), np.int64),
    allowed=np.zeros((slots, n), np.int64),
    apart=np.zeros((slots, n, n), bool),
    above=np.zeros((slots, n, n), bool),
    head=np.zeros((slots, n)),
    tail=np.zeros((slots, n)),
  )
  cases.cluster[0] = first[group]
  fixed = graph.fixed_device[graph.order]
  cases.allowed[0] = np.where(
    fixed == FREE, (1 << cluster.num_devices) - 1, 1 << np.maximum(fixed, 0)
  )
  cases.above[0] = above
  return cases


def _refuted(x, cases, span, budget) -> int:
  """Returns in how many cases a makespan is refuted; 0 if it is not."""
  left = _refute(x, cases, span * (1 + _SLACK), budget)
  return budget - left if left >= 0 else 0


@compiled
def _refute(x, cases, span, budget):
  """Returns how many more cases may be looked at; -1 if some is not refuted.

  Args:
    x: the `Instance`.
    cases: the `Cases`, which keep their slot 0.
    span: the makespan to refute.
    budget: how many cases may be looked at.
  """
  top = 1
  _copy(cases, 0, top)
  while top > 0:
    if budget == 0:
      return -1
    budget -= 1
    cluster, allowed = cases.cluster[top], cases.allowed[top]
    apart, above = cases.apart[top], cases.above[top]
    head, tail = cases.head[top], cases.tail[top]
    if contradicts(x, cluster, allowed, apart, above, head, tail, span):
      top -= 1
      continue
    kind, a, b = _choice(x, cluster, apart, above)
    if kind == _NONE or top + 1 == len(cases.cluster):
      return -1
    _copy(cases, top, top + 1)
    if kind == _SHARE:
      a, b = cluster[a], cluster[b]
      apart[a, b] = apart[b, a] = True
      top += 1
      join(cases.cluster[top], cases.allowed[top], cases.apart[top], a, b)
    else:
      above[a, b] = True
      top += 1
      cases.above[top, b, a] = True
  return budget


@compiled_inner
def _copy(cases, a, b):
  cases.cluster[b] = cases.cluster[a]
  cases.allowed[b] = cases.allowed[a]
  cases.apart[b] = cases.apart[a]
  cases.above[b] = cases.above[a]
  cases.head[b] = cases.head[a]
  cases.tail[b] = cases.tail[a]


@compiled_inner
def _choice(x, cluster, apart, above):
  """Returns what to try both ways: two ops' devices, or their order."""
  best, kind, a, b = -np.inf, _NONE, _NONE, _NONE
  for i in range(len(x.source)):
    u, v = x.source[i], x.target[i]
    if cluster[u] != cluster[v] and not apart[cluster[u], cluster[v]]:
      score = x.cost[i] + 0.25 * min(x.times[u, 0], x.times[v, 0])
      if score > best:
        best, kind, a, b = score, _SHARE, u, v
  if kind != _NONE:
    return kind, a, b
  n = len(cluster)
  for u in range(n):
    for v in range(u + 1, n):
      if cluster[u] == cluster[v]:
        if above[u, v] or above[v, u]:
          continue
        score = min(x.times[u, 0], x.times[v, 0])
        if score > best:
          best, kind, a, b = score, _ORDER, u, v
  if kind != _NONE:
    return kind, a, b
  for u in range(n):
    for v in range(u + 1, n):
      if cluster[u] == u and cluster[v] == v and not apart[u, v]:
        score = min(x.times[u, 0], x.times[v, 0])
        if score > best:
          best, kind, a, b = score, _SHARE, u, v
  return kind, a, b
