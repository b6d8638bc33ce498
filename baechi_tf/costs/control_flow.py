"""What a loop or branch holds, and how often a loop runs.

A loop that counts (`tf.range`, `maximum_iterations`, unrolled time steps of an
RNN layer) stops at a comparison of a counter with a bound: `Less(i, n)`, or
several of them joined by `LogicalAnd`. With the counter's start, its increment
and the bound constant, the number of rounds is known before it runs.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.costs.shapes import infer_shapes
from baechi_tf.costs.shapes import Inference
from baechi_tf.costs.shapes import TensorInfo
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import placeholder
from baechi_tf.inlining import function_graph
from baechi_tf.inlining import inline

v1 = tf.compat.v1

_COPIES = frozenset({"Identity", "StopGradient"})
Value = float | None


def trip_count(
  node, library: Mapping, value_of: Callable[[str], Value]
) -> int | None:
  """Returns how often the body of a While runs, or None if it is not known.

  Args:
    node: the While or StatelessWhile.
    library: function name -> FunctionDef.
    value_of: the constant that an input of `node` is, or None.
  """
  condition = _Body(library[node.attr["cond"].func.name])
  body = _Body(library[node.attr["body"].func.name])
  start = [value_of(name) for name in node.input[: len(body.arguments)]]
  counts = [
    _rounds(test, condition, body, start)
    for test in condition.tests(condition.results[0])
  ]
  counts = [x for x in counts if x is not None]
  return min(counts) if counts else None


def _rounds(test, condition, body, start) -> int | None:
  """Rounds until `Less(counter, bound)` fails."""
  counter = condition.argument_of(test.input[0])
  if counter is None or start[counter] is None:
    return None
  fixed = [
    value if body.argument_of(body.results[i]) == i else None
    for i, value in enumerate(start)
  ]
  bound = condition.value_of(test.input[1], fixed)
  increment = body.increment_of(counter, fixed)
  if bound is None or not increment or increment < 0:
    return None
  return max(math.ceil((bound - start[counter]) / increment), 0)


class _Body:
  """A function's nodes, and what its arguments turn into."""

  def __init__(self, function):
    signature = function.signature
    self.nodes = {node.name: node for node in function.node_def}
    self.arguments = {x.name: i for i, x in enumerate(signature.input_arg)}
    self.results = [function.ret[x.name] for x in signature.output_arg]

  def _source(self, name: str) -> str:
    """Follows copies; returns an argument's or a node's name."""
    while True:
      name = name.partition(":")[0]
      node = self.nodes.get(name)
      if node is None or node.op not in _COPIES:
        return name
      name = node.input[0]

  def argument_of(self, name: str) -> int | None:
    return self.arguments.get(self._source(name))

  def value_of(self, name: str, values) -> Value:
    """A constant of this body, or the given value of an argument."""
    source = self._source(name)
    if source in self.arguments:
      return values[self.arguments[source]]
    return scalar_of(self.nodes[source])

  def tests(self, name: str) -> list:
    """The `Less` nodes that must all hold."""
    node = self.nodes.get(self._source(name))
    if node is None:
      return []
    if node.op == "Less":
      return [node]
    if node.op == "LogicalAnd":
      return [x for name in node.input[:2] for x in self.tests(name)]
    return []

  def increment_of(self, counter: int, values) -> Value:
    """What each round adds to an argument."""
    node = self.nodes.get(self._source(self.results[counter]))
    if node is None or node.op not in ("Add", "AddV2"):
      return None
    ends = list(node.input[:2])
    if self.argument_of(ends[0]) != counter:
      ends.reverse()
    if self.argument_of(ends[0]) != counter:
      return None
    return self.value_of(ends[1], values)


def scalar_of(node) -> Value:
  """Returns the number that a Const holds, or None."""
  if node.op != "Const":
    return None
  value = tf.make_ndarray(node.attr["value"].tensor)
  return value.item() if value.size == 1 and value.dtype.kind in "iuf" else None


def constants(nodes: Mapping, trips: Mapping[str, int]):
  """Returns `value_of` for `trip_count` in a graph.

  Args:
    nodes: by name.
    trips: rounds of loops known so far; a loop's first output is its counter.
  """

  def value_of(name: str) -> Value:
    source, output = parse_ref(name)
    while nodes[source].op in _COPIES:
      source, output = parse_ref(nodes[source].input[0])
    if output == 0 and source in trips:
      return trips[source]
    return scalar_of(nodes[source])

  return value_of


def body_graph(
  function,
  inputs: Sequence[TensorInfo],
  referents: Sequence[TensorInfo | None],
  context: v1.GraphDef,
) -> tuple[list[v1.NodeDef], Inference]:
  """Returns a function's nodes, calls inlined, and their shapes.

  Args:
    function: a FunctionDef.
    inputs: what each argument is.
    referents: for each argument that is a handle, the variable behind it or
      an element of the list.
    context: a graph with the library and versions.
  """
  flat = inline(function_graph(function, context), (), ())
  arguments = [x.name for x in function.signature.input_arg]
  fed, nodes = {}, []
  given = dict(zip(arguments, zip(inputs, referents, strict=True), strict=True))
  for name, refs in flat.inputs.items():
    node = v1.NodeDef()
    node.CopyFrom(flat.nodes[name])
    node.name = name
    node.input.extend(f"^{n}" if i == CONTROL else f"{n}:{i}" for n, i in refs)
    info, referent = given.get(name, (None, None))
    if referent and info.dtype == tf.resource:
      node = _variable_handle(name, referent)
    elif referent and info.dtype == tf.variant:
      dims = [-1 if x is None else x for x in referent.dims]
      shape = _constant(f"{name}/element_shape", dims)
      # Not a Const: TensorFlow would compute the elements, as zeros.
      count = placeholder(f"{name}/num_elements", tf.int32, ())
      nodes.extend([shape, count])
      node = _list_handle(name, shape.name, count.name, referent.dtype)
    elif info:
      fed[name] = info
    nodes.append(node)
  return nodes, infer_shapes(nodes, context, fed)


def _variable_handle(name: str, info: TensorInfo) -> v1.NodeDef:
  node = v1.NodeDef(name=name, op="VarHandleOp")
  node.attr["dtype"].type = info.dtype.as_datatype_enum
  node.attr["shape"].shape.CopyFrom(tf.TensorShape(info.dims).as_proto())
  return node


def _constant(name: str, value) -> v1.NodeDef:
  node = v1.NodeDef(name=name, op="Const")
  node.attr["dtype"].type = tf.int32.as_datatype_enum
  node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.int32))
  return node


def _list_handle(name: str, shape: str, count: str, dtype) -> v1.NodeDef:
  node = v1.NodeDef(name=name, op="TensorListReserve", input=[shape, count])
  node.attr["element_dtype"].type = dtype.as_datatype_enum
  node.attr["shape_type"].type = tf.int32.as_datatype_enum
  return node
