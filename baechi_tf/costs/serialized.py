"""Serialized `tf.Example` inputs, made up for the op that parses them.

A string that a `ParseExample` reads needs the features that the op's keys,
types and shapes name. Other parsers need real data.
"""

import collections
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf import message

from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem

NodeDef = tf.compat.v1.NodeDef

_COPIES = frozenset({
  "ExpandDims", "Identity", "Reshape", "Squeeze", "StopGradient",
})  # fmt: skip
_EXAMPLE_PARSERS = {  # with the usual shape of what they read
  "ParseExample": (None,),
  "ParseExampleV2": (None,),
  "ParseSingleExample": (),
}
_OTHER_PARSERS = frozenset({
  "DecodeAndCropJpeg", "DecodeBase64", "DecodeBmp", "DecodeCSV",
  "DecodeCompressed", "DecodeGif", "DecodeImage", "DecodeJSONExample",
  "DecodeJpeg", "DecodePaddedRaw", "DecodePng", "DecodeProtoV2", "DecodeRaw",
  "DecodeWav", "DecodeWebP", "ParseSequenceExample", "ParseSequenceExampleV2",
  "ParseSingleSequenceExample", "ParseTensor", "StringToNumber",
})  # fmt: skip


def parser_of(item: GraphItem, feed: Feed) -> NodeDef | None:
  """Returns the op that parses a string input, or None.

  It is looked for behind ops that copy or reshape the input.
  """
  if feed.dtype.base_dtype != tf.string:
    return None
  consumers = collections.defaultdict(list)
  for node in item.graph_def.node:
    for name in node.input[:1]:
      consumers[parse_ref(name)].append(node)
  pending = [parse_ref(feed.tensor)]
  # Each tensor is followed once: its consumers are taken out.
  while pending:
    for node in consumers.pop(pending.pop(), ()):
      if node.op in _EXAMPLE_PARSERS or node.op in _OTHER_PARSERS:
        return node
      if node.op in _COPIES:
        pending.append((node.name, 0))
  return None


def usual_shape(item: GraphItem, feed: Feed) -> tuple[int | None, ...] | None:
  """Returns an input's shape; if the model has none, its parser's."""
  parser = parser_of(item, feed) if feed.shape is None else None
  return _EXAMPLE_PARSERS.get(parser.op) if parser else feed.shape


def made_up_example(
  item: GraphItem, feed: Feed, parser: NodeDef, rng: np.random.Generator
) -> bytes:
  """Returns a serialized example with all features that the parser reads.

  Raises:
    ValueError: the parser reads something else, or its keys are computed.
  """
  if parser.op not in _EXAMPLE_PARSERS:
    raise ValueError(
      f"input {feed.name!r} is read by {parser.op} ({parser.name!r}), for which"
      " no value can be made up: give real inputs with inputs="
    )
  nodes = {node.name: node for node in item.graph_def.node}
  features = {}
  for key, dtype, count in _features(parser, nodes, feed):
    if dtype == tf.string:
      value = tf.train.Feature(bytes_list={"value": [b""] * count})
    elif dtype == tf.float32:
      numbers = 0.1 * rng.standard_normal(count)
      value = tf.train.Feature(float_list={"value": numbers})
    else:
      numbers = rng.integers(0, 2, count)
      value = tf.train.Feature(int64_list={"value": numbers})
    features[key] = value
  example = tf.train.Example(features={"feature": features})
  return example.SerializeToString(deterministic=True)


def whole_examples(values: np.ndarray) -> np.ndarray:
  """Returns byte strings with the zero bytes that NumPy dropped at their ends.

  An example that ends with a zero number ends with such bytes. Strings that
  are no examples are left alone.
  """
  whole = np.empty(values.shape, object)
  for index, value in np.ndenumerate(values):
    whole[index] = _whole_example(value, values.dtype.itemsize)
  return whole


def _whole_example(value: bytes, longest: int) -> bytes:
  for length in range(len(value), longest + 1):
    padded = value.ljust(length, b"\0")
    try:
      tf.train.Example.FromString(padded)
    except message.DecodeError:
      continue
    return padded
  return value


def _features(parser, nodes, feed) -> Iterator[tuple[str, tf.DType, int]]:
  """Yields each feature's key, type and number of values."""
  copy = NodeDef()
  copy.CopyFrom(parser)
  attr = copy.attr  # a look at a missing key adds it
  if parser.op == "ParseSingleExample":
    keys = [*attr["sparse_keys"].list.s, *attr["dense_keys"].list.s]
  else:
    # ParseExample has a scalar for each key, its successor vectors of them.
    inputs = parser.input[2 : 2 + attr["Nsparse"].i + attr["Ndense"].i]
    if parser.op == "ParseExampleV2":
      inputs = parser.input[2:5]
    keys = [key for name in inputs for key in _keys(name, nodes, feed)]
  dense = zip(
    attr["Tdense"].list.type, attr["dense_shapes"].list.shape, strict=True
  )
  specs = [
    *((x, 1) for x in attr["sparse_types"].list.type),
    # An unknown dimension holds as many as there are: one will do.
    *((x, math.prod(max(d.size, 1) for d in y.dim)) for x, y in dense),
    *((x, 1) for x in attr["ragged_value_types"].list.type),
  ]
  for key, (dtype, count) in zip(keys, specs, strict=True):
    yield key.decode(), tf.as_dtype(dtype), count


def _keys(name: str, nodes, feed) -> list[bytes]:
  node = nodes[parse_ref(name)[0]]
  if node.op != "Const":
    raise ValueError(
      f"input {feed.name!r} holds examples whose keys the model computes"
      f" ({node.name!r}): give real inputs with inputs="
    )
  return list(tf.make_ndarray(node.attr["value"].tensor).flat)
