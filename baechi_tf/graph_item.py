"""GraphItem: one flat graph, what is fed, what is fetched, what is planned.

Grappler's word for it is an item. Functions are inlined, so that every op of
the step is a node of one graph; a whole loop or branch stays one op.
"""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf import initializer as initializers
from baechi_tf.feeding import with_placeholders
from baechi_tf.function_library import checked_definition
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import Ref
from baechi_tf.graph_check import check_graph
from baechi_tf.graph_check import check_signatures
from baechi_tf.graph_files import check_variables
from baechi_tf.graph_files import choose_meta_graph
from baechi_tf.graph_files import read_graph_file
from baechi_tf.graph_files import read_saved_model
from baechi_tf.inlining import inline
from baechi_tf.liveness import check_no_cycle
from baechi_tf.liveness import flat_graph_def
from baechi_tf.liveness import live_nodes
from baechi_tf.object_graph import captured_objects
from baechi_tf.rewrites import rewrite_step
from baechi_tf.signatures import checked_fetches
from baechi_tf.signatures import choose_signature
from baechi_tf.signatures import Feed
from baechi_tf.signatures import init_op
from baechi_tf.signatures import nodes_behind
from baechi_tf.signatures import placeholder_feeds
from baechi_tf.signatures import quoted
from baechi_tf.signatures import signature_feeds
from baechi_tf.signatures import signature_names
from baechi_tf.signatures import signature_outputs
from baechi_tf.signatures import sinks

GraphDef = tf.compat.v1.GraphDef
MetaGraphDef = tf.compat.v1.MetaGraphDef


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GraphItem:
  """A step of a model as one graph that a `tf.compat.v1.Session` runs.

  Attributes:
    graph_def: function calls are inlined; the inlined nodes' names are call
      paths joined by "/" ("StatefulPartitionedCall/dense/MatMul"), made
      unique. `While`, `If`, `Case` and their stateless kin stay one node, with
      their bodies in the library. The saver's and initialisers' nodes are
      here too, unplanned.
    feeds: the inputs, each the output of a Placeholder.
    fetches: names of the tensors that the step returns.
    targets: names of the ops that the step runs for their side effects.
    op_names: the ops live from fetches and targets, in the graph's order:
      what is planned.
    paths: for each planned op the names of the call nodes from the top graph
      down, then its name in that body; () for an op that only orders others
      and is no node of the model.
    source: the file or function, for messages.
    initializer: sets the variables and tables of a session.
    rewritten_for: the top graph's nodes that the step is run for, if the model
      was rewritten before it was read; whoever writes it rewrites it alike.
    num_rewritten: how many nodes each of the `REWRITES` replaced.
  """

  graph_def: GraphDef
  feeds: tuple[Feed, ...]
  fetches: tuple[str, ...]
  targets: tuple[str, ...]
  op_names: tuple[str, ...]
  paths: Mapping[str, tuple[str, ...]]
  source: str
  initializer: Callable[[tf.compat.v1.Session], None]
  rewritten_for: tuple[str, ...] = ()
  num_rewritten: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def initialize(self, session: tf.compat.v1.Session) -> None:
    """Fills the variables and tables of a session on this item's graph."""
    self.initializer(session)


def read_item(
  path: str | os.PathLike,
  *,
  signature: str | None = None,
  fetches: Sequence[str] = (),
  tags: Iterable[str] | None = None,
  rewrite: bool = True,
) -> GraphItem:
  """Returns the item in a SavedModel directory or a graph file.

  Args:
    path: a SavedModel's directory, or a GraphDef or MetaGraphDef in a file
      whose name ends in ".pb" (binary) or ".pbtxt" (text), or a MetaGraphDef
      in one that ends in ".meta", as `tf.compat.v1.train.Saver` writes it.
    signature: which signature is the step; default the only one, else
      "serving_default".
    fetches: names of tensors or ops: the step, in place of a signature.
    tags: which of several graphs in a SavedModel; default the only one, else
      the one with the tag "serve".
    rewrite: whether the step goes through `REWRITES` first.

  Raises:
    ValueError: the file is none of these or is damaged, or has no such
      signature or fetch; the message names the file and what it has. Or both a
      signature and fetches are given, or tags for a graph file.
    OSError: the file cannot be read.
  """
  path = os.fspath(path)
  if signature is not None and fetches:
    raise ValueError(
      "signature= is of no use with fetches=: either says what the step is"
    )
  if tags is not None and os.path.isfile(path):
    raise ValueError(
      f"tags= is of no use with {path}: only SavedModels have several graphs"
    )
  try:
    if os.path.isdir(path):
      meta_graph = choose_meta_graph(read_saved_model(path), tags)
      check_variables(path, meta_graph)
      initializer = _checkpoint(meta_graph, path)
    else:
      meta_graph = read_graph_file(path)
      initializer = initializers.Values()
    check_graph(meta_graph.graph_def)
    check_signatures(meta_graph)
    return _read_step(
      meta_graph, path, initializer, signature, fetches, rewrite
    )
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _read_step(meta_graph, source, initializer, signature, fetches, rewrite):
  original = meta_graph.graph_def
  names = signature_names(meta_graph)
  if fetches:
    outputs = checked_fetches(original, fetches)
    feeds = placeholder_feeds(original, outputs)
  elif names or signature:
    chosen = meta_graph.signature_def[choose_signature(names, signature)]
    outputs = signature_outputs(chosen)
    feeds = signature_feeds(chosen)
    if not outputs:
      raise ValueError("the signature returns nothing to run for")
  else:
    raise ValueError(
      "the graph has no signature: name the tensors of the step with fetches=;"
      f" nothing consumes {quoted(sinks(original))}"
    )
  if not rewrite:
    return make_item(original, feeds, outputs, source, initializer)
  return make_rewritten_item(meta_graph, feeds, outputs, source, initializer)


