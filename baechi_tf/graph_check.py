"""Checks that a graph is what its ops' definitions say, before it is read.

TensorFlow checks this too, but only where it imports the whole graph. What
reads a graph node by node relies on it: a damaged file must end in one message.
"""

from collections.abc import Iterable
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.function_library import attr_value
from baechi_tf.function_library import definition_of
from baechi_tf.function_library import functions_by_name

# No op takes or returns as many tensors.
_MAX_TENSORS = 2**20
# Data types from here on are references to the others, which no value has.
_REFERENCES = 100
# The attrs with the functions that an op runs, and how many of its inputs come
# before their arguments.
_BODIES = {
  "PartitionedCall": (("f",), 0),
  "StatefulPartitionedCall": (("f",), 0),
  "If": (("then_branch", "else_branch"), 1),
  "StatelessIf": (("then_branch", "else_branch"), 1),
  "Case": (("branches",), 1),
  "StatelessCase": (("branches",), 1),
  "While": (("cond", "body"), 0),
  "StatelessWhile": (("cond", "body"), 0),
}


def check_signatures(meta_graph: tf.compat.v1.MetaGraphDef) -> None:
  """Checks the types of the signatures' inputs and outputs.

  An output that is an op, to be run, has no type.

  Raises:
    ValueError: an input or output has a type that there is not.
  """
  for name, signature in sorted(meta_graph.signature_def.items()):
    where = f"signature {name!r}"
    for key, info in sorted(signature.inputs.items()):
      _check_type(info.dtype, f"{where}, input {key!r}")
    for key, info in sorted(signature.outputs.items()):
      if info.dtype:
        _check_type(info.dtype, f"{where}, output {key!r}")


def check_graph(graph_def: tf.compat.v1.GraphDef) -> None:
  """Checks nodes and functions.

  An op that this TensorFlow does not know is left to whatever needs it.

  Raises:
    ValueError: a node has other inputs than its op takes, or an attr that its
      op cannot have; or a function is there twice, has an argument without a
      type, or refers to what is not in it.
  """
  library = functions_by_name(graph_def)
  _check_nodes(graph_def.node, library)
  if len(library) < len(graph_def.library.function):
    raise ValueError("the library has two functions of one name")
  for function in graph_def.library.function:
    where = f"function {function.signature.name!r}"
    for arg in (*function.signature.input_arg, *function.signature.output_arg):
      if not (arg.type_attr or arg.type_list_attr):
        _check_type(arg.type, f"{where}, argument {arg.name!r}")
    _check_nodes(function.node_def, library, f"{where}, ")
    _check_body(function, where)


def _check_body(function, where: str) -> None:
  """Checks that the body's references lead to its nodes and arguments."""
  known = {x.name for x in function.node_def}
  known.update(x.name for x in function.signature.input_arg)
  refs = [ref for node in function.node_def for ref in node.input]
  refs += [function.ret.get(x.name, "") for x in function.signature.output_arg]
  for ref in refs:
    if ref.lstrip("^").partition(":")[0] not in known:
      raise ValueError(f"{where} refers to {ref!r}, which is not in its body")


def _check_nodes(nodes: Iterable, library: Mapping, where: str = "") -> None:
  for node in nodes:
    definition = definition_of(node, library)
    if definition is None:
      continue
    place = f"{where}node {node.name!r} ({node.op})"
    for attr in definition.attr:
      if attr.name not in node.attr:
        if not attr.HasField("default_value"):
          raise ValueError(f"{place} lacks its attr {attr.name!r}")
      # A body's attr can stand for one of its caller's.
      elif not node.attr[attr.name].placeholder:
        _check_attr(node.attr[attr.name], attr, place)
    expected = sum(
      _num_tensors(x, node, definition, place) for x in definition.input_arg
    )
    num_outputs = sum(
      _num_tensors(x, node, definition, place) for x in definition.output_arg
    )
    found = sum(not x.startswith("^") for x in node.input)
    if expected != found:
      raise ValueError(f"{place} has {found} inputs, its op takes {expected}")
    attrs, before = _BODIES.get(node.op, ((), 0))
    for attr in attrs:
      results = 1 if attr == "cond" else num_outputs
      for called in _called(node.attr[attr]):
        _check_call(called, library, found - before, results, place)


def _called(value) -> Iterable[str]:
  if value.HasField("func"):
    return (value.func.name,)
  return (x.name for x in value.list.func)


def _check_call(name, library, num_arguments, num_results, place) -> None:
  if name not in library:
    raise ValueError(f"{place} calls function {name!r}, which is missing")
  signature = library[name].signature
  for args, count, what in (
    (signature.input_arg, num_arguments, "takes"),
    (signature.output_arg, num_results, "returns"),
  ):
    is_list = any(x.number_attr or x.type_list_attr for x in args)
    if len(args) != count and not is_list:
      raise ValueError(
        f"{place} calls function {name!r}, which {what} {len(args)} tensors,"
        f" not {count}"
      )


def _check_attr(value, attr, place: str) -> None:
  if attr.type == "type":
    _check_type(value.type, f"{place}, attr {attr.name!r}")
  elif attr.type == "list(type)":
    for x in value.list.type:
      _check_type(x, f"{place}, attr {attr.name!r}")
  elif attr.type == "tensor":
    _check_type(value.tensor.dtype, f"{place}, attr {attr.name!r}")
    if value.tensor.dtype > _REFERENCES:
      raise ValueError(f"{place}, attr {attr.name!r} is a reference")


def _check_type(number: int, place: str) -> None:
  try:
    tf.as_dtype(number)
  except TypeError:
    raise ValueError(
      f"{place}: {number} is no data type; the file is damaged"
    ) from None


def _num_tensors(arg, node, definition, place: str) -> int:
  if arg.number_attr:
    count = attr_value(node, arg.number_attr, definition).i
    if not 0 <= count <= _MAX_TENSORS:
      raise ValueError(
        f"{place}: {arg.number_attr} must be from 0 to {_MAX_TENSORS:,}, got"
        f" {count}"
      )
    return count
  if arg.type_list_attr:
    return len(attr_value(node, arg.type_list_attr, definition).list.type)
  return 1
