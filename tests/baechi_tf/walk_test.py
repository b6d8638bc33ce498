import numpy as np
import pytest

from baechi_tf.placers.walk import depth_first_order
from baechi_tf.placers.walk import groups_in_order
from tests import contracts
from tests.contracts import make_graph
from tests.contracts import Op


def names_in_order(graph):
  return [graph.names[op] for op in depth_first_order(graph).tolist()]


@pytest.mark.parametrize("seed", range(40))
def test_depth_first_order_is_topological(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, int(rng.integers(1, 30)))
  order = depth_first_order(graph)
  assert sorted(order.tolist()) == list(range(graph.num_ops))
  position = np.argsort(order)
  assert (position[graph.edge_source] < position[graph.edge_op]).all()


@pytest.mark.parametrize("seed", range(20))
def test_depth_first_order_does_not_depend_on_the_listing(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 20)
  assert names_in_order(contracts.relisted(graph, rng)) == names_in_order(graph)


def test_depth_first_order_takes_sources_when_they_are_needed():
  # Two layers, forward and backward; a layer's weight is used by both passes
  # and updated as soon as its gradient is there.
  graph = make_graph(
    [
      Op(name, outputs=(1,))
      for name in (
        "x", "weight_1", "layer_1", "weight_2", "layer_2", "gradient_2",
        "update_2", "gradient_1", "update_1",
      )
    ],
    [
      ("x", 0, "layer_1"),
      ("weight_1", 0, "layer_1"),
      ("layer_1", 0, "layer_2"),
      ("weight_2", 0, "layer_2"),
      ("layer_2", 0, "gradient_2"),
      ("gradient_2", 0, "update_2"),
      ("gradient_2", 0, "gradient_1"),
      ("gradient_1", 0, "update_1"),
    ],
  )  # fmt: skip
  # "x" and "weight_1" are equally deep: names decide, last first.
  assert names_in_order(graph) == [
    "x", "weight_1", "layer_1", "weight_2", "layer_2", "gradient_2",
    "update_2", "gradient_1", "update_1",
  ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_groups_in_order_keeps_groups_together_by_their_first_op(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 20, group_share=0.5)
  sequence, offsets = groups_in_order(graph)
  position = np.argsort(depth_first_order(graph))
  pieces = np.split(sequence, offsets[1:-1])
  firsts = [position[piece].min() for piece in pieces]
  assert firsts == sorted(firsts)
  for piece in pieces:
    (group,) = set(graph.group[piece].tolist())
    assert (graph.group == group).sum() == len(piece)
    assert position[piece].tolist() == sorted(position[piece].tolist())


def test_depth_first_order_of_a_long_chain_does_not_recurse():
  graph = contracts.chain(20_000)
  assert np.array_equal(depth_first_order(graph), graph.order)
