"""Private parts of Keras models."""

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private


def track_loss(model: keras.Model, loss: tf.Tensor, batch_size) -> None:
  """Counts the loss of a step in the logs, as Keras' `train_step` does."""
  # Keras 3.15: made by `compile`. The loss was divided by the replicas.
  num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
  tracker = private.attribute(__name__, model, "_loss_tracker")
  tracker.update_state(loss * num_replicas, sample_weight=batch_size)


def all_layers(model: keras.Model) -> list[keras.Layer]:
  """Returns the layers of a model at every depth."""
  flatten = private.attribute(__name__, model, "_flatten_layers")
  return list(flatten(include_self=False))