def make_rewritten_item(
  meta_graph: MetaGraphDef,
  feeds: Sequence[Feed],
  outputs: Sequence[Ref],
  source: str,
  initializer: Callable[[tf.compat.v1.Session], None],
) -> GraphItem:
  """Returns the item of a step that has gone through `REWRITES`.

  Args:
    meta_graph: the model; it is not changed.
    feeds: as for `make_item`, and so are the other arguments.
    outputs: what the step returns (or runs, for control references).
    source: the file or function, for messages.
    initializer: sets variables and tables; its `roots` are nodes that it runs.

  Raises:
    ValueError: as `make_item`.
  """
  fed = [parse_ref(feed.tensor) for feed in feeds]
  roots = tuple(dict.fromkeys(name for name, _ in (*outputs, *fed)))
  graph_def, counts = rewrite_step(meta_graph, roots)
  item = make_item(graph_def, feeds, outputs, source, initializer)
  return dataclasses.replace(item, rewritten_for=roots, num_rewritten=counts)


def make_item(
  original: GraphDef,
  feeds: Sequence[Feed],
  outputs: Sequence[Ref],
  source: str,
  initializer: Callable[[tf.compat.v1.Session], None],
) -> GraphItem:
  """Returns the item of a graph with its library.

  Args:
    original: the graph; it is not changed.
    feeds: the inputs.
    outputs: what the step returns (or runs, for control references).
    source: the file or function, for messages.
    initializer: sets variables and tables; its `roots` are nodes that it runs.

  Raises:
    ValueError: the graph is not sound, or holds a lowered loop.
  """
  fed = [parse_ref(feed.tensor) for feed in feeds]
  roots = list(initializer.roots)
  present = _nodes_by_name(original)
  _check_present(present, [*(name for name, _ in (*fed, *outputs)), *roots])
  _check_colocation(original, present)
  uses = [*outputs, *((name, CONTROL) for name in roots)]
  graph, moved = with_placeholders(original, feeds, uses)
  fed = [moved.get(ref, ref) for ref in fed]
  outputs = [moved.get(ref, ref) for ref in outputs]
  nodes = _nodes_by_name(graph)
  in_step = nodes_behind((*outputs, *fed), nodes)
  flat = inline(graph, nodes.keys() - in_step, (*outputs, *fed))

  resolved = [flat.returns[ref] for ref in outputs]
  starts = [name for (name, _), _ in resolved]
  calls = [call for _, through in resolved for call in through]
  live, targets = live_nodes(flat, starts, calls)
  targets = [name for (name, x), _ in resolved if x == CONTROL] + targets
  check_no_cycle(flat, live)
  live.update(name for name, _ in fed)
  op_names = tuple(name for name in flat.nodes if name in live)
  kept, _ = live_nodes(flat, [*live, *roots], [])
  graph_def = flat_graph_def(flat, kept, original)
  _check_ops(graph_def)
  return GraphItem(
    graph_def=graph_def,
    feeds=tuple(
      dataclasses.replace(feed, tensor=f"{name}:{output}")
      for feed, (name, output) in zip(feeds, fed, strict=True)
    ),
    fetches=tuple(f"{n}:{x}" for (n, x), _ in resolved if x != CONTROL),
    targets=tuple(dict.fromkeys(targets)),
    op_names=op_names,
    paths={
      name: flat.paths[name] if name in present or flat.paths[name][1:] else ()
      for name in op_names
    },
    source=source,
    initializer=initializer,
  )


def _nodes_by_name(graph_def: GraphDef) -> dict:
  nodes = {node.name: node for node in graph_def.node}
  if len(nodes) == len(graph_def.node):
    return nodes
  seen = set()
  for node in graph_def.node:
    if node.name in seen:
      raise ValueError(f"the graph has two nodes {node.name!r}")
    seen.add(node.name)


def _check_ops(graph_def: GraphDef) -> None:
  library = functions_by_name(graph_def)
  bodies = (x.node_def for x in graph_def.library.function)
  for nodes in (graph_def.node, *bodies):
    for node in nodes:
      checked_definition(node, library)


def _check_present(nodes: Mapping, names: Iterable[str]) -> None:
  for name in names:
    if name not in nodes:
      raise ValueError(f"the graph has no node {name!r}, but refers to it")


def _check_colocation(original: GraphDef, nodes: Mapping) -> None:
  for node in original.node:
    if "_class" not in node.attr:
      continue
    for value in node.attr["_class"].list.s:
      name = value.removeprefix(b"loc:@").decode()
      if value.startswith(b"loc:@") and name not in nodes:
        raise ValueError(
          f"op {node.name!r} is to share a device with {name!r} (_class), which"
          " is not in the graph: TensorFlow refuses such a graph; remove the"
          " attr, or export the model again"
        )


def _checkpoint(meta_graph, directory) -> initializers.Checkpoint:
  saver = meta_graph.saver_def
  return initializers.Checkpoint(
    directory=directory,
    filename_tensor=saver.filename_tensor_name,
    restore_op=saver.restore_op_name,
    init_op=init_op(meta_graph),
    assets={x.tensor_info.name: x.filename for x in meta_graph.asset_file_def},
    objects=meta_graph.object_graph_def,
    captured=captured_objects(meta_graph),
  )
