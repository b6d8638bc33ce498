import json

import numpy as np
import pytest

from baechi_tf.placement import check_placement
from baechi_tf.placement import Placement
from baechi_tf.placement import placement_for
from baechi_tf.placement import read_placement
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op

GRAPH = make_graph([Op("b", group="g"), Op("a"), Op("ü/c", group="g")])
CLUSTER = make_cluster(2)
DEVICE_OF = {"b": "d1", "a": "d0", "ü/c": "d1"}


CHAIN = make_graph(
  [Op("first", outputs=(1,)), Op("then"), Op("last")], [("first", 0, "then")]
)


def placement(device, graph=GRAPH, cluster=CLUSTER, **figures):
  return Placement(
    graph.names, cluster.device_names, np.array(device), **figures
  )


def test_json_round_trip_keeps_the_devices(tmp_path):
  path = tmp_path / "plan.json"
  before = placement([1, 0, 1], makespan_us=2.5, lower_bound_us=2.0)
  path.write_text(before.to_json(), encoding="utf-8")
  after = read_placement(path, GRAPH, CLUSTER)
  assert after.as_dict() == before.as_dict() == DEVICE_OF
  assert after.device.tolist() == [1, 0, 1]


def test_to_json_has_the_documented_fields():
  text = placement([1, 0, 1], makespan_us=2.5, lower_bound_us=2.0).to_json()
  assert json.loads(text) == {
    "devices": ["d0", "d1"],
    "placement": DEVICE_OF,
    "makespan_us": 2.5,
    "lower_bound_us": 2.0,
  }
  assert text.endswith("}\n")


def test_to_json_of_equal_placements_is_the_same_text():
  assert placement([1, 0, 1]).to_json() == placement([1, 0, 1]).to_json()


def test_json_round_trip_keeps_the_order(tmp_path):
  path = tmp_path / "plan.json"
  before = placement([1, 0, 1], order=np.array([2, 0, 1]))
  assert json.loads(before.to_json())["order"] == ["ü/c", "b", "a"]
  path.write_text(before.to_json(), encoding="utf-8")
  assert read_placement(path, GRAPH, CLUSTER).order.tolist() == [2, 0, 1]


def test_placement_without_an_order_has_none(tmp_path):
  path = tmp_path / "plan.json"
  path.write_text(json.dumps({"placement": DEVICE_OF}), encoding="utf-8")
  assert read_placement(path, GRAPH, CLUSTER).order is None


@pytest.mark.parametrize(
  ("order", "message"),
  [
    (["first", "last"], "lacks 1 of 3 ops, first 'then'"),
    ([], "lacks 3 of 3 ops, first 'first'"),
    (["first", "then", "first", "last"], "repeats 1 of 3 ops, first 'first'"),
    (["first", "then", "last", "z"], "unknown op 'z'"),
    (["then", "last", "first"], "a cycle: 'then' comes before 'first'"),
    ("first", '"order" must be a list'),
    (["first", 3], '"order" must be a list'),
    ({"d0": ["first"]}, '"order" must be a list'),
  ],
)
def test_read_placement_wrong_order_is_an_error(tmp_path, order, message):
  path = tmp_path / "plan.json"
  device_of = dict.fromkeys(CHAIN.names, "d0")
  path.write_text(json.dumps({"placement": device_of, "order": order}))
  with pytest.raises(ValueError, match=rf"plan\.json: .*{message}"):
    read_placement(path, CHAIN, CLUSTER)


def test_placement_for_ignores_the_order_of_the_mapping():
  reversed_order = dict(reversed(DEVICE_OF.items()))
  assert placement_for(GRAPH, CLUSTER, reversed_order).device.tolist() == [
    1,
    0,
    1,
  ]


def test_placement_for_leaves_inputs_on_the_client():
  graph = make_graph([Op("x", is_input=True), Op("y")])
  found = placement_for(graph, CLUSTER, {"x": "d1", "y": "d1"})
  assert found.device.tolist() == [0, 1]


def test_placement_for_missing_op_error_names_it():
  with pytest.raises(ValueError, match="2 of 3 ops have no device.*'b'.*other"):
    placement_for(GRAPH, CLUSTER, {"a": "d0"})


def test_placement_for_unknown_op_error_names_it():
  with pytest.raises(ValueError, match="unknown op 'z'"):
    placement_for(GRAPH, CLUSTER, {**DEVICE_OF, "z": "d0"})


def test_placement_for_unknown_device_error_names_it():
  with pytest.raises(ValueError, match="'a' is placed on 'd7'.*d0, d1"):
    placement_for(GRAPH, CLUSTER, {**DEVICE_OF, "a": "d7"})


def test_placement_for_split_group_error_names_both_ops():
  with pytest.raises(ValueError, match="'b' and 'ü/c' must share .*d0 and d1"):
    placement_for(GRAPH, CLUSTER, {**DEVICE_OF, "b": "d0"})


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"placement": ' + b"[" * 100_000, "not JSON: nested too deeply"),
    (b"9" * 5000, "not JSON: .*4300 digits"),
  ],
)
def test_read_placement_broken_file_is_an_error(tmp_path, text, message):
  path = tmp_path / "plan.json"
  path.write_bytes(text)
  with pytest.raises(ValueError, match=rf"plan\.json: {message}"):
    read_placement(path, GRAPH, CLUSTER)


@pytest.mark.parametrize(
  "text",
  [
    "[]",
    "3",
    '"placement"',
    "{}",
    '{"placement": ["d0"]}',
    '{"placement": "d0"}',
    '{"placement": {"a": ["d0"]}}',
    '{"placement": {"a": 0}}',
  ],
)
def test_read_placement_of_another_file_is_an_error(tmp_path, text):
  path = tmp_path / "plan.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"plan\.json: not a placement file"):
    read_placement(path, GRAPH, CLUSTER)


def test_read_placement_error_names_the_file(tmp_path):
  path = tmp_path / "plan.json"
  path.write_text(json.dumps({"placement": {"a": "d0"}}))
  with pytest.raises(ValueError, match=r"plan\.json: 2 of 3 ops"):
    read_placement(path, GRAPH, CLUSTER)


def test_read_placement_missing_file_is_an_os_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    read_placement(tmp_path / "none.json", GRAPH, CLUSTER)


@pytest.mark.parametrize(
  ("device", "message"),
  [
    ([0, 1, 2], "op 'ü/c' has no device"),
    ([0, -1, 0], "op 'a' has no device"),
    ([0, 1], "2 devices for 3 ops"),
    ([0, 1, 1], "'b' and 'ü/c' must share a device"),
  ],
)
def test_check_placement_broken_placement_is_an_error(device, message):
  with pytest.raises(ValueError, match=message):
    check_placement(GRAPH, CLUSTER, placement(device))


def test_check_placement_of_other_graph_or_cluster_is_an_error():
  other = make_graph([Op("x"), Op("y"), Op("z")])
  with pytest.raises(ValueError, match="not of this graph's ops"):
    check_placement(GRAPH, CLUSTER, placement([0, 0, 0], graph=other))
  three = make_cluster(3)
  with pytest.raises(ValueError, match="not on this cluster's devices"):
    check_placement(GRAPH, CLUSTER, placement([0, 0, 0], cluster=three))


def test_check_placement_of_nothing_passes():
  empty = make_graph([])
  check_placement(empty, CLUSTER, placement([], graph=empty))
