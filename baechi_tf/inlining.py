"""Inlines function calls, so that every op of a step is a node of one graph.

A call's arguments take the place of the body's inputs and the body's results
that of the call's outputs; nothing is copied through Identity nodes. What a
call orders by control edges is kept by two NoOps: its start waits for what the
call waited for and goes before the body's stateful ops; its end waits for the
body's control outputs and stands for the call wherever something waited for
it. They are made only where a control edge needs them.

Loops, branches and calls that XLA compiles as a whole stay one node, their
bodies in the library.
"""

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.function_library import called_function
from baechi_tf.function_library import CALLS
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import format_ref
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import has_effects
from baechi_tf.function_library import output_offsets
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import Ref

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef


@dataclasses.dataclass(frozen=True)
class _Body:
  """A function's (or the top graph's) nodes with resolved references."""

  nodes: Mapping[str, NodeDef]
  inputs: Mapping[str, tuple[Ref, ...]]
  args: Mapping[str, int]
  returns: tuple[Ref, ...] = ()
  control_returns: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class _Scope:
  """One call: where its body's nodes went in the flat graph."""

  body: _Body
  path: tuple[str, ...]  # call nodes from the top graph down
  parent: "_Scope | None" = None
  device: str = ""
  attrs: Mapping = dataclasses.field(default_factory=dict)
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  calls: dict[str, "_Scope"] = dataclasses.field(default_factory=dict)
  start: str | None = None  # the NoOps' names, where there are any
  end: str | None = None


@dataclasses.dataclass(frozen=True)
class FlatGraph:
  """The inlined nodes, and how to find things in them.

  Attributes:
    nodes: by name: the top graph's, then each call's, callers first.
    inputs: of each node, resolved.
    paths: of each node (call nodes..., name in its body); () for NoOps that
      stand for a call's start or end.
    calls_used: of each node the calls whose outputs it takes; such a call has
      to run its side effects too.
    side_effects: of each call the flat nodes that it runs for their effects.
    returns: what each outside reference resolves to, see `resolve`.
  """

  nodes: Mapping[str, NodeDef]
  inputs: Mapping[str, list[Ref]]
  paths: Mapping[str, tuple[str, ...]]
  calls_used: Mapping[str, list[tuple[str, ...]]]
  side_effects: Mapping[tuple[str, ...], list[str]]
  returns: Mapping[Ref, tuple[Ref, list[tuple[str, ...]]]]


def inline(
  graph_def: GraphDef, keep_calls: Iterable[str], outside: Iterable[Ref]
) -> FlatGraph:
  """Returns the graph with the calls replaced by their bodies.

  Args:
    graph_def: the graph with its library; it is not changed.
    keep_calls: top-level nodes that stay calls.
    outside: references from outside (fetches); they are resolved in `returns`.

  Raises:
    ValueError: a function is missing, calls itself, or has a list argument; a
      node refers to one that is not there.
  """
  inliner = _Inliner(graph_def, frozenset(keep_calls))
  outside = list(outside)
  inliner.note_control_uses(inliner.top, outside)
  return inliner.flatten(outside)


def function_graph(function, context: GraphDef) -> GraphDef:
  """Returns a function's body as a graph, its arguments as Placeholders.

  TensorFlow's own conversion looks a body's callees up in the running process,
  which forgets a loaded model's functions with the model.

  Args:
    function: a FunctionDef.
    context: a graph with the library and versions.

  Raises:
    ValueError: the function has a list argument, or a node refers to one that
      is not there.
  """
  graph_def = GraphDef(library=context.library, versions=context.versions)
  for arg in function.signature.input_arg:
    node = graph_def.node.add(name=arg.name, op="Placeholder")
    node.attr["dtype"].type = arg.type
  body = _function_body(function, functions_by_name(context))
  for name, original in body.nodes.items():
    node = graph_def.node.add()
    node.CopyFrom(original)
    node.input[:] = map(format_ref, body.inputs[name])
  return graph_def


