import pytest

from baechi_tf.graph_check import check_signatures
from baechi_tf.graph_files import graph_file_bytes
from baechi_tf.graph_item import read_item
from tests.tensorflow_setup import tf


def node_of(graph, op):
  """Returns the first node of an op, whether or not it has effects."""
  return next(x for x in graph.node if x.op in (op, f"Stateless{op}"))


def _drop_type(graph):
  del node_of(graph, "Placeholder").attr["dtype"]


def _spoil_type(graph):
  node_of(graph, "Placeholder").attr["dtype"].type = 77


def _drop_input(graph):
  del node_of(graph, "Identity").input[:]


def _drop_body(graph):
  node_of(graph, "While").attr["body"].func.name = "gone"


def _swap_body(graph):
  loop = node_of(graph, "While")
  loop.attr["cond"].func.name = loop.attr["body"].func.name


def _repeat_function(graph):
  graph.library.function.add().CopyFrom(graph.library.function[0])


def _spoil_argument(graph):
  graph.library.function[0].signature.input_arg[0].type = 0


def _spoil_body(graph):
  nodes = graph.library.function[0].node_def
  next(x for x in nodes if x.input).input[0] = "gone:0"


def _spoil_op(graph):
  graph.library.function[0].node_def[0].op = "Fly"


def _spoil_constant(graph):
  node_of(graph, "Const").attr["value"].tensor.dtype = 103


def _spoil_count(graph):
  graph.node.add(name="many", op="Split").attr["num_split"].i = 2**40
  graph.node[-1].attr["T"].type = 1


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_drop_type, r"node 'x' \(Placeholder\) lacks its attr 'dtype'"),
    (_spoil_type, r"attr 'dtype': 77 is no data type"),
    (_drop_input, r"\(Identity\) has 0 inputs, its op takes 1"),
    (_drop_body, "calls function 'gone', which is missing"),
    (_swap_body, r"calls function '.*', which returns \d tensors, not 1"),
    (_repeat_function, "the library has two functions of one name"),
    (_spoil_argument, "function .*, argument .*: 0 is no data type"),
    (_spoil_body, "function .* refers to 'gone:0', which is not in its body"),
    (_spoil_op, "this TensorFlow has no op 'Fly'"),
    (_spoil_constant, "attr 'value' is a reference"),
    (_spoil_count, "num_split must be from 0 to 1,048,576, got 1099511627776"),
  ],
)
def test_graph_that_breaks_its_ops_definitions_is_rejected(
  tmp_path, damage, message
):
  graph = tf.Graph()
  with graph.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
    loop = tf.while_loop(
      lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (0, x)
    )
    tf.identity(loop[1], name="y")
  graph_def = graph.as_graph_def()
  path = tmp_path / "graph.pb"
  path.write_bytes(graph_file_bytes(graph_def, path))
  assert read_item(path, fetches=["y"]).op_names
  damage(graph_def)
  path.write_bytes(graph_file_bytes(graph_def, path))
  with pytest.raises(ValueError, match=message):
    read_item(path, fetches=["y"])


def test_signature_of_an_unknown_type_is_rejected():
  meta_graph = tf.compat.v1.MetaGraphDef()
  signature = meta_graph.signature_def["train"]
  signature.inputs["x"].dtype = 1
  signature.outputs["train_op"].name = "train_op"  # an op has no type
  check_signatures(meta_graph)
  signature.inputs["y"].dtype = 0
  with pytest.raises(ValueError, match="'train', input 'y': 0 is no data type"):
    check_signatures(meta_graph)
