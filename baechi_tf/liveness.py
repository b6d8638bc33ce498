"""What of a flat graph has to run, and the graph that is left of it."""

import collections
import re
from collections.abc import Iterable

import tensorflow as tf

from baechi_tf.function_library import format_ref
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import functions_of
from baechi_tf.function_library import reachable_functions
from baechi_tf.inlining import FlatGraph

GraphDef = tf.compat.v1.GraphDef
NodeDef = tf.compat.v1.NodeDef


def live_nodes(
  flat: FlatGraph,
  roots: Iterable[str],
  calls: Iterable[tuple[str, ...]],
) -> tuple[set[str], list[str]]:
  """Returns what has to run for the roots, and for which side effects.

  Args:
    flat: the graph.
    roots: nodes that run.
    calls: calls that run, for their side effects.

  Returns:
    The live nodes, and those of them that run only because a live call does.
  """
  live, targets = set(), []
  known_calls = set()
  pending = list(roots)
  pending_calls = collections.deque(calls)
  while pending or pending_calls:
    while pending:
      name = pending.pop()
      if name in live:
        continue
      live.add(name)
      pending.extend(node for node, _ in flat.inputs[name])
      pending_calls.extend(flat.calls_used.get(name, ()))
    while pending_calls and not pending:
      call = pending_calls.popleft()
      if call in known_calls:
        continue
      known_calls.add(call)
      for name in flat.side_effects[call]:
        if name not in live:
          targets.append(name)
          pending.append(name)
  return live, targets


def flat_graph_def(
  flat: FlatGraph, keep: set[str], original: GraphDef
) -> GraphDef:
  """Returns the kept nodes and the functions that they still need."""
  result = GraphDef(versions=original.versions)
  library = functions_by_name(original)
  pending = []
  for name, node in flat.nodes.items():
    if name not in keep:
      continue
    copy = result.node.add()
    copy.CopyFrom(node)
    copy.name = name
    copy.input.extend(format_ref(ref) for ref in flat.inputs[name])
    if "_class" in copy.attr:
      _drop_lost_classes(copy, keep)
    pending.extend(functions_of(node, library))
  needed = reachable_functions(pending, library)
  for function in original.library.function:
    if function.signature.name in needed:
      result.library.function.add().CopyFrom(function)
  for gradient in original.library.gradient:
    if gradient.function_name in needed:
      result.library.gradient.add().CopyFrom(gradient)
  return result


def _drop_lost_classes(node: NodeDef, keep: set[str]) -> None:
  names = [
    item
    for item in node.attr["_class"].list.s
    if item.decode().removeprefix("loc:@") in keep
  ]
  del node.attr["_class"]
  if names:
    node.attr["_class"].list.s.extend(names)


def check_no_cycle(flat: FlatGraph, names: set[str]) -> None:
  """Raises ValueError if live nodes wait for each other.

  A lowered loop is such a cycle; it has no op that stands for all of it.
  """
  waits = {name: {x for x, _ in flat.inputs[name]} & names for name in names}
  consumers = collections.defaultdict(list)
  for name, producers in waits.items():
    for producer in producers:
      consumers[producer].append(name)
  pending = {name: len(producers) for name, producers in waits.items()}
  ready = [name for name, count in pending.items() if not count]
  while ready:
    name = ready.pop()
    del pending[name]
    for consumer in consumers[name]:
      pending[consumer] -= 1
      if not pending[consumer]:
        ready.append(consumer)
  if not pending:
    return
  stuck = sorted(pending)
  for name in stuck:
    if re.fullmatch("(Ref)?NextIteration", flat.nodes[name].op):
      raise ValueError(
        f"op {name!r} is a {flat.nodes[name].op}: the graph holds a loop that"
        " was lowered to a cycle; export the model again with"
        " tf.compat.v1.enable_control_flow_v2(), which keeps a loop one op"
      )
  raise ValueError(
    f"{len(stuck)} ops wait for each other in a cycle that is no loop, among"
    f" them {', '.join(map(repr, stuck[:5]))}"
  )
