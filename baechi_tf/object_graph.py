"""The objects of a SavedModel: which of them its functions capture.

A SavedModel in TensorFlow 2's format describes its objects beside its graph. A
function's captures are the last arguments of a call to it, and the description
says which object each one is. The checkpoint has a description of its own.
"""

from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_object_graph_pb2
from tensorflow.core.protobuf import trackable_object_graph_pb2

from baechi_tf.function_library import called_function
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import parse_ref

SavedObjectGraph = saved_object_graph_pb2.SavedObjectGraph

_DESCRIPTION = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"


def captured_objects(
  meta_graph: tf.compat.v1.MetaGraphDef,
) -> dict[str, int]:
  """Returns the objects that calls in the top graph capture.

  Returns:
    The index of the object, by the name of the node that makes its handle.
  """
  functions = meta_graph.object_graph_def.concrete_functions
  library = functions_by_name(meta_graph.graph_def)
  captured = {}
  for node in meta_graph.graph_def.node:
    function = called_function(node, library)
    if not function or function not in functions:
      continue
    bound = functions[function].bound_inputs
    data = [parse_ref(x)[0] for x in node.input if not x.startswith("^")]
    handles = data[len(data) - len(bound) :]
    captured.update(zip(handles, bound, strict=True))
  return captured


def read_values(
  objects: SavedObjectGraph, indices: Iterable[int], prefix: str
) -> dict[int, np.ndarray]:
  """Returns the values of a SavedModel's variables.

  Args:
    objects: the SavedModel's description of its objects.
    indices: the variables wanted.
    prefix: the path of the SavedModel's checkpoint, without its suffix.

  Returns:
    The value by index; the checkpoint may lack some.
  """
  reader = tf.train.load_checkpoint(prefix)
  if not reader.has_tensor(_DESCRIPTION):
    return {}
  description = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
    reader.get_tensor(_DESCRIPTION)
  )
  keys = _checkpoint_keys(objects, description)
  return {x: reader.get_tensor(keys[x]) for x in indices if x in keys}


def _checkpoint_keys(objects, description) -> dict[int, str]:
  """Returns the checkpoint's key of each variable.

  The two descriptions number objects in different ways. They are walked
  together from their roots, by the names of the attributes.
  """
  keys, seen, pending = {}, {0}, [(0, 0)]
  while pending:
    index, other = pending.pop()
    for attribute in description.nodes[other].attributes:
      if attribute.name == _VALUE:
        keys[index] = attribute.checkpoint_key
    children = description.nodes[other].children
    others = {x.local_name: x.node_id for x in children}
    for child in objects.nodes[index].children:
      if child.local_name in others and child.node_id not in seen:
        seen.add(child.node_id)
        pending.append((child.node_id, others[child.local_name]))
  return keys
