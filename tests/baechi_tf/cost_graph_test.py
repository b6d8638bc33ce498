import json

import networkx as nx
import numpy as np
import pytest

from baechi_tf.cost_graph import from_networkx
from baechi_tf.cost_graph import read_cost_graph
from baechi_tf.cost_graph import to_networkx
from baechi_tf.cost_graph import write_cost_graph
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import OpGraph

ARRAYS = (
  "compute_time_us",
  "persistent_bytes",
  "temporary_bytes",
  "tensor_op",
  "tensor_bytes",
  "tensor_is_persistent",
  "tensor_is_control",
  "edge_tensor",
  "edge_op",
  "group",
  "is_input",
)


def write(tmp_path, tables) -> str:
  path = tmp_path / "graph.json"
  path.write_text(tables if isinstance(tables, str) else json.dumps(tables))
  return str(path)


def two_ops(**fields) -> dict:
  """a -> b, with fields on b."""
  return {
    "directed": True,
    "nodes": [
      {"id": "a", "compute_time_us": 1, "output_bytes": [4]},
      {"id": "b", "compute_time_us": 2, **fields},
    ],
    "edges": [{"source": "a", "target": "b"}],
  }


def random_graph(seed: int) -> OpGraph:
  """Everything that a graph can have, at random."""
  rng = np.random.default_rng(seed)
  n = int(rng.integers(1, 40))
  num_outputs = rng.integers(0, 4, n)
  output_op = np.repeat(np.arange(n), num_outputs)
  k = len(output_op)
  source, target = np.sort(rng.integers(0, n, (2, 3 * n)), axis=0)
  apart = source < target
  source, target = source[apart], target[apart]
  output = np.where(
    (num_outputs[source] > 0) & (rng.random(len(source)) < 0.7),
    rng.integers(0, 4, len(source)) % np.maximum(num_outputs[source], 1),
    CONTROL,
  )
  types = [("*",), ("CPU",), ("V100", "*", "A100")][seed % 3]
  return OpGraph.build(
    [f"op/{i}" for i in rng.permutation(n)],
    rng.random((n, len(types))) * 10.0 ** rng.integers(-3, 7, (n, 1)),
    device_types=types,
    persistent_bytes=rng.integers(0, 2**40, n),
    temporary_bytes=rng.integers(0, 2**40, n),
    output_op=output_op,
    output_bytes=rng.integers(0, 2**33, k),
    output_is_persistent=rng.random(k) < 0.3,
    edge_source=source,
    edge_output=output,
    edge_target=target,
    group=rng.integers(-1, max(n // 2, 1), n),
    is_input=rng.random(n) < 0.2,
  )


def assert_same(graph: OpGraph, other: OpGraph) -> None:
  assert graph.names == other.names
  assert graph.device_types == other.device_types
  for name in ARRAYS:
    np.testing.assert_array_equal(
      getattr(graph, name), getattr(other, name), err_msg=name
    )


@pytest.mark.parametrize("seed", range(30))
def test_written_graph_is_read_back_the_same(seed, tmp_path):
  graph = random_graph(seed)
  path = tmp_path / "graph.json"
  write_cost_graph(graph, path)
  assert_same(read_cost_graph(path), graph)


@pytest.mark.parametrize("seed", range(30))
def test_networkx_graph_is_converted_back_the_same(seed):
  graph = random_graph(seed)
  assert_same(from_networkx(to_networkx(graph)), graph)


@pytest.mark.parametrize("key", ["edges", "links"])
def test_node_link_data_of_networkx_is_read(key, tmp_path):
  graph = random_graph(1)
  data = nx.node_link_data(to_networkx(graph), edges=key)
  assert_same(read_cost_graph(write(tmp_path, data)), graph)


def test_written_graph_is_read_by_networkx(tmp_path):
  graph = random_graph(2)
  path = tmp_path / "graph.json"
  write_cost_graph(graph, path)
  back = nx.node_link_graph(json.loads(path.read_text()), edges="edges")
  assert_same(from_networkx(back), graph)


def test_plain_digraph_is_converted():
  plain = nx.DiGraph()
  plain.add_node("a", compute_time_us=1.5, output_bytes=[8])
  plain.add_node("b", compute_time_us=2)
  plain.add_edge("a", "b")
  graph = from_networkx(plain)
  assert graph.names == ("a", "b")
  assert graph.compute_time_us[:, 0].tolist() == [1.5, 2.0]
  assert graph.tensor_bytes[graph.edge_tensor].tolist() == [8]


def test_writing_twice_gives_the_same_bytes(tmp_path):
  for name in "ab":
    write_cost_graph(random_graph(5), tmp_path / name)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_fields_mean_what_the_documentation_says(tmp_path):
  graph = read_cost_graph(
    write(
      tmp_path,
      {
        "nodes": [
          {
            "name": "w",
            "compute_time_us": 0,
            "persistent_bytes": 100,
            "output_bytes": [100],
            "persistent_output": True,
            "colocation_group": "w",
          },
          {
            "name": "f",
            "compute_time_us": {"V100": 1, "CPU": 9.5},
            "temporary_bytes": 7,
            "output_bytes": [10, 20],
            "persistent_output": [False, True],
            "colocation_group": "w",
          },
          {"name": "g", "compute_time_us": 3},
        ],
        "links": [
          {"source": "w", "target": "f"},
          {"source": "f", "target": "g", "output": 1},
          {"source": "w", "target": "g", "control": True},
        ],
      },
    )
  )
  assert graph.names == ("w", "f", "g")
  assert graph.device_types == ("V100", "CPU")
  assert graph.compute_time_us.tolist() == [[0, 0], [1, 9.5], [3, 3]]
  assert graph.persistent_bytes.tolist() == [100, 0, 0]
  assert graph.temporary_bytes.tolist() == [0, 7, 0]
  assert graph.group.tolist() == [0, 0, 1]
  sources = [graph.names[x] for x in graph.edge_source]
  targets = [graph.names[x] for x in graph.edge_op]
  sizes = graph.tensor_bytes[graph.edge_tensor].tolist()
  control = graph.tensor_is_control[graph.edge_tensor].tolist()
  assert list(zip(sources, targets, sizes, control, strict=True)) == [
    ("w", "f", 100, False),
    ("w", "g", 0, True),
    ("f", "g", 20, False),
  ]
  assert graph.tensor_held_bytes.tolist() == [0, 0, 10, 0]


def test_only_numbers_hold_for_any_device_type(tmp_path):
  graph = read_cost_graph(write(tmp_path, two_ops()))
  assert graph.times_on(["V100", "CPU"]).tolist() == [[1, 1], [2, 2]]


def test_time_for_any_type_stands_in_for_one_that_is_missing(tmp_path):
  tables = two_ops()
  tables["nodes"][0]["compute_time_us"] = {"CPU": 4, "V100": 5}
  tables["nodes"][1]["compute_time_us"] = {"*": 6, "V100": 7}
  with pytest.raises(ValueError, match="op 'a': compute_time_us lacks device"):
    read_cost_graph(write(tmp_path, tables))
  tables["nodes"][0]["compute_time_us"] = 4
  graph = read_cost_graph(write(tmp_path, tables))
  assert graph.times_on(["CPU", "V100"]).tolist() == [[4, 4], [6, 7]]


def test_name_differs_from_id_that_edges_use(tmp_path):
  tables = two_ops()
  tables["nodes"][0] |= {"id": 0, "name": "first"}
  tables["nodes"][1] |= {"id": 1}
  tables["edges"] = [{"source": 0, "target": 1, "key": 0}]
  graph = read_cost_graph(write(tmp_path, tables))
  assert graph.names == ("first", "1")
  assert graph.edge_op.tolist() == [1]


def test_empty_graph_is_read(tmp_path):
  graph = read_cost_graph(write(tmp_path, {"nodes": [], "edges": []}))
  assert graph.num_ops == 0


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "not JSON"),
    ('{"nodes": [', "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ("[]", "not a cost graph"),
    ("{}", '"nodes" must be a list of objects'),
    ('{"nodes": [1], "edges": []}', r"nodes\[0\] must be an object, got 1"),
    ('{"nodes": []}', '"edges" must be a list of objects'),
    ('{"nodes": [], "edges": [], "links": []}', 'both "edges" and "links"'),
    ('{"directed": false, "nodes": [], "edges": []}', "directed must be true"),
  ],
)
def test_file_that_is_no_cost_graph_is_refused(text, message, tmp_path):
  path = write(tmp_path, text)
  with pytest.raises(ValueError, match=message) as caught:
    read_cost_graph(path)
  assert str(caught.value).startswith(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
  path = tmp_path / "graph.json"
  path.write_bytes(b"\xff\xfe\x00{")
  with pytest.raises(ValueError, match="not JSON"):
    read_cost_graph(path)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"compute_time_us": None}, "op 'b': compute_time_us must be a number"),
    ({"compute_time_us": -1}, "op 'b': compute_time_us .* got -1"),
    ({"compute_time_us": float("nan")}, "op 'b': compute_time_us"),
    ({"compute_time_us": float("inf")}, "op 'b': compute_time_us"),
    ({"compute_time_us": True}, "op 'b': compute_time_us"),
    ({"compute_time_us": {}}, "op 'b': compute_time_us"),
    ({"compute_time_us": {"CPU": "1"}}, "op 'b': compute_time_us"),
    ({"persistent_bytes": -1}, "op 'b': persistent_bytes .* got -1"),
    ({"persistent_bytes": 1.5}, "op 'b': persistent_bytes"),
    ({"is_input": 1}, "op 'b': is_input must be true or false; got 1"),
    ({"temporary_bytes": "1 MiB"}, "op 'b': temporary_bytes .*1 MiB"),
    ({"temporary_bytes": 2**70}, "op 'b': temporary_bytes"),
    ({"output_bytes": 8}, "op 'b': output_bytes must be a list"),
    ({"output_bytes": [8, -8]}, "op 'b': output_bytes"),
    ({"persistent_output": 1}, "op 'b': persistent_output"),
    ({"persistent_output": [True]}, "op 'b': persistent_output has 1 entries"),
    ({"colocation_group": ["x"]}, "op 'b': colocation_group"),
    ({"persistant_bytes": 1}, "op 'b': unknown field 'persistant_bytes'; did"),
    ({"id": None}, r"nodes\[1\]: id must be a string or a whole number"),
    ({"name": ["b"]}, r"nodes\[1\]: id must be"),
    ({"id": "a"}, "op 'a' is listed twice"),
    ({"name": "a"}, "op 'a' is listed twice"),
    ({"persistent_bytes": 2**53, "temporary_bytes": 2}, "all bytes"),
    ({"persistent_bytes": 2**53 + 1}, "must be a whole number from 0 to 9,007"),
    ({"compute_time_us": 2e15}, r"a number from 0 to 1e\+15, .*got 2000"),
    ({"name": "\ud800x"}, r"the name '\\ud800x' is not Unicode text"),
    ({"compute_time_us": {"\udfff": 1, "*": 1}}, "is not Unicode text"),
  ],
)
def test_bad_op_is_refused(fields, message, tmp_path):
  with pytest.raises(ValueError, match=f"graph.json: .*{message}"):
    read_cost_graph(write(tmp_path, two_ops(**fields)))


