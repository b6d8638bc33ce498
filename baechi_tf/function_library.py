"""What a node refers to: tensors, ops' definitions, library functions."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf import private

op_def_registry = private.find(
  "tensorflow.python.framework.op_def_registry", "the definitions of ops"
)

NodeDef = tf.compat.v1.NodeDef

CONTROL = -1  # the output index of a control edge
Ref = tuple[str, int]  # (node, output index or CONTROL)

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
# Stateful by name, but it only makes a handle: nothing has to wait for it.
_HANDLES = frozenset({"VarHandleOp"})


def parse_ref(name: str) -> Ref:
  """Returns (node, output) of a GraphDef's input: "x", "x:1" or "^x"."""
  if name.startswith("^"):
    return name[1:], CONTROL
  node, _, output = name.partition(":")
  return node, int(output or 0)


def format_ref(ref: Ref) -> str:
  """Returns the input that `parse_ref` reads."""
  node, output = ref
  if output == CONTROL:
    return f"^{node}"
  return f"{node}:{output}" if output else node


def placeholder(
  name: str, dtype: tf.DType, dims: Sequence[int | None] | None
) -> NodeDef:
  """Returns a Placeholder.

  Args:
    name: its name.
    dtype: its type.
    dims: its dimensions, None where unknown; None if even their number is.
  """
  node = NodeDef(name=name, op="Placeholder")
  node.attr["dtype"].type = dtype.as_datatype_enum
  node.attr["shape"].shape.CopyFrom(tf.TensorShape(dims).as_proto())
  return node


def functions_by_name(graph_def: tf.compat.v1.GraphDef) -> dict:
  """Returns the library's functions."""
  return {f.signature.name: f for f in graph_def.library.function}


def called_function(node: NodeDef, library: Mapping) -> str | None:
  """Returns the function whose body takes the node's place, or None.

  A loop, a branch, or a call that XLA compiles is one op: None.
  """
  if node.op in library:
    return node.op
  if node.op not in CALLS or is_compiled(node):
    return None
  return node.attr["f"].func.name


def is_compiled(node: NodeDef) -> bool:
  """Whether a node is a call that XLA compiles as a whole."""
  if node.op not in CALLS or "_XlaMustCompile" not in node.attr:
    return False  # looking up a missing key would add it to the node
  return node.attr["_XlaMustCompile"].b


def functions_of(node: NodeDef, library: Mapping) -> list[str]:
  """Returns the names of all library functions that a node refers to."""
  names = [node.op] if node.op in library else []
  for key in sorted(node.attr):
    value = node.attr[key]
    if value.HasField("func"):
      names.append(value.func.name)
    elif value.HasField("list"):
      names.extend(x.name for x in value.list.func)
  return [x for x in names if x in library]


def reachable_functions(names: Iterable[str], library: Mapping) -> set[str]:
  """Returns the functions and all that they refer to, gradients aside."""
  found, pending = set(), list(names)
  while pending:
    name = pending.pop()
    if name in found:
      continue
    found.add(name)
    for node in library[name].node_def:
      pending.extend(functions_of(node, library))
  return found


def definition_of(node: NodeDef, library: Mapping):
  """Returns the OpDef of a node's op or function; None if there is none."""
  if node.op in library:
    return library[node.op].signature
  return op_def_registry.get(node.op)


def checked_definition(node: NodeDef, library: Mapping):
  """Returns the OpDef of a node's op or function.

  Raises:
    ValueError: the op is not one of this TensorFlow's.
  """
  definition = definition_of(node, library)
  if definition is None:
    raise ValueError(
      f"this TensorFlow has no op {node.op!r}, but node {node.name!r} is one; a"
      " custom op needs its library loaded first"
    )
  return definition


def has_effects(node: NodeDef, library: Mapping) -> bool:
  """Whether it can be seen when the node runs, or that it does."""
  if node.op in _HANDLES:
    return False
  definition = definition_of(node, library)
  return definition is None or definition.is_stateful


def attr_value(node: NodeDef, name: str, definition):
  """Returns an attr, or its default: SavedModels leave out what is default.

  Args:
    node: it is not changed, as `node.attr[name]` might.
    name: of the attr.
    definition: the OpDef of the node's op.
  """
  if name in node.attr:
    return node.attr[name]
  for attr in definition.attr:
    if attr.name == name:
      return attr.default_value
  raise ValueError(f"node {node.name!r} has no attr {name!r}")


def output_offsets(node: NodeDef, library: Mapping) -> tuple[dict, int]:
  """Returns where each named output begins, and how many outputs there are.

  Raises:
    ValueError: the op is not one of this TensorFlow's.
  """
  definition = checked_definition(node, library)
  offsets, total = {}, 0
  for output in definition.output_arg:
    offsets[output.name] = total
    if output.number_attr:
      total += attr_value(node, output.number_attr, definition).i
    elif output.type_list_attr:
      types = attr_value(node, output.type_list_attr, definition)
      total += len(types.list.type)
    else:
      total += 1
  return offsets, total