class _Inliner:
  """The state of one `inline`."""

  def __init__(self, graph_def, keep_calls):
    self.library = functions_by_name(graph_def)
    self.keep_calls = keep_calls
    self.bodies = {}
    self.taken = {node.name for node in graph_def.node}
    self.scopes = []  # outermost first, callers before the called
    inputs = {
      node.name: tuple(map(parse_ref, node.input)) for node in graph_def.node
    }
    nodes = {node.name: node for node in graph_def.node}
    self.top = _Scope(_Body(nodes, inputs, {}), ())
    self.top.names = {name: name for name in nodes}
    self._open(self.top)

  def body_of(self, name: str, where: str) -> _Body:
    if name not in self.library:
      raise ValueError(f"{where} calls function {name!r}, which is missing")
    if name not in self.bodies:
      self.bodies[name] = _function_body(self.library[name], self.library)
    return self.bodies[name]

  def _open(self, top: _Scope) -> None:
    """Makes the scopes of all calls, and names for their nodes."""
    pending = [(top, ())]
    while pending:
      scope, active = pending.pop()
      self.scopes.append(scope)
      children = []
      for name, node in scope.body.nodes.items():
        if scope is top and name in self.keep_calls:
          continue
        function = called_function(node, self.library)
        if function is None:
          continue
        path = (*scope.path, name)
        if function in active:
          raise ValueError(
            f"function {function!r} calls itself (at {'/'.join(path)!r});"
            " recursion has no flat graph"
          )
        child = _Scope(
          body=self.body_of(function, "/".join(path)),
          path=path,
          parent=scope,
          device=node.device or scope.device,
          attrs=_call_attrs(node, scope.attrs),
        )
        scope.calls[name] = child
        children.append((child, (*active, function)))
      for child, active_there in reversed(children):
        pending.append((child, active_there))
      if scope is not top:
        self._name_nodes(scope)

  def _name_nodes(self, scope: _Scope) -> None:
    prefix = "/".join(scope.path) + "/"
    for name in scope.body.nodes:
      if name not in scope.calls:
        scope.names[name] = self.unique(prefix + name)
    call = scope.path[-1]
    if any(o == CONTROL for _, o in scope.parent.body.inputs[call]) or (
      scope.parent.start
    ):
      scope.start = self.unique(prefix + "call_start")

  def unique(self, name: str) -> str:
    """Returns the name, or the first of name_1, name_2, … that is free."""
    result, count = name, 0
    while result in self.taken:
      count += 1
      result = f"{name}_{count}"
    self.taken.add(result)
    return result

  def note_control_uses(self, top: _Scope, outside: list[Ref]) -> None:
    """Names the end of every call that a control edge waits for."""
    for scope in self.scopes:
      waited = {n for n, o in outside if o == CONTROL} if scope is top else ()
      uses = (
        node
        for refs in scope.body.inputs.values()
        for node, output in refs
        if output == CONTROL
      )
      for name in (*uses, *waited, *scope.body.control_returns):
        child = scope.calls.get(name)
        if child and child.end is None:
          child.end = self.unique("/".join(child.path) + "/call_end")

  def flatten(self, outside: list[Ref]) -> FlatGraph:
    nodes, inputs, paths, used = {}, {}, {}, {}
    effects = {}
    for scope in self.scopes:
      if scope is not self.top:
        effects[scope.path] = self._effects(scope)
        self._emit_ends(scope, effects[scope.path], nodes, inputs, paths)
      for name, node in scope.body.nodes.items():
        if name in scope.calls:
          continue
        flat = scope.names[name]
        calls = []
        refs = [
          self._resolve(scope, ref, calls) for ref in scope.body.inputs[name]
        ]
        if scope.start and has_effects(node, self.library):
          refs.append((scope.start, CONTROL))
        nodes[flat] = self._flat_node(scope, node)
        inputs[flat] = _controls_last(refs)
        paths[flat] = (*scope.path, name)
        used[flat] = calls
    returns = {}
    for ref in outside:
      calls = []
      returns[ref] = (self._resolve(self.top, ref, calls), calls)
    return FlatGraph(nodes, inputs, paths, used, effects, returns)

  def _emit_ends(self, scope, effects, nodes, inputs, paths) -> None:
    if scope.start:
      call = scope.path[-1]
      refs = [
        self._resolve(scope.parent, ref, [])
        for ref in scope.parent.body.inputs[call]
        if ref[1] == CONTROL
      ]
      if scope.parent.start:
        refs.append((scope.parent.start, CONTROL))
      nodes[scope.start] = NodeDef(op="NoOp", device=scope.device)
      inputs[scope.start] = _controls_last(refs)
      paths[scope.start] = ()
    if scope.end:
      refs = [(name, CONTROL) for name in effects]
      if not refs:
        # A pure call: whoever waits for it waits for its results.
        refs = [
          (self._resolve(scope, ref, [])[0], CONTROL)
          for ref in scope.body.returns
        ]
      if scope.start:
        refs.append((scope.start, CONTROL))
      nodes[scope.end] = NodeDef(op="NoOp", device=scope.device)
      inputs[scope.end] = _controls_last(refs)
      paths[scope.end] = ()

  def _effects(self, scope: _Scope) -> list[str]:
    return [
      self._resolve(scope, (name, CONTROL), [])[0]
      for name in scope.body.control_returns
    ]

  def _resolve(self, scope: _Scope, ref: Ref, calls: list) -> Ref:
    """Returns the flat reference; appends the calls it came through."""
    name, output = ref
    for _ in range(len(self.scopes) * 2 + 2):
      if name in scope.body.args:
        argument = scope.body.args[name]
        call = scope.path[-1]
        scope = scope.parent
        # A node's control inputs come after its data inputs.
        name, index = scope.body.inputs[call][argument]
        output = CONTROL if output == CONTROL else index
        if output == CONTROL and name in scope.calls:
          # "^argument" waits for the tensor, not for the whole call.
          name, _ = self._resolve(scope, (name, index), calls)
          return name, CONTROL
      elif name in scope.calls:
        scope = scope.calls[name]
        calls.append(scope.path)
        if output == CONTROL:
          return scope.end, CONTROL
        if output >= len(scope.body.returns):
          break
        name, output = scope.body.returns[output]
      elif name in scope.names:
        return scope.names[name], output
      else:
        break
    raise ValueError(
      f"input {format_ref(ref)!r} in"
      f" {'/'.join(scope.path) or 'the graph'!r} refers to no output of any"
      " node"
    )

  def _flat_node(self, scope: _Scope, node: NodeDef) -> NodeDef:
    """Returns a copy that lacks only its name and inputs."""
    flat = NodeDef()
    flat.CopyFrom(node)
    del flat.input[:]
    flat.device = node.device or scope.device
    for key, value in node.attr.items():
      if value.placeholder:
        flat.attr[key].CopyFrom(_value_of(scope.attrs, value.placeholder, node))
    if "_class" in node.attr:
      self._rename_class(scope, flat)
    return flat

  def _rename_class(self, scope: _Scope, flat: NodeDef) -> None:
    """Points "loc:@" at the flat names; drops what has none."""
    kept = []
    for item in flat.attr["_class"].list.s:
      name = item.decode().removeprefix("loc:@")
      if item.startswith(b"loc:@") and name in scope.names:
        kept.append(b"loc:@" + scope.names[name].encode())
    del flat.attr["_class"]
    if kept:
      flat.attr["_class"].list.s.extend(kept)


