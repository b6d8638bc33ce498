import numpy as np
import pytest

from baechi_tf.function_library import CONTROL
from baechi_tf.graph_item import make_item
from baechi_tf.initializer import Values
from baechi_tf.inlining import inline
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

v1 = tf.compat.v1


def function(name, args=(), returns=(), controls=(), nodes=(), stateful=False):
  """Returns a FunctionDef; nodes are (name, op, inputs, attrs)."""
  result = tf.compat.v1.GraphDef().library.function.add()
  result.signature.name = name
  result.signature.is_stateful = stateful
  for arg in args:
    result.signature.input_arg.add(name=arg, type=tf.float32.as_datatype_enum)
  for i, ref in enumerate(returns):
    result.signature.output_arg.add(
      name=f"r{i}", type=tf.float32.as_datatype_enum
    )
    result.ret[f"r{i}"] = ref
  for i, node in enumerate(controls):
    result.control_ret[f"c{i}"] = node
  for node_name, op, inputs, attrs in nodes:
    result.node_def.append(node_def(node_name, op, inputs, **attrs))
  return result


def node_def(name, op, inputs=(), **attrs):
  node = v1.NodeDef(name=name, op=op, input=inputs)
  for key, value in attrs.items():
    if isinstance(value, tf.DType):
      node.attr[key].type = value.as_datatype_enum
    elif key == "f":
      node.attr[key].func.name = value
    elif isinstance(value, list):
      node.attr[key].list.type.extend(x.as_datatype_enum for x in value)
    elif isinstance(value, np.ndarray):
      node.attr[key].tensor.CopyFrom(tf.make_tensor_proto(value))
    elif isinstance(value, bool):
      node.attr[key].b = value
    elif isinstance(value, str):
      node.attr[key].placeholder = value
    else:
      node.attr[key].shape.CopyFrom(tf.TensorShape(value).as_proto())
  return node


def call(name, body, inputs, num_inputs, num_outputs, **attrs):
  return node_def(
    name,
    "StatefulPartitionedCall",
    inputs,
    f=body,
    Tin=[tf.float32] * num_inputs,
    Tout=[tf.float32] * num_outputs,
    **attrs,
  )


def graph(nodes, functions=()):
  result = v1.GraphDef(node=nodes)
  result.versions.producer = 1482
  result.library.function.extend(functions)
  return result


def placeholder(name="x"):
  return node_def(name, "Placeholder", dtype=tf.float32, shape=())


def constant(name, value):
  return node_def(
    name, "Const", dtype=tf.float32, value=np.array(value, np.float32)
  )


VARIABLE = node_def("v", "VarHandleOp", dtype=tf.float32, shape=())


def run(graph_def, output, **feeds):
  """Runs a flat item of the graph from zeros, whose fetch is `output`."""
  item = make_item(graph_def, [], [(output, 0)], "test", Values())
  with session(item.graph_def) as running:
    item.initialize(running)
    return running.run(
      [list(item.fetches), list(item.targets)],
      {f"{name}:0": value for name, value in feeds.items()},
    )[0][0]


DOUBLE = function(
  "double",
  ["a"],
  ["add:z:0"],
  nodes=[("add", "AddV2", ["a", "a"], {"T": tf.float32})],
)


def test_inline_puts_arguments_and_results_in_place():
  flat = inline(
    graph([placeholder(), call("c", "double", ["x"], 1, 1)], [DOUBLE]),
    [],
    [("c", 0)],
  )
  assert list(flat.nodes) == ["x", "c/add"]
  assert flat.inputs["c/add"] == [("x", 0), ("x", 0)]
  assert flat.paths == {"x": ("x",), "c/add": ("c", "add")}
  assert flat.returns["c", 0] == (("c/add", 0), [("c",)])


def test_inline_leaves_the_original_alone():
  original = graph([placeholder(), call("c", "double", ["x"], 1, 1)], [DOUBLE])
  before = original.SerializeToString(deterministic=True)
  inline(original, [], [("c", 0)])
  assert original.SerializeToString(deterministic=True) == before


def test_inline_body_that_returns_its_argument():
  same = function("same", ["a"], ["a"])
  nodes = [
    placeholder(),
    call("c", "same", ["x"], 1, 1),
    call("d", "same", ["c"], 1, 1),
  ]
  flat = inline(graph(nodes, [same]), [], [("d", 0)])
  assert list(flat.nodes) == ["x"]
  assert flat.returns["d", 0] == (("x", 0), [("d",), ("c",)])


def test_inline_names_stay_unique():
  nodes = [
    placeholder("c/add"),
    call("c", "double", ["c/add"], 1, 1),
  ]
  flat = inline(graph(nodes, [DOUBLE]), [], [("c", 0)])
  assert list(flat.nodes) == ["c/add", "c/add_1"]
  assert flat.paths["c/add_1"] == ("c", "add")


