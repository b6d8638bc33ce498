"""Models that train in seconds, with He's initial weights."""

import keras

from robust_tf.training.data import Dataset
from robust_tf.training.models import mlp


def small_model(data: Dataset, seed: int, hidden: int) -> keras.Model:
  """Returns a perceptron; for images of 28 x 28 and more a small CNN.

  Args:
    data: what it is to learn.
    seed: of the weights.
    hidden: units of the perceptron's hidden layer.
  """
  if len(data.input_shape) != 3 or min(data.input_shape[:2]) < 28:
    return mlp(data.input_shape, data.num_classes, seed, hidden)
  initial = [keras.initializers.HeNormal(3 * seed + k) for k in range(3)]
  x = inputs = keras.Input(data.input_shape)
  for filters, initializer in zip((8, 16), initial[:2], strict=True):
    x = keras.layers.Conv2D(
      filters,
      5,
      strides=2,
      padding="same",
      activation="relu",
      kernel_initializer=initializer,
    )(x)
  x = keras.layers.Flatten()(x)
  x = keras.layers.Dense(data.num_classes, kernel_initializer=initial[2])(x)
  return keras.Model(inputs, x, name="small_cnn")
