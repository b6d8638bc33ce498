"""Writes a plan's devices into a graph and its function library.

A planned op is found by its call path. Where two calls of one function have
different plans the function is specialised: the first plan keeps the
function's name, each further one gets a copy under a new name, and the calls
are pointed at the copies. Calls that XLA compiles are tied to the variables
that they take. Ops of the top graph that are not planned, such as those that
initialise and restore variables, lose devices that the plan does not use:
TensorFlow puts them with their variable. Control edges, see `order_edges`, are
written on request. Nothing else changes.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import tensorflow as tf

from baechi_tf.function_library import called_function
from baechi_tf.function_library import definition_of
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import functions_of
from baechi_tf.function_library import is_compiled
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import reachable_functions

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef
_RESOURCE = tf.resource.as_datatype_enum


@dataclasses.dataclass(frozen=True)
class _Edit:
  """The changes to one node of a graph.

  Attributes:
    device: its device; None to leave it.
    calls: (old function, new function) for what it calls.
    after: the node of its body that it waits for; "" for none.
  """

  device: str | None = None
  calls: tuple[tuple[str, str], ...] = ()
  after: str = ""


@dataclasses.dataclass
class _Variant:
  """One version of a function: its name, and the edits by node."""

  name: str
  edits: dict[str, _Edit]


def rewrite_devices(
  graph_def: GraphDef,
  paths: Mapping[str, tuple[str, ...]],
  device_of: Mapping[str, str],
  after: Mapping[str, str] = MappingProxyType({}),
) -> tuple[GraphDef, tuple[str, ...]]:
  """Returns the graph with devices replaced, and the functions added to it.

  The bodies of a loop, a branch or an XLA-compiled call get its device.

  Args:
    graph_def: the graph with its library; it is not changed.
    paths: of each op the call nodes from the top graph down, then the node.
    device_of: the device of each planned op.
    after: planned op -> planned op of the same body; a control edge makes the
      first wait for the second.

  Raises:
    ValueError: an op has no path, or its path leads nowhere in this graph.
  """
  tree = _plan_tree(paths, device_of, after)
  return _Rewriter(graph_def).rewrite(tree, set(device_of.values()))


def _plan_tree(paths, device_of, after) -> dict:
  """Returns edits by node name, in a dict of its own for each call."""
  tree = {}
  for name, device in device_of.items():
    if name not in paths:
      raise ValueError(f"the plan has an op {name!r} that the model has not")
    path = paths[name]
    if not path:
      continue  # it only orders other ops: no node of the model
    branch = tree
    for call in path[:-1]:
      branch = branch.setdefault(call, {})
    waits_for = paths[after[name]][-1] if name in after else ""
    branch[path[-1]] = _Edit(device, after=waits_for)
  return tree


class _Rewriter:
  """The state of one `rewrite_devices`."""

  def __init__(self, graph_def: GraphDef):
    self.result = GraphDef()
    self.result.CopyFrom(graph_def)
    self.library = functions_by_name(graph_def)
    self.nodes = {}  # of each function, its nodes by name
    self.variants = {}  # of each function, its versions; the first keeps it
    self.whole = {}  # (function, device) -> the version's name
    self.taken = set(self.library)

  def rewrite(
    self, tree: dict, devices: set[str]
  ) -> tuple[GraphDef, tuple[str, ...]]:
    top = {node.name: node for node in self.result.node}
    edits = self._edits(top, tree, "the graph")
    edits.update(self._releases(top, tree, devices))
    for name, edit in edits.items():
      _apply(top[name], edit)
    position = {
      f.signature.name: i for i, f in enumerate(self.result.library.function)
    }
    added = []
    for function, variants in self.variants.items():
      for variant in variants:
        if variant.name == function:
          target = self.result.library.function[position[function]]
        else:
          target = self._add_copy(function, variant.name)
          added.append(variant.name)
        for node in target.node_def:
          if node.name in variant.edits:
            _apply(node, variant.edits[node.name])
    bodies = [function.node_def for function in self.result.library.function]
    for nodes in (self.result.node, *bodies):
      for node in filter(is_compiled, nodes):
        _tie_to_resources(node)
    return self.result, tuple(added)

  def _edits(self, nodes, tree: dict, where: str) -> dict[str, _Edit]:
    edits = {}
    for name, planned in tree.items():
      if name not in nodes:
        raise ValueError(f"the plan has a node {name!r} that {where} has not")
      node = nodes[name]
      if isinstance(planned, dict):
        callee = called_function(node, self.library)
        if callee not in self.library:
          raise ValueError(
            f"the plan has ops in node {name!r} of {where}, which is no call"
          )
        version = self._called_version(callee, planned)
        edits[name] = _Edit(calls=((callee, version),))
      else:
        calls = self._whole_versions(node, planned.device)
        edits[name] = dataclasses.replace(planned, calls=calls)
    return edits

  def _releases(self, top, tree: dict, devices: set[str]) -> dict[str, _Edit]:
    """Returns edits that clear devices of nodes that are not planned."""
    state = {name for name in tree if _is_state(top[name], self.library)}
    edits = {}
    for name, node in top.items():
      follows = any(parse_ref(x)[0] in state for x in node.input)
      if name in tree or (node.device in devices and not follows):
        continue
      is_call = called_function(node, self.library) is not None
      calls = () if is_call else self._whole_versions(node, "")
      edits[name] = _Edit("", calls)
    return edits

  def _called_version(self, function: str, tree: dict) -> str:
    """Returns the version of a function whose ops are planned one by one."""
    if function not in self.nodes:
      definition = self.library[function]
      self.nodes[function] = {x.name: x for x in definition.node_def}
    where = f"function {function!r}"
    edits = self._edits(self.nodes[function], tree, where)
    for variant in self.variants.get(function, ()):
      # A version fits unless it says otherwise of the same node: calls that
      # use different outputs plan different nodes of the body.
      if all(variant.edits.get(k, x) == x for k, x in edits.items()):
        variant.edits.update(edits)
        return variant.name
    variant = self._new_variant(function)
    variant.edits.update(edits)
    return variant.name

  def _whole_versions(self, node: NodeDef, device: str):
    """Returns the versions of what a node refers to, all on one device."""
    functions = functions_of(node, self.library)
    if not functions:
      return ()
    reachable = sorted(reachable_functions(functions, self.library))
    new = [x for x in reachable if (x, device) not in self.whole]
    variants = {name: self._new_variant(name) for name in new}
    for name, variant in variants.items():
      self.whole[name, device] = variant.name
    for name, variant in variants.items():
      for inner in self.library[name].node_def:
        calls = self._whole_calls(inner, device)
        variant.edits[inner.name] = _Edit(device, calls)
    return self._whole_calls(node, device)

  def _whole_calls(self, node: NodeDef, device: str):
    return tuple(
      (x, self.whole[x, device])
      for x in dict.fromkeys(functions_of(node, self.library))
    )

  def _new_variant(self, function: str) -> _Variant:
    variants = self.variants.setdefault(function, [])
    name, count = function, 0
    while variants and name in self.taken:
      count += 1
      name = f"{function}_placed_{count}"
    self.taken.add(name)
    variants.append(_Variant(name, {}))
    return variants[-1]

  def _add_copy(self, function: str, name: str):
    library = self.result.library
    copy = library.function.add()
    copy.CopyFrom(self.library[function])
    copy.signature.name = name
    for gradient in list(library.gradient):
      if gradient.function_name == function:
        library.gradient.add(
          function_name=name, gradient_func=gradient.gradient_func
        )
    for gradient in list(library.registered_gradients):
      if gradient.function_name == function:
        library.registered_gradients.add(
          function_name=name, registered_op_type=gradient.registered_op_type
        )
    return copy


def _is_state(node: NodeDef, library: Mapping) -> bool:
  """Whether a node is a variable or a table."""
  definition = definition_of(node, library)
  outputs = definition.output_arg if definition else ()
  return any(x.is_ref or x.type == _RESOURCE for x in outputs)


def _apply(node: NodeDef, edit: _Edit) -> None:
  if edit.device is not None:
    node.device = edit.device
  if edit.after:
    node.input.append(f"^{edit.after}")
  renamed = {old: new for old, new in edit.calls if old != new}
  if not renamed:
    return
  if node.op in renamed:
    node.op = renamed[node.op]
    return
  for key in [k for k, v in node.attr.items() if _names_function(v, renamed)]:
    value = node.attr[key]
    for function in (value.func, *value.list.func):
      function.name = renamed.get(function.name, function.name)


def _tie_to_resources(call: NodeDef) -> None:
  """Lets a compiled call follow the variables that it takes.

  TensorFlow moves an op that takes a variable to the variable's device. It
  moves a compiled call only if `_class` says so, and fails if the variable is
  elsewhere. Plain `tf.saved_model.load` puts every variable on the default
  device, and signatures that were not planned have no devices.
  """
  dtypes = call.attr["Tin"].list.type
  ties = {
    f"loc:@{name.partition(':')[0]}".encode(): None
    for name, dtype in zip(call.input, dtypes, strict=False)  # then controls
    if dtype == _RESOURCE
  }
  if "_class" in call.attr:
    ties = dict.fromkeys([*call.attr["_class"].list.s, *ties])
  if ties:
    call.attr["_class"].list.s[:] = ties


def _names_function(value, names: Mapping) -> bool:
  if value.HasField("func"):
    return value.func.name in names
  return any(x.name in names for x in value.list.func)
