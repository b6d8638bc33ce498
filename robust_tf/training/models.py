"""The models that the job trains: small enough for many workers at once.

Both return logits, and their weights follow from the seed alone: He's normal
initialisation (He et al., Delving Deep into Rectifiers, ICCV 2015).
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np

_FILTERS = (16, 32)
_CNN_HIDDEN = 64


def mlp(
  input_shape: Sequence[int], num_classes: int, seed: int, hidden: int = 32
) -> keras.Model:
  """Returns a perceptron with one hidden layer of ReLUs.

  Args:
    input_shape: of one example.
    num_classes: logits to return.
    seed: of the weights.
    hidden: units of the hidden layer.
  """
  initial = _initializers(seed)
  inputs = keras.Input(tuple(input_shape))
  x = keras.layers.Flatten()(inputs)
  x = keras.layers.Dense(
    hidden, activation="relu", kernel_initializer=next(initial)
  )(x)
  x = keras.layers.Dense(num_classes, kernel_initializer=next(initial))(x)
  return keras.Model(inputs, x, name="mlp")


def cnn(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
  """Returns two convolutions with pooling, then a hidden layer, of ReLUs.

  Args:
    input_shape: of one image, `[height, width, channels]`, 4 x 4 or larger.
    num_classes: logits to return.
    seed: of the weights.

  Raises:
    ValueError: that is not the shape of an image.
  """
  input_shape = tuple(input_shape)
  if len(input_shape) != 3 or min(input_shape[:2]) < 4:
    raise ValueError(
      "cnn needs images [height, width, channels] of at least 4 x 4 pixels,"
      f" got examples of shape {list(input_shape)}; take mlp"
    )
  initial = _initializers(seed)
  x = inputs = keras.Input(input_shape)
  for filters in _FILTERS:
    x = keras.layers.Conv2D(
      filters,
      3,
      padding="same",
      activation="relu",
      kernel_initializer=next(initial),
    )(x)
    x = keras.layers.MaxPooling2D()(x)
  x = keras.layers.Flatten()(x)
  x = keras.layers.Dense(
    _CNN_HIDDEN, activation="relu", kernel_initializer=next(initial)
  )(x)
  x = keras.layers.Dense(num_classes, kernel_initializer=next(initial))(x)
  return keras.Model(inputs, x, name="cnn")


MODELS: dict[str, Callable[..., keras.Model]] = {"mlp": mlp, "cnn": cnn}


def _initializers(seed: int) -> Iterator[keras.initializers.Initializer]:
  """Yields an initializer for each layer in turn, each with its own seed."""
  for child in np.random.SeedSequence(seed).spawn(8):
    number = int(child.generate_state(1)[0]) >> 1  # Keras wants 31 bits
    yield keras.initializers.HeNormal(seed=number)
