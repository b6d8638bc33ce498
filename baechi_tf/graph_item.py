"""GraphItem: one flat graph, what is fed, what is fetched, what is planned.

Grappler's word for it is an item. Functions are inlined, so that every op of
the step is a node of one graph; a whole loop or branch stays one op.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import tensorflow as tf

GraphDef = tf.compat.v1.GraphDef


@dataclasses.dataclass(frozen=True)
class Feed:
  """One input of the step.

  Attributes:
    name: the signature's argument, or the tensor's name for bare graphs.
    tensor: the tensor to feed, such as "x:0".
    dtype: its type.
    shape: its dimensions, None where unknown; None if even their number is.
  """

  name: str
  tensor: str
  dtype: tf.DType
  shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True, eq=False)
class GraphItem:
  """A step of a model as one graph that a `tf.compat.v1.Session` runs.

  Attributes:
    graph_def: function calls are inlined; the inlined nodes' names are call
      paths joined by "/" ("StatefulPartitionedCall/dense/MatMul"), made
      unique. `While`, `If`, `Case` and their stateless kin stay one node, with
      their bodies in the library. The saver's and initialisers' nodes are
      here too, unplanned.
    feeds: the inputs.
    fetches: names of the tensors that the step returns.
    targets: names of the ops that the step runs for their side effects.
    op_names: the ops live from fetches and targets, in the graph's order:
      what is planned.
    paths: for each planned op the names of the call nodes from the top graph
      down, then its name in that body; () for an op that only orders others
      and is no node of the model.
    source: the file or function, for messages.
    initializer: sets the variables and tables of a session.
  """

  graph_def: GraphDef
  feeds: tuple[Feed, ...]
  fetches: tuple[str, ...]
  targets: tuple[str, ...]
  op_names: tuple[str, ...]
  paths: Mapping[str, tuple[str, ...]]
  source: str
  initializer: Callable[[tf.compat.v1.Session], None]

  def initialize(self, session: tf.compat.v1.Session) -> None:
    """Fills the variables and tables of a session on this item's graph."""
    self.initializer(session)
