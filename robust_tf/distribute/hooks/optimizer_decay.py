"""The weight decay that a Keras optimizer has for a variable."""

import keras

from robust_tf.distribute.hooks import private


def weight_decay(
  optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> float:
  """Returns an optimizer's weight decay of a variable, 0 if it is excluded."""
  # Keras 3.15: knows what `exclude_from_weight_decay` was told.
  decays = private.attribute(__name__, optimizer, "_use_weight_decay")
  if optimizer.weight_decay and decays(variable):
    return optimizer.weight_decay
  return 0.0
