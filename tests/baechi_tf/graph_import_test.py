import numpy as np
import pytest

from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import make_item
from baechi_tf.graph_item import read_item
from baechi_tf.initializer import Values
from tests import models
from tests.tensorflow_setup import tf


def unit_costs(item, **fields):
  """One microsecond, and four bytes for each of up to nine outputs."""
  fields = {"output_bytes": (4,) * 9} | fields
  ops = {node.name: node.op for node in item.graph_def.node}
  return {x: OpCost(ops[x], 1.0, **fields) for x in item.op_names}


def imported(item):
  return op_graph_from_item(item, {"CPU": unit_costs(item)}, ["CPU"])


def tf_graph(item):
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(item.graph_def, name="")
  return graph


@pytest.fixture(scope="module")
def items(tmp_path_factory):
  root = tmp_path_factory.mktemp("models")
  return {
    "mlp": read_item(models.save_mlp(root / "mlp"), signature="train"),
    "loop": read_item(models.save_loop(root / "loop")),
    "v1": read_item(models.save_v1(root / "v1", use_resource=True)),
    "v1 references": read_item(models.save_v1(root / "ref", False)),
  }


MODELS = ("mlp", "loop", "v1", "v1 references")


@pytest.mark.parametrize("model", MODELS)
def test_ops_are_the_planned_ones_in_order(items, model):
  assert imported(items[model]).names == items[model].op_names


@pytest.mark.parametrize("model", MODELS)
def test_inputs_are_what_is_fed(items, model):
  graph = imported(items[model])
  fed = {feed.tensor.partition(":")[0] for feed in items[model].feeds}
  assert fed
  assert {graph.names[i] for i in np.flatnonzero(graph.is_input)} == fed


@pytest.mark.parametrize("model", MODELS)
def test_edges_equal_a_walk_of_tensorflows_graph(items, model):
  item = items[model]
  graph = imported(item)
  found = set()
  for tensor, op in zip(graph.edge_tensor, graph.edge_op, strict=True):
    source = graph.tensor_op[tensor]
    is_control = graph.tensor_is_control[tensor]
    output = -1 if is_control else tensor - graph.tensor_offsets[source]
    found.add((graph.names[source], int(output), graph.names[op]))
  expected = set()
  planned = set(item.op_names)
  for op in tf_graph(item).get_operations():
    if op.name not in planned:
      continue
    producers = {x.op.name for x in op.inputs}
    for x in op.inputs:
      expected.add((x.op.name, x.value_index, op.name))
    for x in op.control_inputs:
      if x.name not in producers:  # says nothing new
        expected.add((x.name, -1, op.name))
  assert found == expected


@pytest.mark.parametrize("model", MODELS)
def test_groups_hold_all_that_touch_a_variable(items, model):
  graph = imported(items[model])
  group = dict(zip(graph.names, graph.group, strict=True))
  num_touching = 0
  for op in tf_graph(items[model]).get_operations():
    if op.name not in group:
      continue
    for position, x in enumerate(op.inputs):
      by_reference = (
        x.dtype._is_ref_dtype and op._input_types[position]._is_ref_dtype
      )
      if x.dtype == tf.resource or by_reference:
        num_touching += 1
        assert group[op.name] == group[x.op.name]
  assert num_touching >= 2


def test_groups_of_two_variables_stay_apart(items):
  graph = imported(items["mlp"])
  handles = [i for i, x in enumerate(graph.names) if x in ("w", "v", "step")]
  assert len(handles) == 3
  assert len(set(graph.group[handles].tolist())) == 3


def test_loop_is_one_op(items):
  item = items["loop"]
  graph = imported(item)
  types = {node.name: node.op for node in item.graph_def.node}
  assert [types[x] for x in graph.names].count("While") == 1
  bodies = {
    node.name
    for f in item.graph_def.library.function
    for node in f.node_def
    if "MatMul" in node.op
  }
  assert bodies
  assert not bodies & set(graph.names)


def test_variable_is_counted_once(items):
  item = items["mlp"]
  graph = imported(item)
  types = {node.name: node.op for node in item.graph_def.node}
  held = {
    x: int(graph.persistent_bytes[i])
    for i, x in enumerate(graph.names)
    if types[x] in ("VarHandleOp", "ReadVariableOp")
  }
  # w, v and the int64 step counter.
  expected = 4 * models.FEATURES * 8 + 4 * 8 * models.CLASSES + 8
  assert sum(held.values()) == expected
  reads = [i for i, x in enumerate(graph.names) if types[x] == "ReadVariableOp"]
  assert reads
  assert not graph.output_held_bytes[reads].any()
  tensors = np.isin(graph.tensor_op, reads) & ~graph.tensor_is_control
  assert (graph.tensor_bytes[tensors] == 4).all()


def test_old_variable_holds_its_bytes(items):
  graph = imported(items["v1 references"])
  w = graph.index["w"]
  assert graph.persistent_bytes[w] == 4 * models.FEATURES * models.CLASSES
  assert graph.output_held_bytes[w] == 0