def test_op_without_identity_or_time_is_refused(tmp_path):
  tables = two_ops()
  del tables["nodes"][1]["compute_time_us"]
  with pytest.raises(ValueError, match="compute_time_us .*; it is missing"):
    read_cost_graph(write(tmp_path, tables))
  del tables["nodes"][1]["id"]
  with pytest.raises(ValueError, match=r'nodes\[1\] has neither "id" nor'):
    read_cost_graph(write(tmp_path, tables))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"source": "x"}, r"edge 0: source must be an op's id; \"x\" is no op"),
    ({"target": ["b"]}, "edge 0: target must be an op's id"),
    ({"output": 1}, "edge 'a' -> 'b': the source has 1 outputs, none numbered"),
    ({"output": -1}, r"edge 0 \(a -> b\): output must be a whole number"),
    ({"output": True}, r"edge 0 \(a -> b\): output must be"),
    ({"control": 1}, r"edge 0 \(a -> b\): control must be true or false"),
    ({"control": True, "output": 0}, ".*: a control edge carries no output"),
    ({"weight": 3}, "edge 0: unknown field 'weight'"),
  ],
)
def test_bad_edge_is_refused(fields, message, tmp_path):
  tables = two_ops()
  tables["edges"][0] |= fields
  with pytest.raises(ValueError, match=f"graph.json: {message}"):
    read_cost_graph(write(tmp_path, tables))


def test_edge_without_ends_is_refused(tmp_path):
  tables = two_ops()
  del tables["edges"][0]["target"]
  with pytest.raises(ValueError, match="edge 0: target .*; it is missing"):
    read_cost_graph(write(tmp_path, tables))


def test_cycle_is_refused_with_its_ops(tmp_path):
  tables = two_ops(output_bytes=[4])
  tables["edges"].append({"source": "b", "target": "a"})
  with pytest.raises(ValueError, match=r"graph.json: .*cycle: \w -> \w -> \w"):
    read_cost_graph(write(tmp_path, tables))


def test_undirected_networkx_graph_is_refused():
  with pytest.raises(ValueError, match="directed must be true"):
    from_networkx(nx.Graph())


def test_missing_file_and_directory_are_os_errors(tmp_path):
  with pytest.raises(FileNotFoundError):
    read_cost_graph(tmp_path / "none.json")
  with pytest.raises(IsADirectoryError):
    read_cost_graph(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path):
  target = tmp_path / "graph.json"
  target.mkdir()  # a file cannot replace a directory
  with pytest.raises(OSError, match="graph.json"):
    write_cost_graph(random_graph(0), target)
  assert [x.name for x in tmp_path.iterdir()] == ["graph.json"]
