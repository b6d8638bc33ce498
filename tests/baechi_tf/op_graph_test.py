import networkx as nx
import numpy as np
import pytest

from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import dense_groups
from baechi_tf.op_graph import OpGraph
from tests import contracts
from tests.contracts import make_graph
from tests.contracts import Op


def edges_by_name(graph):
  """Each edge as (producer, output or CONTROL, consumer)."""
  return sorted(contracts.ops_of(graph)[1])


def test_build_empty_graph_has_nothing():
  graph = OpGraph.build([], [])
  assert graph.num_ops == 0
  assert graph.num_groups == 0
  assert graph.order.tolist() == []
  assert graph.op_pairs[0].tolist() == []


def test_build_one_op_keeps_its_costs():
  graph = make_graph(
    [Op("a", 3.0, (5, 7), persistent=11, temporary=2, persistent_outputs=(1,))]
  )
  assert graph.names == ("a",)
  assert graph.compute_time_us.tolist() == [[3.0]]
  assert graph.persistent_bytes.tolist() == [11]
  assert graph.temporary_bytes.tolist() == [2]
  assert graph.tensor_bytes.tolist() == [5, 7]
  assert graph.tensor_held_bytes.tolist() == [5, 0]
  assert graph.output_held_bytes.tolist() == [5]
  assert graph.num_groups == 1


def test_build_fields_are_read_only():
  graph = make_graph([Op("a", 1.0, (4,)), Op("b")], [("a", 0, "b")])
  for field in (graph.compute_time_us, graph.tensor_bytes, graph.order):
    with pytest.raises(ValueError, match="read-only"):
      field[0] = 0


def test_build_control_edge_gets_a_tensor_of_no_bytes():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b"), Op("c")],
    [("a", CONTROL, "b"), ("a", CONTROL, "c")],
  )
  assert graph.tensor_bytes.tolist() == [4, 0]
  assert graph.tensor_is_control.tolist() == [False, True]
  assert edges_by_name(graph) == [("a", CONTROL, "b"), ("a", CONTROL, "c")]


def test_build_repeated_edges_count_once():
  graph = make_graph(
    [Op("a", 1.0, (4, 8)), Op("b")],
    [("a", 1, "b"), ("a", 0, "b"), ("a", 1, "b")],
  )
  assert edges_by_name(graph) == [("a", 0, "b"), ("a", 1, "b")]


def test_build_control_edge_beside_data_edge_is_dropped():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b"), Op("c")],
    [("a", CONTROL, "b"), ("a", 0, "b"), ("a", CONTROL, "c")],
  )
  assert edges_by_name(graph) == [("a", CONTROL, "c"), ("a", 0, "b")]


def test_build_unwanted_output_stays():
  graph = make_graph([Op("a", 1.0, (4,))])
  assert graph.tensor_bytes.tolist() == [4]
  assert graph.consumer_offsets.tolist() == [0, 0]


def test_build_groups_are_dense_by_first_appearance():
  graph = make_graph(
    [Op("a", group="x"), Op("b"), Op("c", group="y"), Op("d", group="x")]
  )
  # Ops without company come after the labelled ones appear where they stand.
  assert graph.group.tolist() == [0, 1, 2, 0]
  assert graph.num_groups == 3


@pytest.mark.parametrize(
  ("labels", "expected"),
  [
    (None, [0, 1, 2]),
    ([-1, -1, -1], [0, 1, 2]),
    ([7, 7, 3], [0, 0, 1]),
    ([-5, 2, -5], [0, 1, 2]),
  ],
)
def test_dense_groups_negative_labels_stay_alone(labels, expected):
  assert dense_groups(labels, 3).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_order_is_topological_and_sorted_by_depth_then_name(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 12)
  oracle = nx.DiGraph()
  oracle.add_nodes_from(graph.names)
  oracle.add_edges_from((a, b) for a, _, b in edges_by_name(graph))
  layers = [sorted(x) for x in nx.topological_generations(oracle)]
  assert [graph.names[op] for op in graph.order] == sum(layers, [])
  assert graph.rank[graph.order].tolist() == list(range(12))


@pytest.mark.parametrize("seed", range(20))
def test_build_listed_in_another_order_is_the_same_graph(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 12, group_share=0.5)
  other = contracts.relisted(graph, rng)
  assert other.names != graph.names
  assert edges_by_name(other) == edges_by_name(graph)
  assert [graph.names[i] for i in graph.order] == [
    other.names[i] for i in other.order
  ]
  moved = [other.index[name] for name in graph.names]
  for field in ("compute_time_us", "persistent_bytes", "output_held_bytes"):
    np.testing.assert_array_equal(
      getattr(other, field)[moved], getattr(graph, field)
    )
  together = graph.group[:, None] == graph.group[None, :]
  group = other.group[moved]
  np.testing.assert_array_equal(group[:, None] == group[None, :], together)


