"""Clusters of ops that belong together, small to large.

Level 0 has the graph's groups. Each level joins clusters of the one before
along the dearest edges for the work that they join, up to four at a time
(heavy-edge matching; Karypis and Kumar, *A fast and high quality multilevel
scheme for partitioning irregular graphs*, SIAM J. Sci. Comput. 1998).
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.op_graph import offsets_of
from baechi_tf.search.instance import Instance

_MOST_LEVELS = 20
_MOST_JOINED = 4
# A cluster has at most this part of a device's share of the work.
_LARGEST = 0.6


class Hierarchy(NamedTuple):
  """All levels' clusters, numbered on from level to level; n ops, l levels."""

  cluster: np.ndarray  # int64 [l, n], the cluster of each op on each level
  num_joined: (
    int  # levels of joined clusters; those after have pieces of a line
  )
  offsets: np.ndarray  # int64 [c + 1], a cluster's ops
  ops: np.ndarray  # int32 [l * n]


def make_hierarchy(
  group: np.ndarray, x: Instance, seed: int, line: np.ndarray | None = None
) -> Hierarchy:
  """Returns the clusters of an instance's ops.

  Args:
    group: int `[n]`, the group of each op.
    x: the instance.
    seed: of the order in which clusters look for others to join.
    line: float64 `[n]`, where ops are on a line whose pieces are clusters too.
  """
  rng = np.random.default_rng(seed)
  num_devices = len(x.memory)
  links = x.step.links
  apart = ~np.eye(num_devices, dtype=bool)
  latency = links.latency_us[apart].mean() if num_devices > 1 else 0.0
  per_byte = links.us_per_byte[apart].mean() if num_devices > 1 else 0.0
  edge_tensor = np.repeat(
    np.arange(len(x.step.tensor_op)), np.diff(x.step.consumer_offsets)
  )
  weight = latency + x.step.tensor_bytes[edge_tensor] * per_byte + 1e-6
  source, target = x.step.tensor_op[edge_tensor], x.step.consumers
  cluster = group
  work = np.bincount(cluster, weights=x.step.durations.mean(axis=1))
  largest = work.sum() / num_devices * _LARGEST
  levels = [cluster]
  while len(levels) < _MOST_LEVELS and len(work) > 4 * num_devices:
    cluster = levels[-1]
    low, high, between = _joined(
      cluster[source], cluster[target], weight, len(work)
    )
    ends = np.concatenate([low, high])
    by_end = np.argsort(ends, kind="stable")
    root = _match(
      offsets_of(ends[by_end], len(work)),
      np.concatenate([high, low])[by_end],
      np.concatenate([between, between])[by_end],
      work,
      largest,
      rng.permutation(len(work)),
    )
    _, joined = np.unique(root, return_inverse=True)
    if joined.max() + 1 > 0.97 * len(work):
      break
    work = np.bincount(joined, weights=work)
    levels.append(joined[cluster])
  num_joined = len(levels)
  if line is not None:
    levels += _pieces(group, line, num_devices)
  return _flattened(levels, num_joined)


def _pieces(group, line, num_devices) -> list[np.ndarray]:
  """Returns levels of pieces of a line, each a quarter as many as the last."""
  _, first, member = np.unique(group, return_index=True, return_inverse=True)
  rank = np.empty(len(first), np.int64)
  rank[np.argsort(line[first], kind="stable")] = np.arange(len(first))
  levels = []
  size = 4
  while size * num_devices < len(first):
    levels.append(rank[member] // size)
    size *= 4
  return levels


def _joined(a, b, weight, num_clusters):
  """Returns each pair of joined clusters once, lower first, and its weight."""
  apart = a != b
  low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
  pairs, which = np.unique(low * num_clusters + high, return_inverse=True)
  total = np.bincount(which, weights=weight[apart], minlength=len(pairs))
  low, high = np.divmod(pairs, num_clusters)
  return low, high, total


def _flattened(levels, num_joined) -> Hierarchy:
  first = 0
  numbered, counts, ops = [], [], []
  for cluster in levels:
    numbered.append(cluster + first)
    counts.append(np.bincount(cluster))
    ops.append(np.argsort(cluster, kind="stable"))
    first += len(counts[-1])
  return Hierarchy(
    np.stack(numbered).astype(np.int64),
    num_joined,
    np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
    np.concatenate(ops).astype(np.int32),
  )


@compiled
def _match(offsets, neighbours, weight, work, largest, sequence):
  """The cluster that each joins; those that join none are joined by others."""
  root = np.arange(len(work))
  size = work.copy()
  count = np.ones(len(work), np.int64)
  for u in sequence:
    if root[u] != u or count[u] > 1:
      continue
    best, most = -1, 0.0
    for j in range(offsets[u], offsets[u + 1]):
      v = root[neighbours[j]]
      if v == u or count[v] >= _MOST_JOINED or size[v] + work[u] > largest:
        continue
      rating = weight[j] / (size[v] + work[u] + 1e-9)
      if rating > most:
        best, most = v, rating
    if best >= 0:
      root[u] = best
      size[best] += work[u]
      count[best] += 1
  return root
