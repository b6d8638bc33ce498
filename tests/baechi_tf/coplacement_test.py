import numpy as np
import pytest

from baechi_tf.coarsening.coplacement import coplacement_groups
from baechi_tf.coarsening.coplacement import gradient_pairs
from baechi_tf.coarsening.coplacement import single_consumers
from baechi_tf.op_graph import CONTROL
from tests import contracts
from tests.contracts import make_graph
from tests.contracts import Op


def by_name(graph, pairs):
  return {(graph.names[a], graph.names[b]) for a, b in pairs.tolist()}


def groups_by_name(graph):
  group = coplacement_groups(graph)
  return {
    frozenset(graph.names[op] for op in np.flatnonzero(group == g))
    for g in set(group.tolist())
  }


def test_single_consumers_counts_ops_and_not_tensors():
  graph = make_graph(
    [
      Op("two_tensors", 1.0, (1, 2)),
      Op("two_ops", 1.0, (1,)),
      Op("one_and_control", 1.0, (1,)),
      Op("b"),
      Op("c"),
    ],
    [
      ("two_tensors", 0, "b"),
      ("two_tensors", 1, "b"),
      ("two_ops", 0, "b"),
      ("two_ops", 0, "c"),
      ("one_and_control", 0, "b"),
      ("one_and_control", CONTROL, "c"),
    ],
  )
  assert by_name(graph, single_consumers(graph)) == {("two_tensors", "b")}


@pytest.mark.parametrize(
  ("gradient", "forward"),
  [
    ("gradient_tape/dense/MatMul/MatMul_1", "dense/MatMul"),
    ("gradient_tape/dense/MatMul", "dense/MatMul"),
    ("a/gradient_tape/b/TanhGrad_1", "a/b/Tanh_1"),
    ("gradient_tape/b/ReluGrad", "b/Relu"),
    ("step/gradient_tape/model/dense/MatMul/MatMul", "step/model/dense/MatMul"),
    ("gradients/dense/MatMul_grad/MatMul_1", "dense/MatMul"),
    ("step/gradients/dense/MatMul_grad/tuple/group", "step/dense/MatMul"),
    ("gradients/dense/MatMul_grad/MatMul_1", "dense"),
  ],
)
def test_gradient_pairs_finds_the_forward_op(gradient, forward):
  graph = make_graph([Op(gradient), Op(forward), Op("other")])
  assert by_name(graph, gradient_pairs(graph)) == {(gradient, forward)}


def test_gradient_pairs_prefers_the_longest_name():
  gradient = "gradient_tape/dense/MatMul/MatMul_1"
  graph = make_graph([Op("dense"), Op("dense/MatMul"), Op(gradient)])
  assert by_name(graph, gradient_pairs(graph)) == {(gradient, "dense/MatMul")}


@pytest.mark.parametrize(
  "name",
  [
    "gradient_tape/gone/MatMul",
    "gradients/dense/MatMul",
    "gradients/Fill",
    "dense/gradient",
    "gradients/_grad/x",
    "gradient_tape/",
  ],
)
def test_gradient_pairs_without_forward_op_is_empty(name):
  graph = make_graph([Op(name), Op("dense/MatMul")])
  assert gradient_pairs(graph).shape == (0, 2)


def test_coplacement_groups_chain_is_one_group():
  assert coplacement_groups(contracts.chain(5)).tolist() == [0] * 5


def test_coplacement_groups_fork_join_leaves_the_fork_alone():
  # Each middle op joins its only consumer; the fork has three.
  graph = contracts.fork_join(3)
  assert groups_by_name(graph) == {
    frozenset({"fork"}),
    frozenset({"mid000", "mid001", "mid002", "join"}),
  }


def test_coplacement_groups_joins_hard_groups_and_gradients():
  graph = make_graph(
    [
      Op("variable", 1.0, (1,), group="v"),
      Op("update", group="v"),
      Op("dense/MatMul", 1.0, (1,)),
      Op("loss", 1.0, (1,)),
      Op("gradient_tape/dense/MatMul", 1.0, (1,)),
      Op("log", 1.0),
    ],
    [
      ("variable", 0, "dense/MatMul"),
      ("dense/MatMul", 0, "loss"),
      ("dense/MatMul", 0, "gradient_tape/dense/MatMul"),
      ("loss", 0, "gradient_tape/dense/MatMul"),
      ("loss", 0, "log"),
      ("gradient_tape/dense/MatMul", 0, "update"),
    ],
  )
  assert groups_by_name(graph) == {
    frozenset(
      {"variable", "update", "dense/MatMul", "gradient_tape/dense/MatMul"}
    ),
    frozenset({"loss"}),
    frozenset({"log"}),
  }


@pytest.mark.parametrize("seed", range(20))
def test_coplacement_groups_are_unions_of_the_graphs_groups(seed):
  graph = contracts.random_graph(
    np.random.default_rng(seed), 20, density=0.1, group_share=0.5
  )
  group = coplacement_groups(graph)
  together = graph.group[:, None] == graph.group[None, :]
  assert (group[:, None] == group[None, :])[together].all()
  for source, target in single_consumers(graph).tolist():
    assert group[source] == group[target]


def test_coplacement_groups_of_nothing_is_nothing():
  assert coplacement_groups(make_graph([])).tolist() == []


def test_gradient_pairs_falls_back_on_the_layer():
  gradient = "a/gradient_tape/b/norm/moments/Tile"
  graph = make_graph(
    [Op("a/b/norm/scale"), Op("a/b/norm/shift"), Op("a/b/c"), Op(gradient)],
    [("a/b/norm/scale", CONTROL, "a/b/norm/shift")],
  )
  assert by_name(graph, gradient_pairs(graph)) == {(gradient, "a/b/norm/scale")}


def test_gradient_pairs_takes_no_whole_model_for_a_layer():
  ops = [Op(f"model/op{i}") for i in range(100)]
  graph = make_graph([*ops, Op("gradient_tape/model/Sum")])
  assert len(gradient_pairs(graph)) == 0


@pytest.mark.parametrize("seed", range(30))
def test_coplacement_groups_keeps_merged_groups_within_the_limit(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 20, group_share=0.3)
  op_bytes = (
    graph.persistent_bytes + graph.temporary_bytes + graph.output_held_bytes
  )
  limit = int(rng.integers(0, op_bytes.sum() + 1))
  group = coplacement_groups(graph, limit)
  free = coplacement_groups(graph)
  for label in set(group.tolist()):
    members = np.flatnonzero(group == label)
    merged = len(set(graph.group[members].tolist())) > 1
    assert op_bytes[members].sum() <= limit or not merged
    assert len(set(free[members].tolist())) == 1  # a part of a group as before


def test_coplacement_groups_merges_in_topological_order_while_it_can():
  # Each op holds 4 bytes: two fit in 8, the third begins anew.
  graph = contracts.chain(5, size=4)
  assert graph.output_held_bytes.tolist() == [4] * 5
  assert coplacement_groups(graph, 8).tolist() == [0, 0, 1, 1, 2]