def test_resource_handles_weigh_nothing(items):
  graph = imported(items["mlp"])
  w = graph.index["w"]
  first, last = graph.tensor_offsets[w : w + 2]
  assert graph.tensor_bytes[first:last].tolist() == [0] * (last - first)


def test_constant_is_held_once():
  graph_def = tf.compat.v1.GraphDef()
  with tf.Graph().as_default() as graph:
    tf.identity(tf.constant(np.zeros([10, 10], "f"), name="c"), name="y")
    graph_def = graph.as_graph_def()
  item = small_item(graph_def, fetches=("y:0",))
  costs = unit_costs(item, output_bytes=(400,))
  graph = op_graph_from_item(item, {"CPU": costs}, ["CPU"])
  c = graph.index["c"]
  assert graph.persistent_bytes[c] == 400
  assert graph.output_held_bytes[c] == 0
  assert graph.tensor_bytes[graph.tensor_offsets[c]] == 400


def small_item(graph_def, fetches=()):
  return GraphItem(
    graph_def=graph_def,
    feeds=(),
    fetches=fetches,
    targets=(),
    op_names=tuple(node.name for node in graph_def.node),
    paths={},
    source="a small graph",
    initializer=lambda session: None,
  )


def test_class_attributes_join_even_through_an_unplanned_op():
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [], name="x")
    a, b, _ = (tf.negative(x, name=n) for n in "abc")
    for op in (a, b):
      op.op._set_attr(
        "_class",
        tf.compat.v1.AttrValue(
          list=tf.compat.v1.AttrValue.ListValue(s=[b"loc:@gone"])
        ),
      )
    graph_def = graph.as_graph_def()
  graph = imported(small_item(graph_def))
  group = {x: graph.group[graph.index[x]] for x in "abcx"}
  assert group["a"] == group["b"]
  assert len({group["a"], group["c"], group["x"]}) == 3


def test_ops_of_one_kernel_join_even_if_one_type_alone_has_it():
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [], name="x")
    y = tf.negative(tf.negative(tf.negative(x, name="a"), name="b"), name="c")
    graph_def = graph.as_graph_def()
  item = small_item(graph_def, fetches=(y.name,))
  costs = unit_costs(item)
  fused = costs | {"a": OpCost("Neg", 1.0, fused_into="b")}
  graph = op_graph_from_item(item, {"GPU": costs, "CPU": fused}, ["GPU", "CPU"])
  group = {x: graph.group[graph.index[x]] for x in "abcx"}
  assert group["a"] == group["b"]
  assert len({group["a"], group["c"], group["x"]}) == 3


def test_each_device_type_is_a_column(items):
  item = items["loop"]
  cpu = unit_costs(item, temporary_bytes=5)
  gpu = {
    name: OpCost(cost.op_type, 0.25, 9, 0, cost.output_bytes)
    for name, cost in cpu.items()
  }
  graph = op_graph_from_item(
    item, {"CPU": cpu, "V100": gpu}, ["V100", "CPU", "V100"]
  )
  assert graph.device_types == ("V100", "CPU")
  assert graph.compute_time_us.tolist() == [[0.25, 1.0]] * graph.num_ops
  assert (graph.temporary_bytes == 9).all()


def test_missing_cost_names_the_op(items):
  item = items["loop"]
  costs = unit_costs(item)
  del costs[item.op_names[3]]
  with pytest.raises(
    ValueError, match=rf"1 of .* 'CPU', first '{item.op_names[3]}'"
  ):
    op_graph_from_item(item, {"CPU": costs}, ["CPU"])


def test_fed_op_needs_no_inputs():
  with tf.Graph().as_default() as graph:
    default = tf.compat.v1.placeholder_with_default(
      tf.constant(1.0, name="unused"), [], name="x"
    )
    tf.negative(default, name="y")
    graph_def = graph.as_graph_def()
  feed = Feed("x", "x:0", tf.float32, ())
  item = make_item(graph_def, [feed], [("y", 0)], "a small graph", Values())
  assert imported(item).names == ("x", "y")


def test_unplanned_input_is_refused():
  with tf.Graph().as_default() as graph:
    tf.negative(tf.constant(1.0, name="c"), name="y")
    graph_def = graph.as_graph_def()
  item = small_item(graph_def)
  item = GraphItem(**(vars(item) | {"op_names": ("y",)}))
  with pytest.raises(ValueError, match="'y' takes 'c', which is not planned"):
    imported(item)


def test_cycle_names_its_ops():
  graph_def = tf.compat.v1.GraphDef()
  for name, source in (("a", "b"), ("b", "a")):
    node = graph_def.node.add(name=name, op="Neg", input=[source])
    node.attr["T"].type = tf.float32.as_datatype_enum
  with pytest.raises(ValueError, match="cycle: a -> b -> a|cycle: b -> a -> b"):
    imported(small_item(graph_def))
