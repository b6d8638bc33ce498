"""A folded step has each backward op beside its forward op."""

import numpy as np

from baechi_tf.search.folded import fold
from baechi_tf.search.folded import folded_placements
from baechi_tf.search.instance import make_instance
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def a_training_chain(layers):
  """Forward ops of 1 us, backward ops of 2 us, each with the other's result."""
  ops = [Op(f"v{i:02}", 0.0, (8,), persistent=8) for i in range(layers)]
  ops += [Op(f"f{i:02}", 1.0, (100,)) for i in range(layers)]
  ops += [Op(f"b{i:02}", 2.0, (100,)) for i in range(layers)]
  edges = []
  for i in range(layers):
    edges += [(f"v{i:02}", 0, f"f{i:02}"), (f"v{i:02}", 0, f"b{i:02}")]
    edges.append((f"f{i:02}", 0, f"b{i:02}"))
    if i + 1 < layers:
      edges.append((f"f{i:02}", 0, f"f{i + 1:02}"))
      edges.append((f"b{i + 1:02}", 0, f"b{i:02}"))
  return make_graph(ops, edges)


def test_backward_ops_are_beside_their_forward_ops():
  layers = 24
  graph = a_training_chain(layers)
  cluster = make_cluster(4, memory=10**6)
  x = make_instance(graph, cluster)
  group = graph.group[graph.order]
  for placed in folded_placements(x, fold(x), group):
    device = np.empty(graph.num_ops, np.int64)
    device[graph.order] = placed
    of = dict(zip(graph.names, device.tolist(), strict=True))
    together = [
      of[f"f{i:02}"] == of[f"b{i:02}"] == of[f"v{i:02}"] for i in range(layers)
    ]
    # At each of three borders, two layers may be divided.
    assert sum(together) >= layers - 6
    assert sorted(set(of.values())) == [0, 1, 2, 3]


def test_groups_stay_together_on_any_graph():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    graph = contracts.random_graph(rng, 15, group_share=0.4)
    x = make_instance(graph, contracts.random_cluster(rng, 3))
    group = graph.group[graph.order]
    first = np.unique(group, return_index=True)[1]
    for device in folded_placements(x, fold(x), group):
      np.testing.assert_array_equal(device, device[first][group])


def test_step_without_times_has_no_line():
  graph = make_graph([Op("a", 0.0), Op("b", 0.0)])
  assert fold(make_instance(graph, make_cluster(2))) is None
