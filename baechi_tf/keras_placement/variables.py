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

  The Keras variable stays the same object, so saving, callbacks and the
  optimizer go on through it.

  Args:
    variables: the variables to move.
    device_of: the device of each, by the `id` of the Keras variable.
  """
  for variable in variables:
    old = variable.value
    with tf.device(device_of[id(variable)]):
      new = tf.Variable(
        old.read_value(),
        trainable=old.trainable,
        dtype=old.dtype,
        name=old.name.partition(":")[0],
        aggregation=old.aggregation,
        synchronization=old.synchronization,
      )
    # Checked with Keras 3.15: what a variable of the TensorFlow backend holds.
    variable._value = new
