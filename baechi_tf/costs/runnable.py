"""Ops of a step that cannot run: without a kernel, or without their code."""

from collections.abc import Iterable
from collections.abc import Iterator

import tensorflow as tf

from baechi_tf import private
from baechi_tf.function_library import attr_value
from baechi_tf.function_library import definition_of
from baechi_tf.function_library import functions_by_name
from baechi_tf.graph_item import GraphItem

kernels = private.find(
  "tensorflow.python.framework.kernels", "the registry of kernels"
)

NodeDef = tf.compat.v1.NodeDef

_PYTHON_OPS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})
_CPU = ("CPU", "DEFAULT")


def python_op(item: GraphItem) -> str | None:
  """Returns the first op that calls Python code, or None.

  A file holds the name of a function in the process that wrote it: only that
  process can run the op.
  """
  return next((x.name for x in _nodes(item) if x.op in _PYTHON_OPS), None)


def without_cpu_kernel(item: GraphItem) -> list[NodeDef]:
  """Returns the nodes that no CPU can run."""
  library = functions_by_name(item.graph_def)
  registered = {}
  return [
    node
    for node in _nodes(item)
    if node.op not in library and not _has_cpu_kernel(node, registered, library)
  ]


def notes(item: GraphItem, kinds: Iterable[str]) -> tuple[str, ...]:
  """Returns what a reader of a plan should know of ops that cannot run.

  Args:
    item: the model.
    kinds: "CPU" or "GPU" for each device.
  """
  result = []
  python = python_op(item)
  if python is not None:
    result.append(
      f"op {python!r} calls a Python function, which is not in the model: the"
      " placed model runs in no other process than the one that defined it"
    )
  lacking = without_cpu_kernel(item) if "CPU" in kinds else ()
  if lacking:
    result.append(
      f"{len(lacking):,} ops have no kernel for a CPU, first"
      f" {lacking[0].name!r} ({lacking[0].op}): placed on one, they cannot run"
    )
  return tuple(result)


def _nodes(item: GraphItem) -> Iterator[NodeDef]:
  """Yields the planned nodes and those of the bodies that they may run."""
  planned = set(item.op_names)
  for node in item.graph_def.node:
    if node.name in planned:
      yield node
  for function in item.graph_def.library.function:
    yield from function.node_def


def _has_cpu_kernel(node: NodeDef, registered: dict, library) -> bool:
  if node.op not in registered:
    registered[node.op] = [
      x
      for x in kernels.get_registered_kernels_for_op(node.op).kernel
      if x.device_type in _CPU
    ]
  return any(
    all(_allows(x, node, library) for x in kernel.constraint)
    for kernel in registered[node.op]
  )


def _allows(constraint, node: NodeDef, library) -> bool:
  value = attr_value(node, constraint.name, definition_of(node, library))
  # In a body an attr may be the caller's.
  types = [] if value.placeholder else value.list.type or [value.type]
  return all(x in constraint.allowed_values.list.type for x in types)
