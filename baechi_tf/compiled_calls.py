"""Finds the compiled calls that a plan separates from their variables.

XLA compiles a call for one device and reaches the variables of that device
only. The planner keeps the variables of a planned call together; those of a
signature that was not planned go where the planned ops want them.
"""

from collections.abc import Iterable
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.function_library import called_function
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import is_compiled


def divided_calls(
  graph_def: tf.compat.v1.GraphDef, device_of: Mapping[str, str]
) -> tuple[str, ...]:
  """Returns compiled functions called with variables of several devices.

  Args:
    graph_def: the graph with its library.
    device_of: the device of each variable, by the name of the node of the top
      graph that makes its handle.

  Returns:
    The functions' names, sorted.
  """
  library = functions_by_name(graph_def)
  found, seen = set(), set()
  pending = [(graph_def.node, dict(device_of))]
  while pending:
    nodes, devices = pending.pop()
    for node, arguments in _calls_with_variables(nodes, devices):
      if is_compiled(node):
        if len(set(filter(None, arguments))) > 1:
          found.add(node.attr["f"].func.name)
        continue
      function = called_function(node, library)
      if function in library and (function, arguments) not in seen:
        seen.add((function, arguments))
        names = [x.name for x in library[function].signature.input_arg]
        inner = {k: x for k, x in zip(names, arguments, strict=True) if x}
        pending.append((library[function].node_def, inner))
  return tuple(sorted(found))


def _calls_with_variables(nodes: Iterable, devices: Mapping[str, str]):
  """Yields nodes that take a variable, and the device of each argument."""
  for node in nodes:
    data = [x.partition(":")[0] for x in node.input if not x.startswith("^")]
    arguments = tuple(devices.get(x, "") for x in data)
    if any(arguments):
      yield node, arguments
