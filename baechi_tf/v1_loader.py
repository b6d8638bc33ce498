"""Loads a SavedModel in TensorFlow 1's format, its variables where planned.

`tf.saved_model.load` makes one function of such a model's graph and lifts the
variables out of it, onto the default device. Here each is lifted onto the
device of its node. Reference variables and tables stay nodes of the graph, and
so on their devices.
"""

import tensorflow as tf

from baechi_tf import private

_PURPOSE = "models in TensorFlow 1's format"
wrap_function = private.find("tensorflow.python.eager.wrap_function", _PURPOSE)
resource_variable_ops = private.find(
  "tensorflow.python.ops.resource_variable_ops", _PURPOSE
)
load_v1_in_v2 = private.find(
  "tensorflow.python.saved_model.load_v1_in_v2", _PURPOSE
)
loader_impl = private.find(
  "tensorflow.python.saved_model.loader_impl", _PURPOSE
)

_COLLECTIONS = (
  tf.compat.v1.GraphKeys.GLOBAL_VARIABLES,
  tf.compat.v1.GraphKeys.LOCAL_VARIABLES,
)


def is_v1(path: str) -> bool:
  """Whether a SavedModel is in TensorFlow 1's format.

  Raises:
    OSError: there is no such model, or it is damaged.
  """
  graphs = loader_impl.parse_saved_model(path).meta_graphs
  return len(graphs) != 1 or not graphs[0].HasField("object_graph_def")


def load_v1(path: str, tags: list[str] | None):
  """Returns what `tf.saved_model.load` does, with variables where planned.

  Args:
    path: the SavedModel's directory.
    tags: which graph; None if there is only one.

  Raises:
    OSError: there is no such model.
    ValueError: there are several graphs, and no tags.
    RuntimeError: no graph has the tags.
  """
  # Started while it builds a graph, TensorFlow has no soft placement.
  tf.config.list_logical_devices()
  with tf.init_scope():
    loader = _Loader(path)
    root = loader.load(tags)
  root.variables = loader.variables  # TensorFlow's are in no certain order
  return root


class _Loader(load_v1_in_v2._EagerSavedModelLoader):
  """TensorFlow's loader, which leaves variables alone that are lifted here."""

  def load_graph(self, returns, meta_graph_def):
    """Imports the graph into the default one and lifts its variables."""
    super().load_graph(returns, meta_graph_def)
    self.variables = _lift_variables(tf.compat.v1.get_default_graph())


def _lift_variables(graph) -> list[tf.Variable]:
  """Puts a variable on its device for each in the graph's collections."""
  holder = wrap_function.VariableHolder()
  lifted = {}  # by handle: a variable may be in both collections
  for key in _COLLECTIONS:
    variables = graph.get_collection_ref(key)
    for i, variable in enumerate(variables):
      if not resource_variable_ops.is_resource_variable(variable):
        continue
      handle = variable.handle.ref()
      if handle not in lifted:
        with tf.init_scope(), tf.device(variable.device), graph.as_default():
          lifted[handle] = wrap_function._lift_single_variable(
            variable, graph, holder
          )
      variables[i] = lifted[handle]
  return list(lifted.values())
