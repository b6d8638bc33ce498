"""Pins of Keras layers, as pins of the ops that they make in a step.

TensorFlow makes scopes unique by a number: the ops of layer "block/dense" are
in a scope such as "block_1/dense_1", which may be the name of another layer.
The layer's variables tell which scopes are its own.
"""

import re
from collections.abc import Mapping

import keras

from baechi_tf.function_library import parse_ref
from baechi_tf.keras_placement.step_graph import StepGraph


def op_pins(
  model: keras.Model, step: StepGraph, pins: Mapping[str, str]
) -> dict[str, str]:
  """Returns pins by regular expression of ops for pins of layers.

  Args:
    model: the model.
    step: a trace of one of its steps.
    pins: device names by the path or the name of a layer, or by a regular
      expression, which stays as it is.

  Raises:
    ValueError: several layers have the name, or no scope or several in the
      step may be the layer's.
  """
  layers = {}
  for layer in model._flatten_layers():
    for key in {layer.path, layer.name} - {None}:
      layers.setdefault(key, []).append(layer)
  result = {}
  for key, device in pins.items():
    regex = key
    if key in layers:
      regex = _regex(_layer(key, layers[key]), step, key)
    if result.setdefault(regex, device) != device:
      raise ValueError(
        f"pins=: {key!r} is pinned to {result[regex]} and to {device}"
      )
  return result


def _layer(key: str, found: list[keras.Layer]) -> keras.Layer:
  exact = [x for x in found if x.path == key]
  if len(exact or found) > 1:
    paths = ", ".join(repr(x.path) for x in exact or found)
    raise ValueError(
      f"pins=: {len(found)} layers have the name {key!r}; use a path: {paths}"
    )
  return (exact or found)[0]


def _regex(layer: keras.Layer, step: StepGraph, key: str) -> str:
  """Returns a regular expression of the ops in a layer's scopes."""
  parts = (layer.path or layer.name).split("/")
  scope = re.compile(
    f"(?:^|/)({'/'.join(re.escape(x) + r'(?:_[0-9]+)?' for x in parts)})/"
  )
  users = _users(layer, step)
  names = step.item.op_names if users is None else users
  scopes = sorted({x[1] for x in map(scope.search, names) if x})
  if not scopes:
    raise ValueError(
      f"pins=: layer {key!r} has no op of its own in the training step; pin a"
      " regular expression of op names"
    )
  if users is None and len(scopes) > 1:
    raise ValueError(
      f"pins=: the ops of layer {key!r}, which has no variables, may be those"
      f" in {' or '.join(scopes)}; pin a regular expression of op names"
    )
  return f"(^|/)({'|'.join(map(re.escape, scopes))})/"


def _users(layer: keras.Layer, step: StepGraph) -> list[str] | None:
  """Returns the ops that take a layer's variables; None if it has none."""
  own = {id(x) for x in layer.variables}
  handles = {name for name, x in step.variables.items() if id(x) in own}
  if not handles:
    return None
  return [
    node.name
    for node in step.item.graph_def.node
    if any(parse_ref(x)[0] in handles for x in node.input)
  ]
