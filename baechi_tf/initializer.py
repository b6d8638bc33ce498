"""Ways to fill the variables and tables of a session on an item's graph."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf import private
from baechi_tf.object_graph import read_values
from baechi_tf.object_graph import SavedObjectGraph

context = private.find(
  "tensorflow.python.eager.context",
  "reading a variable while a session is open",
)

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Restores a SavedModel's variables and runs its own initialiser.

  Attributes:
    directory: the SavedModel's.
    filename_tensor: what the saver reads the checkpoint's name from; empty if
      the model has no saver.
    restore_op: restores every variable.
    init_op: fills tables; empty if there is none.
    assets: the file's name under assets/, by the tensor it is fed to.
    objects: the model's description of its objects; empty in TensorFlow 1's
      format.
    captured: the index of a variable in `objects`, by its handle's name.
  """

  directory: str
  filename_tensor: str = ""
  restore_op: str = ""
  init_op: str = ""
  assets: Mapping[str, str] = dataclasses.field(default_factory=dict)
  objects: SavedObjectGraph = dataclasses.field(
    default_factory=SavedObjectGraph
  )
  captured: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def roots(self) -> tuple[str, ...]:
    """The nodes that have to be in the graph."""
    tensors = (self.filename_tensor, *self.assets)
    names = (self.restore_op, self.init_op, *tensors)
    return tuple(x.partition(":")[0].lstrip("^") for x in names if x)

  def __call__(self, session: tf.compat.v1.Session) -> None:
    """Fills the session's variables and tables."""
    feeds = {
      tensor: os.path.join(self.directory, "assets", name)
      for tensor, name in self.assets.items()
    }
    if self.restore_op:
      prefix = os.path.join(self.directory, "variables", "variables")
      session.run(self.restore_op, feeds | {self.filename_tensor: prefix})
      self._restore_left_out(session, prefix)
    if self.init_op:
      session.run(self.init_op, feeds)

  def _restore_left_out(self, session: tf.compat.v1.Session, prefix: str):
    """Restores captured variables that the saver's op has left out.

    Of a variable of Keras 3, the saver saves and restores a copy that no
    function captures; `tf.saved_model.load` goes by the objects.
    """
    variables = {
      x: self.captured[x.name]
      for x in session.graph.get_operations()
      if x.type == "VarHandleOp" and x.name in self.captured
    }
    with session.graph.as_default():
      is_set = session.run(
        [
          tf.raw_ops.VarIsInitializedOp(resource=x.outputs[0])
          for x in variables
        ]
      )
    left_out = {
      variables[x]: x
      for x, done in zip(variables, is_set, strict=True)
      if not done
    }
    if left_out:
      values = read_values(self.objects, left_out, prefix)
      _assign(session, {left_out[x]: value for x, value in values.items()})


@dataclasses.dataclass(frozen=True)
class Values:
  """Sets variables by name to given values, and all others to zero.

  Attributes:
    variables: by the name of the variable's node, what it is set to.
  """

  variables: Mapping[str, tf.Variable] = dataclasses.field(default_factory=dict)

  @property
  def roots(self) -> tuple[str, ...]:
    """The nodes that have to be in the graph: those that it holds anyway."""
    return ()

  def __call__(self, session: tf.compat.v1.Session) -> None:
    """Fills the session's variables.

    Raises:
      ValueError: a variable without a value has no fixed shape.
    """
    values = {}
    for variable in session.graph.get_operations():
      if variable.type not in _VARIABLES:
        continue
      if variable.name in self.variables:
        with context.eager_mode():
          values[variable] = self.variables[variable.name].numpy()
      else:
        values[variable] = _zeros(variable)
    _assign(session, values)


def _assign(
  session: tf.compat.v1.Session, values: Mapping[tf.Operation, np.ndarray]
) -> None:
  """Sets variables, given by their nodes, to values."""
  assigns = []
  with session.graph.as_default():
    for variable, value in values.items():
      feed = tf.compat.v1.placeholder(variable.get_attr("dtype"), value.shape)
      handle = variable.outputs[0]
      with tf.device(variable.device):
        if variable.type == "VarHandleOp":
          assign = tf.raw_ops.AssignVariableOp(resource=handle, value=feed)
        else:
          assign = tf.raw_ops.Assign(ref=handle, value=feed).op
      assigns.append((assign, feed, value))
  for assign, feed, value in assigns:
    session.run(assign, {feed: value})


def _zeros(variable: tf.Operation) -> np.ndarray:
  shape = tf.TensorShape(variable.get_attr("shape"))
  if not shape.is_fully_defined():
    raise ValueError(
      f"variable {variable.name!r} has the shape {shape}: it cannot be filled"
      " with zeros; give a SavedModel, which has its values"
    )
  return np.zeros(shape.as_list(), variable.get_attr("dtype").as_numpy_dtype)