@pytest.mark.parametrize("seed", range(20))
def test_adjacency_lists_every_edge_from_both_ends(seed):
  graph = contracts.random_graph(np.random.default_rng(seed), 12)
  edges = list(zip(graph.edge_tensor, graph.edge_op, strict=True))
  for op in range(graph.num_ops):
    chosen = graph.input_edges[
      graph.input_offsets[op] : graph.input_offsets[op + 1]
    ]
    assert sorted(chosen) == [i for i, (_, to) in enumerate(edges) if to == op]
  for tensor in range(len(graph.tensor_op)):
    first, last = graph.consumer_offsets[tensor : tensor + 2]
    assert list(range(first, last)) == [
      i for i, (x, _) in enumerate(edges) if x == tensor
    ]
  source, target, pair = graph.op_pairs
  assert len(set(zip(source, target, strict=True))) == len(source)
  np.testing.assert_array_equal(source[pair], graph.edge_source)
  np.testing.assert_array_equal(target[pair], graph.edge_op)


def test_times_on_prefers_the_named_column():
  graph = make_graph([Op("a", (1.0, 2.0))], device_types=("*", "V100"))
  assert graph.times_on(["V100", "T4", "V100"]).tolist() == [[2.0, 1.0, 2.0]]


def test_times_on_unknown_type_error_names_it():
  graph = make_graph([Op("a", (1.0,))], device_types=("V100",))
  with pytest.raises(ValueError, match="no compute times .* 'T4'.*'V100'"):
    graph.times_on(["V100", "T4"])


def test_build_cycle_error_names_the_ops_on_it():
  ops = [Op(name, 1.0, (1,)) for name in ("before", "a", "b", "c", "after")]
  edges = [
    ("before", 0, "a"),
    ("a", 0, "b"),
    ("b", 0, "c"),
    ("c", 0, "a"),
    ("c", 0, "after"),
  ]
  with pytest.raises(ValueError, match="has a cycle: ") as caught:
    make_graph(ops, edges)
  cycle = str(caught.value).partition("cycle: ")[2].split(" -> ")
  assert len(cycle) == 4 and cycle[0] == cycle[-1]
  assert set(zip(cycle[:-1], cycle[1:], strict=True)) == {
    ("a", "b"),
    ("b", "c"),
    ("c", "a"),
  }


def test_build_self_loop_is_a_cycle():
  with pytest.raises(ValueError, match="has a cycle: a -> a"):
    make_graph([Op("a", 1.0, (1,))], [("a", 0, "a")])


def test_build_duplicate_name_error_names_it():
  with pytest.raises(ValueError, match="op 'b' is listed twice"):
    make_graph([Op("a"), Op("b"), Op("b")])


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_build_bad_time_error_names_the_op(bad):
  with pytest.raises(ValueError, match="op 'b': compute_time_us must be"):
    make_graph([Op("a"), Op("b", bad)])


@pytest.mark.parametrize("field", ["persistent_bytes", "temporary_bytes"])
@pytest.mark.parametrize("bad", [-1, 2**53 + 1, 2**70, float("nan"), np.inf])
def test_build_bad_bytes_error_names_the_op(field, bad):
  with pytest.raises(ValueError, match=f"op 'b': {field} must be"):
    OpGraph.build(["a", "b"], [1, 1], **{field: [0, bad]})


def test_build_negative_output_bytes_error_names_the_op():
  with pytest.raises(ValueError, match="op 'b': output_bytes must be"):
    make_graph([Op("a", 1.0, (1,)), Op("b", 1.0, (1, -1))])


def test_build_edge_from_missing_output_error_names_the_edge():
  with pytest.raises(ValueError, match="'a' -> 'b': the source has 1 outputs"):
    make_graph([Op("a", 1.0, (1,)), Op("b")], [("a", 1, "b")])
  with pytest.raises(ValueError, match="none numbered -2"):
    make_graph([Op("a", 1.0, (1,)), Op("b")], [("a", -2, "b")])


@pytest.mark.parametrize("ends", [(0, 2), (2, 0), (-1, 0), (0, -1)])
def test_build_edge_to_missing_op_is_an_error(ends):
  with pytest.raises(ValueError, match=r"op outside 0\.\.1"):
    OpGraph.build(
      ["a", "b"],
      [1, 1],
      edge_source=[ends[0]],
      edge_output=[CONTROL],
      edge_target=[ends[1]],
    )


@pytest.mark.parametrize("op", [-1, 2])
def test_build_output_of_missing_op_is_an_error(op):
  with pytest.raises(ValueError, match=r"op outside 0\.\.1"):
    OpGraph.build(["a", "b"], [1, 1], output_op=[op], output_bytes=[1])


@pytest.mark.parametrize(
  ("field", "arrays"),
  [
    ("persistent_bytes", {"persistent_bytes": [1]}),
    ("temporary_bytes", {"temporary_bytes": [1, 2, 3]}),
    ("group", {"group": [0]}),
    ("output_bytes", {"output_op": [0], "output_bytes": [1, 2]}),
    ("edge_target", {"edge_source": [0], "edge_output": [CONTROL]}),
    ("edge_output", {"edge_source": [0], "edge_target": [1]}),
  ],
)
def test_build_array_of_wrong_length_is_an_error(field, arrays):
  with pytest.raises(ValueError, match=f"{field} has . entries, needs"):
    OpGraph.build(["a", "b"], [1, 1], **arrays)


def test_build_times_of_wrong_shape_is_an_error():
  with pytest.raises(ValueError, match="3 numbers for 2 ops on 1 device types"):
    OpGraph.build(["a", "b"], [1, 1, 1])
