"""A text that ships with Python, and a small model of its characters.

The text is what `help("for")` and the like print, one topic after the other.
The model is that of Bengio, Ducharme, Vincent and Jauvin, A Neural
Probabilistic Language Model, JMLR 2003, for characters instead of words.
"""

from pydoc_data.topics import topics

import keras
import numpy as np

from robust_tf.training.data import Dataset

CONTEXT = 16
_EMBEDDING = 16
_HIDDEN = 128
_TEST_EVERY = 10  # topics
_MOST_TESTED = 20_000


def load_text() -> Dataset:
  """Returns contexts of 16 characters, and the character that follows each.

  Every tenth topic is for testing. Characters are numbers, as floats.
  """
  names = sorted(topics)
  characters = sorted(set("".join(topics[name] for name in names)))
  number_of = {character: k for k, character in enumerate(characters)}
  train, test = [], []
  for k, name in enumerate(names):
    numbers = [number_of[character] for character in topics[name]]
    chosen = test if k % _TEST_EVERY == 0 else train
    chosen.append(np.array(numbers, np.int32))
  x_train, y_train = _examples(train)
  x_test, y_test = _examples(test)
  stride = -(-len(x_test) // _MOST_TESTED)
  return Dataset(
    x_train, y_train, x_test[::stride], y_test[::stride], len(characters)
  )


def _examples(texts) -> tuple[np.ndarray, np.ndarray]:
  windows = np.concatenate(
    [np.lib.stride_tricks.sliding_window_view(x, CONTEXT + 1) for x in texts]
  )
  return windows[:, :-1].astype(np.float32), windows[:, -1].copy()


def language_model(num_characters: int, seed: int) -> keras.Model:
  """Returns a model of logits of the next character.

  Args:
    num_characters: how many there are.
    seed: of the weights.
  """
  inputs = keras.Input([CONTEXT])
  x = keras.layers.Embedding(
    num_characters,
    _EMBEDDING,
    embeddings_initializer=keras.initializers.RandomNormal(
      stddev=1.0, seed=3 * seed
    ),
  )(inputs)
  x = keras.layers.Flatten()(x)
  x = keras.layers.Dense(
    _HIDDEN,
    activation="relu",
    kernel_initializer=keras.initializers.HeNormal(3 * seed + 1),
  )(x)
  x = keras.layers.Dense(
    num_characters,
    kernel_initializer=keras.initializers.GlorotNormal(3 * seed + 2),
  )(x)
  return keras.Model(inputs, x, name="language_model")
