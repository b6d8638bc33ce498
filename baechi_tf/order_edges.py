"""Chooses the control edges that make TensorFlow run a plan's order.

TensorFlow's executor runs whatever is ready, newest first (docs/order.md), and
knows no priorities. A control edge from an op to the next of its device makes
the next one wait. Few edges do: only ops that take long matter, and an edge is
left out where a path of the graph says the same.

Edges join nodes of one body (the main graph, or one call of a library
function) on one device, so none carries a tensor or a signal between devices.
They all go forward in one topological order of the body, in which a call is one
node: together with the graph's own edges they make no cycle.
"""

import dataclasses
import heapq
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.function_library import called_function
from baechi_tf.function_library import functions_by_name

GraphDef = tf.compat.v1.GraphDef
Path = tuple[str, ...]

# Where some branches are dead: a control edge would spread that.
_CONTROL_FLOW = frozenset(
  {"Switch", "RefSwitch", "_SwitchN", "Merge", "RefMerge", "Enter", "RefEnter"}
)


@dataclasses.dataclass(frozen=True)
class OrderEdges:
  """The control edges of an order.

  Attributes:
    after: an op's name -> the op that must end before it starts.
    num_implied: pairs that need no edge, because a path joins them.
    num_skipped: pairs of neighbours in a device's order that get no edge,
      because they are in different bodies or in one that takes none.
  """

  after: Mapping[str, str]
  num_implied: int
  num_skipped: int


def order_edges(
  graph_def: GraphDef,
  paths: Mapping[str, Path],
  device_of: Mapping[str, str],
  order: Sequence[str],
  *,
  in_main_graph: bool = True,
) -> OrderEdges:
  """Returns the control edges that make each device run its ops in order.

  Args:
    graph_def: the graph with its library, as `rewrite_devices` takes it.
    paths: each op's call nodes from the main graph down, then its own node.
    device_of: the device of each planned op.
    order: the ops that are to be ordered, those of a device as it runs them; an
      op comes after all that it depends on.
    in_main_graph: whether nodes of the main graph may get edges. False where
      other steps run them: an edge would make those run more than they ask for.
  """
  bodies: dict[Path, dict[str, tuple[int, str | None]]] = {}
  for position, op in enumerate(order):
    path = paths[op]
    for depth in range(len(path) - 1):  # a call counts from its first op on
      bodies.setdefault(path[:depth], {}).setdefault(
        path[depth], (position, None)
      )
    if path:
      bodies.setdefault(path[:-1], {})[path[-1]] = (position, op)
  library = functions_by_name(graph_def)
  planned = {path[0] for path in paths.values() if len(path) == 1}
  after, num_implied = {}, 0
  for prefix, wanted in bodies.items():
    nodes = _body(graph_def, library, prefix)
    barred = set()
    if not prefix:
      if not in_main_graph:
        continue
      barred = _needed_outside(nodes, planned)
    edges, implied = _edges_in_body(nodes, wanted, device_of, barred)
    after.update(edges)
    num_implied += implied
  num_pairs = _num_neighbours(order, device_of)
  num_skipped = max(num_pairs - len(after) - num_implied, 0)
  return OrderEdges(after, num_implied, num_skipped)


def _num_neighbours(order, device_of) -> int:
  """Returns how many pairs of ops follow each other on a device."""
  return len(order) - len({device_of[op] for op in order})


def _body(graph_def, library, prefix: Path):
  """Returns the nodes of the body that a path of calls leads to."""
  nodes = graph_def.node
  for call in prefix:
    node = next(node for node in nodes if node.name == call)
    nodes = library[called_function(node, library)].node_def
  return nodes


def _edges_in_body(nodes, wanted, device_of, barred):
  """Returns op -> op before it, and how many pairs a path joins anyway.

  Args:
    nodes: the body's NodeDefs.
    wanted: node name -> its position in the order, and its op; None for calls.
    device_of: the device of each planned op.
    barred: names of nodes that must wait for nothing more.
  """
  if any(node.op in _CONTROL_FLOW for node in nodes):
    return {}, 0
  inputs = _inputs(nodes)
  sequence = _topological(inputs, {k: v[0] for k, v in wanted.items()})
  when = {name: i for i, name in enumerate(sequence)}
  edges, num_implied = {}, 0
  last = {}  # of each device, the node that came last
  for name in sequence:
    op = wanted.get(name, (0, None))[1]
    if op is None:
      continue
    before = last.get(device_of[op])
    last[device_of[op]] = name
    if before is None or name in barred:
      continue
    if _depends(inputs, when, name, before):
      num_implied += 1
    else:
      edges[op] = wanted[before][1]
  return edges, num_implied


def _inputs(nodes) -> dict[str, list[str]]:
  """Returns, for each node, those of the body that it takes inputs from."""
  names = {node.name for node in nodes}
  return {
    node.name: [
      source
      for source in dict.fromkeys(
        ref.removeprefix("^").partition(":")[0] for ref in node.input
      )
      if source in names  # the others are a function's arguments
    ]
    for node in nodes
  }


def _topological(
  inputs: Mapping[str, list[str]], position: Mapping[str, int]
) -> list[str]:
  """Returns the nodes, inputs first, as near to the positions as that allows.

  Nodes without a position come as early as they can.
  """
  consumers = {name: [] for name in inputs}
  for name, sources in inputs.items():
    for source in sources:
      consumers[source].append(name)
  missing = {name: len(sources) for name, sources in inputs.items()}
  number = {name: i for i, name in enumerate(inputs)}
  ready = [
    (position.get(name, -1), number[name], name)
    for name, count in missing.items()
    if count == 0
  ]
  heapq.heapify(ready)
  sequence = []
  while ready:
    *_, name = heapq.heappop(ready)
    sequence.append(name)
    for consumer in consumers[name]:
      missing[consumer] -= 1
      if missing[consumer] == 0:
        entry = (position.get(consumer, -1), number[consumer], consumer)
        heapq.heappush(ready, entry)
  return sequence


def _depends(inputs, when, name: str, before: str) -> bool:
  """Whether a path leads from `before` to `name`."""
  seen, pending = set(), [name]
  while pending:
    for source in inputs[pending.pop()]:
      if source == before:
        return True
      if source not in seen and when[source] > when[before]:
        seen.add(source)
        pending.append(source)
  return False


def _needed_outside(nodes, planned: Iterable[str]) -> set[str]:
  """Returns the nodes that nodes outside the step need too."""
  inputs = _inputs(nodes)
  pending = [name for name in inputs if name not in planned]
  needed = set(pending)
  while pending:
    for source in inputs[pending.pop()]:
      if source not in needed:
        needed.add(source)
        pending.append(source)
  return needed
