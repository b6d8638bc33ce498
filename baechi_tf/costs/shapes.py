"""The shape of every tensor of a step, given the shapes of its inputs.

TensorFlow's own shape functions infer them as the graph is built anew. An op
whose shape function fails is built on inputs of unknown shape, and its outputs
count as unknown. A loop that was traced for a batch of unknown size
does not say how large its results are; they are taken to keep the shapes that
the loop starts with.
"""

import dataclasses
import functools
import graphlib
import math
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import placeholder
from baechi_tf.function_library import Ref
from baechi_tf.graph_item import GraphItem

v1 = tf.compat.v1

LOOPS = frozenset({"While", "StatelessWhile"})

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """What is known of a tensor before it is computed.

  Attributes:
    dtype: its type, without "reference".
    dims: its dimensions, None where unknown; None if even their number is.
  """

  dtype: tf.DType
  dims: tuple[int | None, ...] | None

  @property
  def is_known(self) -> bool:
    """Whether all dimensions are known."""
    return self.dims is not None and None not in self.dims

  @functools.cached_property
  def shape(self) -> Shape:
    """Its dimensions; an unknown one counts as 1, unknown rank as a scalar."""
    return tuple(1 if x is None else x for x in self.dims or ())

  @functools.cached_property
  def num_bytes(self) -> int:
    """Its size; handles and variants weigh nothing here, strings 16 bytes."""
    if self.dtype in (tf.resource, tf.variant):
      return 0
    item_bytes = 16 if self.dtype == tf.string else self.dtype.size
    return math.prod(self.shape) * item_bytes


Shapes = Mapping[str, tuple[TensorInfo, ...]]  # op -> its outputs


@dataclasses.dataclass(frozen=True)
class Inference:
  """The result of shape inference over one graph.

  Attributes:
    shapes: for each op its outputs.
    failures: TensorFlow's complaint for each op whose shape function failed.
  """

  shapes: Shapes
  failures: Mapping[str, str]

  @property
  def unknown(self) -> list[str]:
    """The tensors whose shape is assumed, as "op:output"."""
    return [
      f"{name}:{i}"
      for name, outputs in self.shapes.items()
      for i, x in enumerate(outputs)
      if not x.is_known
    ]


def item_shapes(
  item: GraphItem, input_shapes: Mapping[str, Shape]
) -> Inference:
  """Returns the type and shape of every tensor of a step.

  Args:
    item: the model.
    input_shapes: a full shape for every feed, see `inputs.concrete_shapes`.

  Raises:
    ValueError: a feed has no shape, or TensorFlow refuses a node.
  """
  fed = {}
  for feed in item.feeds:
    if feed.name not in input_shapes:
      raise ValueError(f"input {feed.name!r} has no shape")
    fed[parse_ref(feed.tensor)[0]] = TensorInfo(
      feed.dtype.base_dtype, tuple(input_shapes[feed.name])
    )
  planned = set(item.op_names)
  nodes = [node for node in item.graph_def.node if node.name in planned]
  return infer_shapes(nodes, item.graph_def, fed)


def infer_shapes(
  nodes: Sequence[v1.NodeDef],
  context: v1.GraphDef,
  fed: Mapping[str, TensorInfo],
) -> Inference:
  """Returns the type and shape of the outputs of each node.

  Args:
    nodes: all nodes to infer, inputs included.
    context: a graph with the library that loops and branches refer to.
    fed: nodes whose only output is given; their inputs do not matter.

  Raises:
    ValueError: TensorFlow refuses a node whatever its inputs' shapes are, or
      the library's functions; or the nodes form a cycle.
  """
  by_name = {node.name: node for node in nodes}
  order = graphlib.TopologicalSorter(
    {
      node.name: [] if node.name in fed else [x for x, _ in _data_inputs(node)]
      for node in nodes
    }
  ).static_order()
  builder = _Builder(context)
  for name in order:
    if name in fed:
      builder.add(placeholder(name, fed[name].dtype, fed[name].dims))
    else:
      builder.add(by_name[name])
  return Inference(
    {node.name: builder.shapes(node.name) for node in nodes}, builder.failures
  )


def _data_inputs(node: v1.NodeDef) -> list[Ref]:
  return [x for x in map(parse_ref, node.input) if x[1] != CONTROL]


class _Builder:
  """A graph that is built op by op, so that one may fail.

  Importing the graph as a whole takes half the time and ends at the first
  failure; importing it in parts takes each time what the whole graph takes.
  """

  def __init__(self, context: v1.GraphDef):
    self.graph = tf.Graph()
    self.outputs: dict[str, Sequence[tf.Tensor]] = {}
    self.failures: dict[str, str] = {}
    with self.graph.as_default():
      empty = v1.GraphDef(library=context.library, versions=context.versions)
      try:
        tf.import_graph_def(empty)
      except tf.errors.OpError as error:
        raise ValueError(
          f"TensorFlow refuses the graph's functions: {error.message}"
        ) from None

  def shapes(self, name: str) -> tuple[TensorInfo, ...]:
    """Returns the outputs of a node that was added."""
    return tuple(
      tensor_info(x.dtype.base_dtype, x.shape) for x in self.outputs[name]
    )

  def add(self, node: v1.NodeDef) -> None:
    """Adds a node that comes after its inputs.

    Raises:
      ValueError: it fails whatever its inputs' shapes are.
    """
    inputs = [self.outputs[name][i] for name, i in _data_inputs(node)]
    try:
      self.outputs[node.name] = self._create(node, inputs)
      return
    except ValueError as error:
      self.failures[node.name] = str(error).partition(" for '{{node")[0]
    try:
      unknown = [self._unknown(x) for x in inputs]
      self.outputs[node.name] = self._create(node, unknown)
    except ValueError as error:
      raise ValueError(f"op {node.name!r}: {error}") from None

  def _unknown(self, tensor: tf.Tensor) -> tf.Tensor:
    if tensor.dtype != tensor.dtype.base_dtype:
      return tensor  # a reference: no placeholder makes one
    with self.graph.as_default():
      return v1.placeholder(tensor.dtype)

  def _create(self, node, inputs) -> Sequence[tf.Tensor]:
    attrs = dict(node.attr)
    attrs.pop("_class", None)
    traced = attrs.pop("_output_shapes", None)
    if node.op in LOOPS and not _are_known(attrs.get("output_shapes")):
      del attrs["output_shapes"]  # the loop keeps its inputs' shapes
    try:
      outputs = self.graph.create_op(
        node.op, inputs, name="op", attrs=attrs
      ).outputs
    except tf.errors.OpError as error:
      raise ValueError(error.message) from None
    except (IndexError, AssertionError):
      raise ValueError(
        f"a {node.op} does not take {len(inputs)} inputs"
      ) from None
    if traced:
      for tensor, shape in zip(outputs, traced.list.shape, strict=False):
        tensor.set_shape(tf.TensorShape(shape))
    return outputs


def _are_known(shapes: v1.AttrValue | None) -> bool:
  return shapes is None or all(
    tf.TensorShape(x).is_fully_defined() for x in shapes.list.shape
  )


def tensor_info(dtype: tf.DType, shape: tf.TensorShape) -> TensorInfo:
  """Returns what a type and a perhaps unknown shape tell."""
  return TensorInfo(dtype, None if shape.rank is None else tuple(shape))
