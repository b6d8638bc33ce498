"""What a step takes and returns: a signature's tensors, or named ones."""

import dataclasses
import difflib
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import format_ref
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import output_offsets
from baechi_tf.function_library import parse_ref
from baechi_tf.function_library import Ref

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


def signature_names(meta_graph: MetaGraphDef) -> list[str]:
  """Returns the names of the signatures, those of TensorFlow's own aside."""
  own = {_INIT_SIGNATURE, _TRAIN_SIGNATURE}
  return sorted(meta_graph.signature_def.keys() - own)


def choose_signature(names: Sequence[str], signature: str | None) -> str:
  """Returns which signature is the step.

  Raises:
    ValueError: it is not there, or none was asked for and it is not clear.
  """
  if signature is not None:
    if signature not in names:
      known = f"there are {quoted(names)}" if names else "there are none"
      raise ValueError(f"there is no signature {signature!r}; {known}")
    return signature
  if len(names) == 1:
    return names[0]
  default = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
  if default in names:
    return default
  raise ValueError(
    f"choose one of the signatures {quoted(names)} with signature="
  )


def init_op(meta_graph: MetaGraphDef) -> str:
  """Returns the name of the op that fills tables, or ""."""
  if _INIT_SIGNATURE in meta_graph.signature_def:
    (tensor,) = meta_graph.signature_def[_INIT_SIGNATURE].outputs.values()
    return parse_ref(tensor.name)[0]
  for key in ("saved_model_main_op", "legacy_init_op"):
    if key in meta_graph.collection_def:
      return parse_ref(meta_graph.collection_def[key].node_list.value[0])[0]
  return ""


def _tensors(name: str, info) -> list[Feed]:
  """Returns the tensor, or each component, of a TensorInfo."""
  kind = info.WhichOneof("encoding")
  dtype, shape = tf.as_dtype(info.dtype), _dimensions(info.tensor_shape)
  if kind == "coo_sparse":
    sparse = info.coo_sparse
    rank = None if shape is None else len(shape)
    parts = (
      ("values", sparse.values_tensor_name, dtype, (None,)),
      ("indices", sparse.indices_tensor_name, tf.int64, (None, rank)),
      ("dense_shape", sparse.dense_shape_tensor_name, tf.int64, (rank,)),
    )
    return [Feed(f"{name}/{part}", *rest) for part, *rest in parts]
  if kind == "composite_tensor":
    return [
      feed
      for i, part in enumerate(info.composite_tensor.components)
      for feed in _tensors(f"{name}/{i}", part)
    ]
  return [Feed(name, info.name, dtype, shape)] if info.name else []


def signature_feeds(signature) -> list[Feed]:
  """Returns the inputs of a SignatureDef, by name."""
  inputs = sorted(signature.inputs.items())
  return [feed for name, info in inputs for feed in _tensors(name, info)]


def signature_outputs(signature) -> list[Ref]:
  """Returns the outputs of a SignatureDef, by name."""
  outputs = []
  for name, info in sorted(signature.outputs.items()):
    for part in _tensors(name, info):
      node, output = parse_ref(part.tensor)
      outputs.append((node, output if ":" in part.tensor else CONTROL))
  return outputs


def _dimensions(shape) -> tuple[int | None, ...] | None:
  if shape.unknown_rank:
    return None
  return tuple(None if x.size < 0 else x.size for x in shape.dim)


def placeholder_feeds(graph_def: GraphDef, outputs: list[Ref]) -> list[Feed]:
  """Returns the placeholders that the outputs depend on.

  Raises:
    ValueError: one takes what cannot be fed.
  """
  nodes = {node.name: node for node in graph_def.node}
  needed = nodes_behind(outputs, nodes)
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


def checked_fetches(graph_def: GraphDef, fetches: Sequence[str]) -> list[Ref]:
  """Returns what the names of tensors or ops refer to.

  Raises:
    ValueError: there is no such tensor or op; the message suggests others.
  """
  nodes = {node.name: node for node in graph_def.node}
  library = functions_by_name(graph_def)
  outputs = []
  for fetch in fetches:
    if not re.fullmatch(r"[^:^]+(:\d+)?", fetch):
      raise ValueError(
        f"{fetch!r} is no tensor or op; write an op's name, or one with the"
        ' output\'s number, such as "loss:0"'
      )
    name, output = parse_ref(fetch)
    if name not in nodes:
      near = difflib.get_close_matches(name, nodes, 3)
      hint = f"did you mean {quoted(near)}?"
      if not near:
        hint = f"nothing consumes {quoted(sinks(graph_def))}"
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


def sinks(graph_def: GraphDef) -> list[str]:
  """Returns the nodes whose outputs nothing consumes."""
  consumed = {parse_ref(x)[0] for n in graph_def.node for x in n.input}
  return [n.name for n in graph_def.node if n.name not in consumed]


def quoted(names: Sequence[str]) -> str:
  """Returns the first ten names for a message."""
  shown = ", ".join(map(repr, names[:10]))
  more = len(names) - 10
  return f"{shown} and {more} more" if more > 0 else shown


def nodes_behind(
  refs: Iterable[Ref], nodes: Mapping, cut: Collection[Ref] = ()
) -> set[str]:
  """Returns the nodes referred to and all that they depend on.

  Args:
    refs: where to begin.
    nodes: by name.
    cut: references that are not followed.
  """
  found, pending = set(), list(refs)
  while pending:
    ref = pending.pop()
    name, _ = ref
    if ref not in cut and name not in found and name in nodes:
      found.add(name)
      pending.extend(map(parse_ref, nodes[name].input))
  return found
