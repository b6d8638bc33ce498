"""Keras models whose training steps are cut into micro-batches."""

import keras
from keras import layers


def chain(num_layers: int, width: int) -> keras.Model:
  """Returns dense layers of one width, one after another."""
  dense = [layers.Dense(width, "relu") for _ in range(num_layers)]
  return keras.Sequential([keras.Input((width,)), *dense])


def decoder(
  num_layers: int, width: int, heads: int, length: int, vocabulary: int
) -> keras.Model:
  """Returns a causal Transformer from tokens to logits of the next ones.

  As GPT-2 (Radford et al., 2019): layers that normalise their input, and learnt
  positions; without dropout, and with an output layer of its own.
  """
  tokens = keras.Input((length,), dtype="int32")
  positions = layers.Embedding(length, width)(keras.ops.arange(length))
  x = layers.Embedding(vocabulary, width)(tokens) + positions
  for _ in range(num_layers):
    y = layers.LayerNormalization()(x)
    attention = layers.MultiHeadAttention(heads, width // heads)
    x = layers.Add()([x, attention(y, y, use_causal_mask=True)])
    y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(width)(y)])
  logits = layers.Dense(vocabulary)(layers.LayerNormalization()(x))
  return keras.Model(tokens, logits)
