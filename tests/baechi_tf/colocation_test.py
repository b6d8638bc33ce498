import networkx as nx
import numpy as np
import pytest

from baechi_tf.coarsening.colocation import merge_groups


def test_merge_groups_without_pairs_keeps_ops_alone():
  assert merge_groups(3, np.zeros((0, 2))).tolist() == [0, 1, 2]
  assert merge_groups(0, []).tolist() == []


def test_merge_groups_is_transitive_and_numbered_by_first_appearance():
  pairs = [(4, 1), (3, 4), (5, 5)]
  assert merge_groups(6, pairs).tolist() == [0, 1, 2, 1, 1, 3]


@pytest.mark.parametrize("seed", range(20))
def test_merge_groups_are_connected_components(seed):
  rng = np.random.default_rng(seed)
  pairs = rng.integers(0, 30, (rng.integers(0, 40), 2))
  group = merge_groups(30, pairs)
  oracle = nx.Graph(pairs.tolist())
  oracle.add_nodes_from(range(30))
  members = {
    frozenset(np.flatnonzero(group == g).tolist()) for g in set(group.tolist())
  }
  assert members == {frozenset(x) for x in nx.connected_components(oracle)}
  assert list(dict.fromkeys(group.tolist())) == list(range(len(members)))