def test_inline_gates_what_has_effects_behind_a_calls_control_inputs():
  assign = function(
    "assign",
    ["h", "a"],
    controls=["assign"],
    nodes=[
      ("sum", "AddV2", ["a", "a"], {"T": tf.float32}),
      ("assign", "AssignVariableOp", ["h", "sum:z:0"], {"dtype": tf.float32}),
    ],
    stateful=True,
  )
  assign.signature.input_arg[0].type = tf.resource.as_datatype_enum
  nodes = [
    VARIABLE,
    placeholder(),
    node_def("first", "NoOp"),
    call("c", "assign", ["v", "x", "^first"], 2, 0),
    node_def("last", "NoOp", ["^c"]),
  ]
  flat = inline(graph(nodes, [assign]), [], [("last", CONTROL)])
  assert flat.inputs["c/call_start"] == [("first", CONTROL)]
  assert flat.inputs["c/sum"] == [("x", 0), ("x", 0)]
  assert flat.inputs["c/assign"] == [
    ("v", 0),
    ("c/sum", 0),
    ("c/call_start", CONTROL),
  ]
  assert flat.inputs["c/call_end"] == [
    ("c/assign", CONTROL),
    ("c/call_start", CONTROL),
  ]
  assert flat.inputs["last"] == [("c/call_end", CONTROL)]
  assert flat.paths["c/call_start"] == flat.paths["c/call_end"] == ()
  assert flat.side_effects["c",] == ["c/assign"]


def test_inline_waiting_for_a_pure_call_is_waiting_for_its_results():
  nodes = [
    placeholder(),
    call("c", "double", ["x"], 1, 1),
    node_def("last", "NoOp", ["^c"]),
  ]
  flat = inline(graph(nodes, [DOUBLE]), [], [("last", CONTROL)])
  assert flat.inputs["c/call_end"] == [("c/add", CONTROL)]


def test_inline_body_waiting_for_its_argument():
  body = function(
    "wait",
    ["a"],
    ["one:output:0"],
    nodes=[
      ("one", "Const", ["^a"], {"dtype": tf.float32, "value": np.ones([])})
    ],
  )
  nodes = [
    placeholder(),
    call("inner", "double", ["x"], 1, 1),
    call("c", "wait", ["inner"], 1, 1),
  ]
  flat = inline(graph(nodes, [DOUBLE, body]), [], [("c", 0)])
  assert flat.inputs["c/one"] == [("inner/add", CONTROL)]


def test_inline_calls_by_op_name_fill_open_attrs():
  legacy = function(
    "legacy",
    ["a"],
    ["add:z:0"],
    nodes=[("add", "AddV2", ["a", "a"], {"T": "U"})],
  )
  legacy.signature.attr.add(name="U", type="type")
  nodes = [placeholder(), node_def("c", "legacy", ["x"], U=tf.float32)]
  assert run(graph(nodes, [legacy]), "c", x=3.0) == 6.0


def test_inline_open_attr_without_value_is_rejected():
  legacy = function(
    "legacy",
    ["a"],
    ["add:z:0"],
    nodes=[("add", "AddV2", ["a", "a"], {"T": "U"})],
  )
  nodes = [placeholder(), node_def("c", "legacy", ["x"])]
  with pytest.raises(ValueError, match="'add' needs attr 'U' of its caller"):
    inline(graph(nodes, [legacy]), [], [("c", 0)])


def test_inline_old_function_runs_its_effects():
  # Functions older than control outputs run every stateful op.
  count = function(
    "count",
    ["h"],
    ["one:output:0"],
    nodes=[
      ("one", "Const", [], {"dtype": tf.float32, "value": np.ones([], "f")}),
      (
        "assign",
        "AssignAddVariableOp",
        ["h", "one:output:0"],
        {"dtype": tf.float32},
      ),
    ],
    stateful=True,
  )
  count.signature.input_arg[0].type = tf.resource.as_datatype_enum
  nodes = [VARIABLE, node_def("c", "count", ["v"])]
  item = make_item(graph(nodes, [count]), [], [("c", 0)], "test", Values())
  assert item.targets == ("c/assign",)


def test_inline_recursion_is_rejected():
  again = function(
    "again",
    ["a"],
    ["c:output:0"],
    nodes=[("c", "PartitionedCall", ["a"], {"f": "again"})],
  )
  nodes = [placeholder(), call("c", "again", ["x"], 1, 1)]
  with pytest.raises(ValueError, match="'again' calls itself .at 'c/c'"):
    inline(graph(nodes, [again]), [], [("c", 0)])


def test_inline_missing_function_is_rejected():
  nodes = [placeholder(), call("c", "gone", ["x"], 1, 1)]
  with pytest.raises(ValueError, match="c calls function 'gone'"):
    inline(graph(nodes), [], [("c", 0)])


def test_inline_list_argument_is_rejected():
  many = function("many", ["a"])
  many.signature.input_arg[0].number_attr = "N"
  nodes = [placeholder(), call("c", "many", ["x"], 1, 0)]
  with pytest.raises(ValueError, match="'many' has the list argument 'a'"):
    inline(graph(nodes, [many]), [], [("c", 0)])


