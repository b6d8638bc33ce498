"""Reads and renders files that hold a graph: SavedModels and bare graphs."""

import os
import re
from collections.abc import Iterable

import tensorflow as tf
from google.protobuf import message
from google.protobuf import text_format

# Checked with TensorFlow 2.21: the protobuf that is a SavedModel.
from tensorflow.core.protobuf import saved_model_pb2

GraphDef = tf.compat.v1.GraphDef
MetaGraphDef = tf.compat.v1.MetaGraphDef
SavedModel = saved_model_pb2.SavedModel

_OP = re.compile(r"[A-Za-z_][A-Za-z0-9_.>/]*")


def read_saved_model(path: str) -> SavedModel:
  """Returns the protobuf of a SavedModel directory.

  Raises:
    ValueError: it is missing or damaged.
  """
  for name, parse in (
    ("saved_model.pb", SavedModel.FromString),
    ("saved_model.pbtxt", lambda x: text_format.Parse(x, SavedModel())),
  ):
    file_name = os.path.join(path, name)
    if os.path.isfile(file_name):
      with open(file_name, "rb") as file:
        data = file.read()
      try:
        saved_model = parse(data)
      except (message.DecodeError, text_format.ParseError, UnicodeDecodeError):
        raise ValueError(
          f"{name} is damaged or truncated ({len(data)} bytes); copy the"
          " model again"
        ) from None
      if not saved_model.meta_graphs:
        raise ValueError(f"{name} holds no graph; copy the model again")
      return saved_model
  if os.path.isfile(os.path.join(path, "saved_model.cpb")):
    raise ValueError(
      "saved_model.cpb is a model above 2 GB, split into chunks, which"
      " TensorFlow for Python can neither load nor write; keep large constants"
      " in variables, whose values are stored apart, and save the model again"
    )
  raise ValueError(
    "not a SavedModel: the directory has no saved_model.pb; give the"
    " directory that tf.saved_model.save or model.export wrote"
  )


def choose_meta_graph(
  saved_model: SavedModel, tags: Iterable[str] | None
) -> MetaGraphDef:
  """Returns the graph with the tags.

  Raises:
    ValueError: there is none, or no tags were given and it is not clear.
  """
  graphs = saved_model.meta_graphs
  if tags is None:
    if len(graphs) == 1:
      return graphs[0]
    tags = {tf.saved_model.SERVING}
  for meta_graph in graphs:
    if set(meta_graph.meta_info_def.tags) == set(tags):
      return meta_graph
  known = ", ".join(
    repr(",".join(sorted(x.meta_info_def.tags))) for x in graphs
  )
  raise ValueError(
    f"no graph has the tags {','.join(sorted(tags))!r}; there are {known}"
  )


def check_variables(path: str, meta_graph: MetaGraphDef) -> None:
  """Raises ValueError if the graph has a saver but its files are missing."""
  if not meta_graph.HasField("saver_def"):
    return
  prefix = os.path.join(path, "variables", "variables")
  if not os.path.isfile(prefix + ".index"):
    raise ValueError(
      "variables/variables.index is missing: the model is incomplete; copy"
      " it again"
    )
  shards = sorted(
    x
    for x in os.listdir(os.path.dirname(prefix))
    if re.fullmatch(r"variables\.data-\d{5}-of-\d{5}", x)
  )
  expected = int(shards[0][-5:]) if shards else 1
  if len(shards) != expected:
    raise ValueError(
      f"variables/ has {len(shards)} of {expected} data files"
      " (variables.data-…): the model is incomplete; copy it again"
    )


def read_graph_file(path: str) -> MetaGraphDef:
  """Returns the graph in a GraphDef or MetaGraphDef file.

  Raises:
    ValueError: it is neither, or is damaged.
    OSError: the file cannot be read.
  """
  is_text = path.endswith(".pbtxt")
  if path.endswith((".keras", ".h5")):
    raise ValueError(
      "a file of Keras: load it in Python, and write it as a SavedModel with"
      " baechi_tf.export_keras, or place it with baechi_tf.place_keras"
    )
  if not path.endswith((".pb", ".pbtxt", ".meta")):
    raise ValueError(
      "not a model: give a SavedModel directory, or a GraphDef or MetaGraphDef"
      ' in a file whose name ends in ".pb" or ".pbtxt", or a MetaGraphDef in'
      ' ".meta"'
    )
  with open(path, "rb") as file:
    data = file.read()
  # The bytes of one kind may parse as the other.
  is_meta = path.endswith(".meta")
  for kind in (MetaGraphDef,) if is_meta else (GraphDef, MetaGraphDef):
    result = kind()
    try:
      if is_text:
        text_format.Parse(data.decode(), result)
      else:
        result.ParseFromString(data)
    except (message.DecodeError, text_format.ParseError, UnicodeDecodeError):
      continue
    if kind is GraphDef:
      result = MetaGraphDef(graph_def=result)
    nodes = result.graph_def.node
    if nodes and all(x.name and _OP.fullmatch(x.op) for x in nodes):
      return result
  raise ValueError(
    f"neither a GraphDef nor a MetaGraphDef ({len(data)} bytes): it is damaged"
    " or something else"
  )


def graph_file_bytes(graph_def: GraphDef, path: str | os.PathLike) -> bytes:
  """Returns a graph as text if the path ends in ".pbtxt", else as binary."""
  if os.fspath(path).endswith(".pbtxt"):
    return text_format.MessageToString(graph_def).encode()
  return graph_def.SerializeToString(deterministic=True)
