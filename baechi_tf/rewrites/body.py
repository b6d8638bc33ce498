"""The nodes of a graph or of a library function, to be rewritten alike.

A graph calls a tensor "node:1", a function's body "node:output:1".
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

NodeDef = tf.compat.v1.NodeDef


@dataclasses.dataclass(frozen=True)
class Body:
  """Nodes that refer to each other by name.

  Attributes:
    nodes: in the graph's order; they are not changed in place.
    returns: the tensors that a function returns, by result; {} of a graph.
    kept: names of nodes that must stay, because something outside names them.
    is_function: whether tensors are named as in a function.
  """

  nodes: Sequence[NodeDef]
  returns: Mapping[str, str]
  kept: frozenset[str]
  is_function: bool

  @classmethod
  def of_graph(cls, graph_def, kept: frozenset[str]) -> "Body":
    """Returns the body of a graph whose kept nodes are named outside."""
    return cls(list(graph_def.node), {}, kept, is_function=False)

  @classmethod
  def of_function(cls, function) -> "Body":
    """Returns the body of a FunctionDef; its control outputs are kept."""
    kept = frozenset(function.control_ret.values())
    return cls(
      list(function.node_def), dict(function.ret), kept, is_function=True
    )

  def tied_names(self) -> set[str]:
    """Returns the nodes that others want to share a device with (`_class`)."""
    return {
      value.removeprefix(b"loc:@").decode()
      for node in self.nodes
      if "_class" in node.attr
      for value in node.attr["_class"].list.s
    }

  def write_to_graph(self, graph_def) -> None:
    """Replaces a graph's nodes by these."""
    nodes = list(map(_copy, self.nodes))
    del graph_def.node[:]
    graph_def.node.extend(nodes)

  def write_to_function(self, function) -> None:
    """Replaces a FunctionDef's nodes and results by these."""
    nodes = list(map(_copy, self.nodes))
    del function.node_def[:]
    function.node_def.extend(nodes)
    function.ret.clear()
    function.ret.update(self.returns)


def _copy(node: NodeDef) -> NodeDef:
  copy = NodeDef()
  copy.CopyFrom(node)
  return copy
