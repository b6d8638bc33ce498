"""GraphItem: one flat graph, what is fed, what is fetched, what is planned.

Grappler's word for it is an item. Functions are inlined, so that every op of
the step is a node of one graph; a whole loop or branch stays one op.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf import initializer as initializers
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import format_ref
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import output_offsets
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import Ref
from baechi_tf.graph_files import check_variables
from baechi_tf.graph_files import choose_meta_graph
from baechi_tf.graph_files import read_graph_file
from baechi_tf.graph_files import read_saved_model
from baechi_tf.inlining import inline
from baechi_tf.liveness import check_no_lowered_loop
from baechi_tf.liveness import flat_graph_def
from baechi_tf.liveness import live_nodes

GraphDef = tf.compat.v1.GraphDef
MetaGraphDef = tf.compat.v1.MetaGraphDef

_INIT_SIGNATURE = "__saved_model_init_op"
_TRAIN_SIGNATURE = "__saved_model_train_op"


@dataclasses.dataclass(frozen=True)
class Feed:
  """One input of the step.

  Attributes:
    name: the signature's argument, or the placeholder's name without one.
    tensor: the tensor to feed, such as "x:0".
    dtype: its type.
    shape: its dimensions, None where unknown; None if even their number is.
  """

  name: str
  tensor: str
  dtype: tf.DType
  shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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


def read_item(
  path: str | os.PathLike,
  *,
  signature: str | None = None,
  fetches: Sequence[str] = (),
  tags: Iterable[str] | None = None,
) -> GraphItem:
  """Returns the item in a SavedModel directory or a graph file.

  Args:
    path: a SavedModel's directory, or a GraphDef or MetaGraphDef in a file
      whose name ends in ".pb" (binary) or ".pbtxt" (text).
    signature: which signature is the step; default the only one, else
      "serving_default".
    fetches: names of tensors or ops: the step, in place of a signature.
    tags: which of several graphs in a SavedModel; default the only one, else
      the one with the tag "serve".

  Raises:
    ValueError: the file is none of these or is damaged, or has no such
      signature or fetch; the message names the file and what it has.
    OSError: the file cannot be read.
  """
  path = os.fspath(path)
  try:
    if os.path.isdir(path):
      meta_graph = choose_meta_graph(read_saved_model(path), tags)
      check_variables(path, meta_graph)
      initializer = _checkpoint(meta_graph, path)
    else:
      meta_graph = read_graph_file(path)
      initializer = initializers.Values()
    return _read_step(meta_graph, path, initializer, signature, fetches)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _read_step(meta_graph, source, initializer, signature, fetches):
  original = meta_graph.graph_def
  if fetches:
    outputs = _checked_fetches(original, fetches)
    feeds = _placeholder_feeds(original, outputs)
  elif meta_graph.signature_def:
    name = _choose_signature(meta_graph, signature)
    feeds = _signature_feeds(meta_graph.signature_def[name])
    outputs = _signature_outputs(meta_graph.signature_def[name])
    if not outputs:
      raise ValueError(f"signature {name!r} returns nothing to run for")
  elif signature:
    raise ValueError(
      f"there is no signature {signature!r}: the graph has none; name the"
      " tensors of the step with --fetch"
    )
  else:
    raise ValueError(
      "the graph has no signature: name the tensors of the step with --fetch;"
      f" nothing consumes {_quoted(_sinks(original))}"
    )
  return make_item(original, feeds, outputs, source, initializer)


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
  nodes = {node.name: node for node in original.node}
  _check_present(nodes, [*(name for name, _ in (*fed, *outputs)), *roots])
  in_step = _behind([name for name, _ in (*outputs, *fed)], nodes)
  flat = inline(original, nodes.keys() - in_step, (*outputs, *fed))

  resolved = [flat.returns[ref] for ref in outputs]
  starts = [name for (name, _), _ in resolved]
  calls = [call for _, through in resolved for call in through]
  fed_nodes = [flat.returns[ref][0][0] for ref in fed]
  live, targets = live_nodes(flat, starts, calls, fed_nodes)
  targets = [name for (name, x), _ in resolved if x == CONTROL] + targets
  check_no_lowered_loop(flat.nodes.items(), live)
  live.update(fed_nodes)
  kept, _ = live_nodes(flat, [*live, *roots], [])
  return GraphItem(
    graph_def=flat_graph_def(flat, kept, original),
    feeds=tuple(
      dataclasses.replace(feed, tensor=f"{name}:{output}")
      for feed, (name, output) in zip(
        feeds, (flat.returns[ref][0] for ref in fed), strict=True
      )
    ),
    fetches=tuple(f"{n}:{x}" for (n, x), _ in resolved if x != CONTROL),
    targets=tuple(dict.fromkeys(targets)),
    op_names=tuple(name for name in flat.nodes if name in live),
    paths={name: flat.paths[name] for name in flat.nodes if name in live},
    source=source,
    initializer=initializer,
  )


def _behind(names: Iterable[str], nodes: Mapping) -> set[str]:
  """Returns the nodes and all that they depend on."""
  found, pending = set(), list(names)
  while pending:
    name = pending.pop()
    if name not in found and name in nodes:
      found.add(name)
      pending.extend(parse_ref(x)[0] for x in nodes[name].input)
  return found


def _check_present(nodes: Mapping, names: Iterable[str]) -> None:
  for name in names:
    if name not in nodes:
      raise ValueError(f"the graph has no node {name!r}, but refers to it")


def _checkpoint(meta_graph, directory) -> initializers.Checkpoint:
  saver = meta_graph.saver_def
  init_op = ""
  if _INIT_SIGNATURE in meta_graph.signature_def:
    (tensor,) = meta_graph.signature_def[_INIT_SIGNATURE].outputs.values()
    init_op = tensor.name
  for key in ("saved_model_main_op", "legacy_init_op"):
    if not init_op and key in meta_graph.collection_def:
      init_op = meta_graph.collection_def[key].node_list.value[0]
  return initializers.Checkpoint(
    directory=directory,
    filename_tensor=saver.filename_tensor_name,
    restore_op=saver.restore_op_name,
    init_op=init_op.partition(":")[0],
    assets={x.tensor_info.name: x.filename for x in meta_graph.asset_file_def},
  )


def _choose_signature(meta_graph: MetaGraphDef, signature: str | None) -> str:
  names = sorted(
    meta_graph.signature_def.keys() - {_INIT_SIGNATURE, _TRAIN_SIGNATURE}
  )
  if signature is not None:
    if signature not in names:
      raise ValueError(
        f"there is no signature {signature!r}; there are {_quoted(names)}"
      )
    return signature
  if len(names) == 1:
    return names[0]
  default = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
  if default in names:
    return default
  raise ValueError(
    f"choose one of the signatures {_quoted(names)} with --signature"
  )


def _tensors(info) -> list[tuple[str, str]]:
  """Returns (suffix, tensor name) of each component of a TensorInfo."""
  kind = info.WhichOneof("encoding")
  if kind == "coo_sparse":
    sparse = info.coo_sparse
    return [
      ("/values", sparse.values_tensor_name),
      ("/indices", sparse.indices_tensor_name),
      ("/dense_shape", sparse.dense_shape_tensor_name),
    ]
  if kind == "composite_tensor":
    return [
      (f"/{i}{suffix}", name)
      for i, part in enumerate(info.composite_tensor.components)
      for suffix, name in _tensors(part)
    ]
  return [("", info.name)] if info.name else []


def _signature_feeds(signature) -> list[Feed]:
  feeds = []
  for name, info in sorted(signature.inputs.items()):
    whole = info.WhichOneof("encoding") == "name"
    for suffix, tensor in _tensors(info):
      feeds.append(
        Feed(
          name=name + suffix,
          tensor=tensor,
          dtype=tf.as_dtype(info.dtype),
          shape=_dimensions(info.tensor_shape) if whole else None,
        )
      )
  return feeds


def _signature_outputs(signature) -> list[Ref]:
  outputs = []
  for _, info in sorted(signature.outputs.items()):
    for _, tensor in _tensors(info):
      name, output = parse_ref(tensor)
      outputs.append((name, output if ":" in tensor else CONTROL))
  return outputs


def _dimensions(shape) -> tuple[int | None, ...] | None:
  if shape.unknown_rank:
    return None
  return tuple(None if x.size < 0 else x.size for x in shape.dim)


def _placeholder_feeds(graph_def: GraphDef, outputs: list[Ref]) -> list[Feed]:
  nodes = {node.name: node for node in graph_def.node}
  needed = _behind([name for name, _ in outputs], nodes)
  feeds = []
  for node in graph_def.node:
    if node.op != "Placeholder" or node.name not in needed:
      continue
    dtype = tf.as_dtype(node.attr["dtype"].type)
    if dtype in (tf.resource, tf.variant):
      raise ValueError(
        f"placeholder {node.name!r} takes a {dtype.name}, which cannot be fed:"
        " save the model with tf.saved_model.save, which keeps its variables"
      )
    has_shape = "shape" in node.attr
    shape = _dimensions(node.attr["shape"].shape) if has_shape else None
    feeds.append(Feed(node.name, f"{node.name}:0", dtype, shape))
  return feeds


def _checked_fetches(graph_def: GraphDef, fetches: Sequence[str]) -> list[Ref]:
  nodes = {node.name: node for node in graph_def.node}
  library = functions_by_name(graph_def)
  outputs = []
  for fetch in fetches:
    name, output = parse_ref(fetch)
    if name not in nodes:
      near = difflib.get_close_matches(name, nodes, 3)
      hint = (
        f"did you mean {_quoted(near)}?"
        if near
        else (f"nothing consumes {_quoted(_sinks(graph_def))}")
      )
      raise ValueError(f"there is no op {name!r} to fetch; {hint}")
    _, num_outputs = output_offsets(nodes[name], library)
    if ":" not in fetch and not num_outputs:
      output = CONTROL
    elif output >= num_outputs:
      raise ValueError(
        f"op {name!r} has {num_outputs} outputs: there is no"
        f" {format_ref((name, output))!r} to fetch"
      )
    outputs.append((name, output))
  return outputs


def _sinks(graph_def: GraphDef) -> list[str]:
  consumed = {parse_ref(x)[0] for n in graph_def.node for x in n.input}
  return [n.name for n in graph_def.node if n.name not in consumed]


def _quoted(names: Sequence[str]) -> str:
  shown = ", ".join(map(repr, names[:10]))
  more = len(names) - 10
  return f"{shown} and {more} more" if more > 0 else shown