@pytest.mark.parametrize("ref", ["gone", "gone:z:0", "x:1"])
def test_inline_reference_to_nothing_is_rejected(ref):
  body = function("body", ["a"], ["add:z:0"], nodes=[("add", "Neg", [ref], {})])
  nodes = [placeholder(), call("c", "body", ["x"], 1, 1)]
  with pytest.raises(ValueError, match="refers to no"):
    inline(graph(nodes, [body]), [], [("c", 0)])


def test_inline_unknown_output_is_rejected():
  nodes = [
    placeholder(),
    call("c", "double", ["x"], 1, 1),
    node_def("y", "Neg", ["c:1"], T=tf.float32),
  ]
  with pytest.raises(ValueError, match="'c:1' .*refers to no output"):
    inline(graph(nodes, [DOUBLE]), [], [("y", 0)])


def test_inline_call_that_xla_compiles_stays_one_op():
  nodes = [
    placeholder(),
    call("c", "double", ["x"], 1, 1, _XlaMustCompile=True),
  ]
  item = make_item(graph(nodes, [DOUBLE]), [], [("c", 0)], "test", Values())
  assert item.op_names == ("x", "c")
  assert [f.signature.name for f in item.graph_def.library.function] == [
    "double"
  ]


def test_inline_colocation_inside_a_body_is_renamed():
  body = function(
    "body",
    ["a"],
    ["two:z:0"],
    nodes=[
      ("one", "AddV2", ["a", "a"], {"T": tf.float32}),
      ("two", "AddV2", ["one:z:0", "a"], {"T": tf.float32}),
    ],
  )
  body.node_def[1].attr["_class"].list.s.extend([b"loc:@one", b"loc:@a"])
  nodes = [placeholder(), call("c", "body", ["x"], 1, 1)]
  flat = inline(graph(nodes, [body]), [], [("c", 0)])
  assert list(flat.nodes["c/two"].attr["_class"].list.s) == [b"loc:@c/one"]
  assert run(graph(nodes, [body]), "c", x=1.0) == 3.0


def test_inline_body_inherits_the_calls_device():
  nodes = [placeholder(), call("c", "double", ["x"], 1, 1)]
  nodes[1].device = "/device:CPU:1"
  flat = inline(graph(nodes, [DOUBLE]), [], [("c", 0)])
  assert flat.nodes["c/add"].device == "/device:CPU:1"


def test_inline_thousands_of_calls_one_after_another():
  num_calls = 3000
  nodes = [placeholder()]
  for i in range(num_calls):
    inputs = [nodes[-1].name, *([f"^{nodes[-1].name}"] if i else [])]
    nodes.append(call(f"c{i}", "double", inputs, 1, 1))
  flat = inline(graph(nodes, [DOUBLE]), [], [(nodes[-1].name, 0)])
  assert flat.inputs["c2999/add"][0] == ("c2998/add", 0)


def test_inline_deep_calls():
  depth = 100
  functions = [DOUBLE]
  for i in range(depth):
    inner = functions[-1].signature.name
    body = function(f"f{i}", ["a"], ["c:output:0"])
    body.node_def.append(call("c", inner, ["a"], 1, 1))
    functions.append(body)
  nodes = [placeholder(), call("c", f"f{depth - 1}", ["x"], 1, 1)]
  assert run(graph(nodes, functions), "c", x=2.0) == 4.0


def test_make_item_cycle_is_rejected():
  nodes = [
    node_def("a", "Neg", ["b"], T=tf.float32),
    node_def("b", "Neg", ["a"], T=tf.float32),
  ]
  with pytest.raises(ValueError, match="2 ops wait .* cycle .*'a', 'b'"):
    make_item(graph(nodes), [], [("a", 0)], "test", Values())


def test_make_item_repeated_node_is_rejected():
  with pytest.raises(ValueError, match="two nodes 'x'"):
    make_item(
      graph([placeholder(), placeholder()]), [], [("x", 0)], "test", Values()
    )


def test_make_item_live_call_runs_its_effects_though_only_data_is_used():
  # The call's result is its argument; that it counts is an effect beside it.
  count = function(
    "count",
    ["h", "a"],
    ["a"],
    ["assign"],
    nodes=[
      ("one", "Const", [], {"dtype": tf.float32, "value": np.ones([], "f")}),
      (
        "assign",
        "AssignAddVariableOp",
        ["h", "one:output:0"],
        {"dtype": tf.float32},
      ),
    ],
  )
  count.signature.input_arg[0].type = tf.resource.as_datatype_enum
  nodes = [VARIABLE, placeholder(), call("c", "count", ["v", "x"], 2, 1)]
  item = make_item(graph(nodes, [count]), [], [("c", 0)], "test", Values())
  assert item.fetches == ("x:0",)
  assert item.targets == ("c/assign",)
  assert item.op_names == ("v", "x", "c/one", "c/assign")