def _controls_last(refs: list[Ref]) -> list[Ref]:
  controls = dict.fromkeys(r for r in refs if r[1] == CONTROL)
  return [r for r in refs if r[1] != CONTROL] + list(controls)


def _call_attrs(node: NodeDef, outer: Mapping) -> dict:
  """Returns the values of the attrs that the called function may leave open."""
  given = node.attr["f"].func.attr if node.op in CALLS else node.attr
  return {
    key: _value_of(outer, value.placeholder, node)
    if value.placeholder
    else value
    for key, value in given.items()
  }


def _value_of(attrs: Mapping, name: str, node: NodeDef):
  if name not in attrs:
    raise ValueError(f"node {node.name!r} needs attr {name!r} of its caller")
  return attrs[name]


def _function_body(function, library: Mapping) -> _Body:
  signature = function.signature
  for arg in (*signature.input_arg, *signature.output_arg):
    if arg.number_attr or arg.type_list_attr:
      raise ValueError(
        f"function {signature.name!r} has the list argument {arg.name!r};"
        " only single tensors can be inlined"
      )
  args = {arg.name: i for i, arg in enumerate(signature.input_arg)}
  nodes = {node.name: node for node in function.node_def}
  offsets = {}

  def resolve(name: str) -> Ref:
    if name.startswith("^"):
      return name[1:], CONTROL
    node, _, rest = name.partition(":")
    if node in args:
      return node, 0
    if node not in nodes:
      raise ValueError(
        f"function {signature.name!r}: {name!r} refers to no node"
      )
    if node not in offsets:
      offsets[node] = output_offsets(nodes[node], library)[0]
    output, _, index = rest.partition(":")
    return node, offsets[node][output] + int(index or 0)

  control_returns = tuple(sorted(set(function.control_ret.values())))
  if not control_returns:
    # Functions older than control outputs run all their stateful ops.
    control_returns = tuple(
      node.name for node in function.node_def if has_effects(node, library)
    )
  return _Body(
    nodes=nodes,
    inputs={
      node.name: tuple(map(resolve, node.input)) for node in function.node_def
    },
    args=args,
    returns=tuple(
      resolve(function.ret[arg.name]) for arg in signature.output_arg
    ),
    control_returns=control_returns,
  )
