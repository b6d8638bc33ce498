"""Puts placeholders where tensors are fed.

A session may feed any tensor, in the middle of a graph too; an op of which
nothing else is used does not run then, nor what only it needs. With a
placeholder in place of each fed tensor, that follows from the graph.
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import format_ref
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import placeholder
from baechi_tf.function_library import Ref
from baechi_tf.signatures import Feed
from baechi_tf.signatures import nodes_behind

GraphDef = tf.compat.v1.GraphDef

_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})


def with_placeholders(
  original: GraphDef, feeds: Sequence[Feed], uses: Iterable[Ref]
) -> tuple[GraphDef, dict[Ref, Ref]]:
  """Returns a graph that computes no fed tensor, and where each one is now.

  A placeholder takes the name of its op if nothing else of the op is used, so
  that a plan gives that op a device; another one has a name of its own, and is
  colocated with the op.

  Args:
    original: the graph with its library; it is not changed.
    feeds: the tensors that are fed.
    uses: the tensors and ops that the graph is run for.
  """
  nodes = {node.name: node for node in original.node}
  fed = {}
  for feed in feeds:
    name, output = parse_ref(feed.tensor)
    if nodes[name].op not in _PLACEHOLDERS or nodes[name].input:
      fed[name, output] = feed
  if not fed:
    return original, {}
  cut = {
    (name, CONTROL) for name, _ in fed if nodes[name].op in _PLACEHOLDERS
  } | fed.keys()
  running = nodes_behind(uses, nodes, cut)
  moved = _new_names(fed, running, nodes)
  replaced = {name for name, _ in moved.values()}
  placeholders = collections.defaultdict(list)
  for (op, output), (name, _) in moved.items():
    feed = fed[op, output]
    node = placeholder(name, feed.dtype.base_dtype, feed.shape)
    if name != op:
      node.attr["_class"].list.s.append(b"loc:@" + op.encode())
    placeholders[op].append(node)
  result = GraphDef(library=original.library, versions=original.versions)
  for node in original.node:
    if node.name not in replaced:
      copy = result.node.add()
      copy.CopyFrom(node)
      refs = map(parse_ref, node.input)
      copy.input[:] = [format_ref(moved.get(ref, ref)) for ref in refs]
    result.node.extend(placeholders[node.name])
  return result, moved


def _new_names(
  fed: Mapping[Ref, Feed], running: set[str], nodes: Mapping
) -> dict[Ref, Ref]:
  taken, moved = set(running), {}
  for name, output in fed:
    new = name
    while new in taken or (new != name and new in nodes):
      new = f"{new}/fed_{output}"
    taken.add(new)
    moved[name, output] = (new, 0)
  return moved
