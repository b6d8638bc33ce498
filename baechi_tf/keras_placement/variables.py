"""A model's variables: found by their handles, moved to other devices."""

from collections.abc import Iterable
from collections.abc import Mapping

import keras
import tensorflow as tf


def variables_by_handle(model: keras.Model) -> dict[int, keras.Variable]:
  """Returns the Keras variables of a model, its optimizers and metrics.

  Returns:
    Each variable by the `id` of its handle, which functions capture.
  """
  tracked = tf.train.TrackableView(model).descendants()
  own = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
  return {
    id(x.handle): x
    for x in (*own, *tracked)
    if isinstance(x, keras.Variable) and x.value is not None
  }


def move_variables(
  variables: Iterable[keras.Variable], device_of: Mapping[int, str]
) -> None:
  """Moves Keras variables to devices, with their values.

  Both the Keras variable and TensorFlow's own stay the same objects, because
  optimizers know them by their identity. Saving and callbacks go on.

  Args:
    variables: the variables to move.
    device_of: the device of each, by the `id` of the Keras variable.
  """
  for variable in variables:
    old = variable.value
    with tf.device(device_of[id(variable)]):
      new = tf.Variable(old.read_value(), dtype=old.dtype)
    # Checked with TensorFlow 2.21: a variable is where its handle is, and the
    # handle counts its references.
    old._handle = new.handle
