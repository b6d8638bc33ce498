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
    control_returns: the nodes that a call of a function waits for, by control
      output; {} of a graph.
    kept: names of nodes that must stay, because something outside takes what
      they give: a fetch, a signature.
    outside: names of a graph's nodes that are not the step's.
    is_function: whether tensors are named as in a function.
  """

  nodes: Sequence[NodeDef]
  returns: Mapping[str, str]
  control_returns: Mapping[str, str]
  kept: frozenset[str]
  outside: frozenset[str]
  is_function: bool

  @classmethod
  def of_graph(
    cls, graph_def, kept: frozenset[str], outside: frozenset[str]
  ) -> "Body":
    """Returns the body of a graph."""
    nodes = list(graph_def.node)
    return cls(nodes, {}, {}, kept, outside, is_function=False)

  @classmethod
  def of_function(cls, function) -> "Body":
    """Returns the body of a FunctionDef."""
    return cls(
      list(function.node_def),
      dict(function.ret),
      dict(function.control_ret),
      kept=frozenset(),
      outside=frozenset(),
      is_function=True,
    )

  def fixed_names(self) -> set[str]:
    """Returns the nodes that must stay as they are."""
    return self.tied_names().union(
      self.kept, self.outside, self.control_returns.values()
    )

  def taken_names(self) -> set[str]:
    """Returns the nodes that other nodes, or a caller, take or wait for."""
    refs = [ref for node in self.nodes for ref in node.input]
    refs += [*self.returns.values(), *self.control_returns.values()]
    return self.kept.union(
      ref.removeprefix("^").partition(":")[0] for ref in refs
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
    """Replaces a FunctionDef's nodes, results and control outputs by these."""
    nodes = list(map(_copy, self.nodes))
    del function.node_def[:]
    function.node_def.extend(nodes)
    function.ret.clear()
    function.ret.update(self.returns)
    function.control_ret.clear()
    function.control_ret.update(self.control_returns)
    names = [
      x for x in function.signature.control_output if x in self.control_returns
    ]
    function.signature.control_output[:] = names


def _copy(node: NodeDef) -> NodeDef:
  copy = NodeDef()
  copy.CopyFrom(node)
  return copy
