"""Callbacks that an optimizer adds to a training.

They are asked of optimizers with `training_callback(callbacks)`, and come
before all others.
"""

import keras

from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks.loss_scale import without_loss_scale


def change() -> None:
  """Makes `fit`, `evaluate` and `predict` ask optimizers for a callback.

  `keras.callbacks.CallbackList` is changed; for models with other optimizers it
  does what it did.
  """
  # Keras 3.15: called once the list is complete, before training begins.
  path = "keras.callbacks.CallbackList.set_model"
  stock_set_model = private.find(__name__, path, ("self", "model"))

  def set_model(self, model):
    optimizer = without_loss_scale(getattr(model, "optimizer", None))
    make = getattr(optimizer, "training_callback", None)
    if make is not None and not getattr(self, "optimizer_was_asked", False):
      self.optimizer_was_asked = True
      self.callbacks.insert(0, make(self.callbacks))
    stock_set_model(self, model)

  keras.callbacks.CallbackList.set_model = set_model
