"""The shape of every tensor of a step, given the shapes of its inputs.

TensorFlow's own shape functions infer them as the graph is imported. A loop
that was traced for a batch of unknown size does not say how large its results
are; they are taken to keep the shapes that the loop starts with.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

v1 = tf.compat.v1

LOOPS = frozenset({"While", "StatelessWhile"})

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """What is known of a tensor before it is computed.

  Attributes:
    dtype: its type, without "reference".
    shape: its dimensions; one that is unknown counts as 1, and a tensor of
      unknown rank as a scalar.
    is_known: whether none of that was needed.
  """

  dtype: tf.DType
  shape: Shape
  is_known: bool = True

  @functools.cached_property
  def num_bytes(self) -> int:
    """Its size; handles and variants weigh nothing here, strings 16 bytes."""
    if self.dtype in (tf.resource, tf.variant):
      return 0
    item_bytes = 16 if self.dtype == tf.string else self.dtype.size
    return math.prod(self.shape) * item_bytes


Shapes = Mapping[str, tuple[TensorInfo, ...]]  # op -> its outputs


def infer_shapes(
  nodes: Sequence[v1.NodeDef],
  context: v1.GraphDef,
  fed: Mapping[str, TensorInfo],
) -> dict[str, tuple[TensorInfo, ...]]:
  """Returns what is known of the outputs of each node.

  Args:
    nodes: all nodes to infer, inputs included.
    context: a graph with the library that loops and branches refer to.
    fed: nodes whose only output is given; their inputs do not matter.
  """
  graph_def = v1.GraphDef(library=context.library, versions=context.versions)
  for node in nodes:
    if node.name in fed:
      graph_def.node.append(constant_of(node.name, fed[node.name]))
    else:
      copy = graph_def.node.add()
      copy.CopyFrom(node)
      copy.device = ""
      copy.attr.pop("_class", None)
      _forget_traced_shapes(copy)
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(graph_def, name="")
  return {
    op.name: tuple(tensor_info(x.dtype.base_dtype, x.shape) for x in op.outputs)
    for op in graph.get_operations()
  }


def constant_of(name: str, info: TensorInfo) -> v1.NodeDef:
  """Returns a node of that output, whose value nothing can depend on.

  Grappler takes the shape of a placeholder for unknown.
  """
  node = v1.NodeDef(name=name, op="ImmutableConst")
  node.attr["dtype"].type = info.dtype.as_datatype_enum
  node.attr["shape"].shape.CopyFrom(tf.TensorShape(info.shape).as_proto())
  node.attr["memory_region_name"].s = b"none"
  return node


def meta_graph_of(graph_def: v1.GraphDef) -> v1.MetaGraphDef:
  """Returns a graph as Grappler wants it, with every node to be run."""
  meta_graph = v1.MetaGraphDef(graph_def=graph_def)
  fetched = meta_graph.collection_def["train_op"].node_list.value
  fetched.extend(node.name for node in graph_def.node)
  return meta_graph


def _forget_traced_shapes(node: v1.NodeDef) -> None:
  """Lets a loop's results have its inputs' shapes if it says less."""
  if node.op in LOOPS and any(
    x.unknown_rank or any(d.size < 0 for d in x.dim)
    for x in node.attr["output_shapes"].list.shape
  ):
    del node.attr["output_shapes"].list.shape[:]


def tensor_info(dtype: tf.DType, shape: tf.TensorShape) -> TensorInfo:
  """Returns what a type and a perhaps unknown shape tell."""
  dims = () if shape.rank is None else tuple(x or 1 for x in shape)
  if shape.is_fully_defined():
    dims = tuple(shape)
  return TensorInfo(dtype, dims, shape.is_fully_defined())
