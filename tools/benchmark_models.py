"""The three models that placements are measured on, built without downloads.

Inception-V3, a GNMT and a Transformer, as in Jeon et al., "Baechi: Fast Device
Placement of Machine Learning Graphs", SoCC 2020. The number of graph nodes
depends on layers, heads and length alone, so that a model of tiny width is as
hard to plan as a full one.
"""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras import ops


@dataclasses.dataclass(frozen=True)
class InceptionSizes:
  """Images in a step, their height and width in pixels, and their classes."""

  batch: int
  image_size: int
  classes: int


@dataclasses.dataclass(frozen=True)
class GnmtSizes:
  """Sentence pairs in a step, layers of each side, LSTM units, tokens.

  `length` tokens are in a source, and in a target.
  """

  batch: int
  layers: int
  width: int
  length: int
  vocabulary: int


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
  """As `GnmtSizes`; `heads` divide the width."""

  batch: int
  layers: int
  width: int
  heads: int
  length: int
  vocabulary: int

  def __post_init__(self) -> None:
    if self.width % self.heads:
      raise ValueError(f"width={self.width} must divide by heads={self.heads}")


Sizes = InceptionSizes | GnmtSizes | TransformerSizes

PRESETS: Mapping[str, Mapping[str, Sizes]] = {
  "full": {
    "inception": InceptionSizes(batch=32, image_size=299, classes=1000),
    "gnmt": GnmtSizes(
      batch=128, layers=4, width=512, length=40, vocabulary=30_000
    ),
    "transformer": TransformerSizes(
      batch=64, layers=6, width=512, heads=8, length=50, vocabulary=30_000
    ),
  },
  "tiny": {
    "inception": InceptionSizes(batch=4, image_size=107, classes=10),
    "gnmt": GnmtSizes(batch=2, layers=2, width=8, length=10, vocabulary=50),
    "transformer": TransformerSizes(
      batch=2, layers=2, width=8, heads=2, length=8, vocabulary=50
    ),
  },
}


def sizes_for(model: str, preset: str, **overrides: int) -> Sizes:
  """Returns the preset sizes of a model, but for the overrides.

  Raises:
    ValueError: there is no such model or preset, the model has no such size,
      or a size is not positive.
  """
  if preset not in PRESETS:
    raise ValueError(f"no preset {preset!r}; presets are {', '.join(PRESETS)}")
  if model not in PRESETS[preset]:
    names = ", ".join(PRESETS[preset])
    raise ValueError(f"no model {model!r}; models are {names}")
  sizes = PRESETS[preset][model]
  known = [field.name for field in dataclasses.fields(sizes)]
  for name, value in overrides.items():
    if name not in known:
      raise ValueError(
        f"{model} has no size {name!r}; its sizes are {', '.join(known)}"
      )
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1")
  return dataclasses.replace(sizes, **overrides)


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
  """A model and what one example batch of it looks like.

  Attributes:
    model: takes the inputs in order, returns logits `[..., num_labels]`.
    inputs: static shapes by name, integer inputs being tokens.
    labels: static shape of the labels, integers below `num_labels`.
    num_labels: classes, or the vocabulary.
  """

  model: keras.Model
  inputs: tuple[tf.TensorSpec, ...]
  labels: tf.TensorSpec
  num_labels: int

  def example_batch(self, seed: int) -> dict[str, np.ndarray]:
    """Returns random values for the inputs and the labels, by name."""
    generator = np.random.default_rng(seed)
    batch = {}
    for spec in (*self.inputs, self.labels):
      if spec.dtype.is_integer:
        value = generator.integers(self.num_labels, size=spec.shape)
      else:
        value = generator.standard_normal(spec.shape)
      batch[spec.name] = value.astype(spec.dtype.as_numpy_dtype)
    return batch


def build(sizes: Sizes, seed: int = 0) -> Benchmark:
  """Returns the model of these sizes, its weights drawn from `seed`.

  Clears Keras' global state, which numbers the layers, so that a model's
  names do not depend on what was built before it.
  """
  keras.utils.clear_session()
  keras.utils.set_random_seed(seed)
  match sizes:
    case InceptionSizes():
      return _inception(sizes)
    case GnmtSizes():
      return _translation(Gnmt(sizes, name="gnmt"), sizes)
    case TransformerSizes():
      return _translation(Transformer(sizes, name="transformer"), sizes)


def _inception(sizes: InceptionSizes) -> Benchmark:
  shape = (sizes.image_size, sizes.image_size, 3)
  model = keras.applications.InceptionV3(
    weights=None,
    input_shape=shape,
    classes=sizes.classes,
    classifier_activation=None,
  )
  images = tf.TensorSpec((sizes.batch, *shape), tf.float32, "images")
  labels = tf.TensorSpec((sizes.batch,), tf.int32, "labels")
  return Benchmark(model, (images,), labels, sizes.classes)


def _translation(
  model: keras.Model, sizes: GnmtSizes | TransformerSizes
) -> Benchmark:
  tokens = (sizes.batch, sizes.length)
  source, target, labels = (
    tf.TensorSpec(tokens, tf.int32, name)
    for name in ("source", "target", "labels")
  )
  return Benchmark(model, (source, target), labels, sizes.vocabulary)


class Gnmt(keras.Model):
  """LSTM encoder and decoder with attention at every step, unrolled.

  Wu et al., "Google's Neural Machine Translation System", 2016: the first
  encoder layer reads both ways, residual connections start at the third
  layer, and the first decoder layer's attention feeds every decoder layer.
  """

  def __init__(self, sizes: GnmtSizes, name: str):
    super().__init__(name=name)

    def cells(side: str) -> list[layers.LSTMCell]:
      return [
        layers.LSTMCell(sizes.width, name=f"{side}_{i}")
        for i in range(sizes.layers)
      ]

    self.width = sizes.width
    self.source_embedding = layers.Embedding(
      sizes.vocabulary, sizes.width, name="source_embedding"
    )
    self.target_embedding = layers.Embedding(
      sizes.vocabulary, sizes.width, name="target_embedding"
    )
    self.backward = layers.LSTMCell(sizes.width, name="encoder_backward")
    self.encoder = cells("encoder")
    self.decoder = cells("decoder")
    self.projection = layers.Dense(sizes.vocabulary, name="projection")

  def call(self, source, target):
    """Returns logits `[batch, length, vocabulary]` of the next tokens."""
    memory = self._encode(ops.unstack(self.source_embedding(source), axis=1))
    inputs = ops.unstack(self.target_embedding(target), axis=1)
    outputs = self._decode(ops.stack(memory, axis=1), inputs)
    return self.projection(ops.stack(outputs, axis=1))

  def _encode(self, steps):
    forward = self._run(self.encoder[0], steps)
    backward = self._run(self.backward, steps[::-1])[::-1]
    steps = [
      ops.concatenate(pair, axis=-1)
      for pair in zip(forward, backward, strict=True)
    ]
    for i, cell in enumerate(self.encoder[1:], start=1):
      outputs = self._run(cell, steps)
      steps = outputs if i < 2 else _add(outputs, steps)
    return steps

  def _run(self, cell, steps):
    state = self._zero_state(steps[0])
    outputs = []
    for step in steps:
      output, state = cell(step, state)
      outputs.append(output)
    return outputs

  def _decode(self, memory, steps):
    states = [self._zero_state(steps[0]) for _ in self.decoder]
    context = ops.zeros((steps[0].shape[0], self.width))
    outputs = []
    for step in steps:
      query = ops.concatenate([step, context], axis=-1)
      x, states[0] = self.decoder[0](query, states[0])
      context = _attend(memory, x)
      for i, cell in enumerate(self.decoder[1:], start=1):
        fed = ops.concatenate([x, context], axis=-1)
        output, states[i] = cell(fed, states[i])
        x = output if i < 2 else output + x
      outputs.append(x)
    return outputs

  def _zero_state(self, step):
    zeros = ops.zeros((step.shape[0], self.width))
    return [zeros, zeros]


def _add(a, b):
  return [x + y for x, y in zip(a, b, strict=True)]


def _attend(memory, query):
  """Returns `[batch, width]`, the memory weighted by its match with query."""
  scores = ops.squeeze(ops.matmul(memory, query[:, :, None]), axis=-1)
  weights = ops.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
  return ops.squeeze(ops.matmul(weights[:, None, :], memory), axis=1)


class Transformer(keras.Model):
  """Encoder and decoder of attention and feed-forward layers.

  Vaswani et al., "Attention Is All You Need", NeurIPS 2017, Figure 1, without
  dropout, so that a step's loss is a function of its inputs.
  """

  def __init__(self, sizes: TransformerSizes, name: str):
    super().__init__(name=name)
    self.source_embedding = layers.Embedding(
      sizes.vocabulary, sizes.width, name="source_embedding"
    )
    self.target_embedding = layers.Embedding(
      sizes.vocabulary, sizes.width, name="target_embedding"
    )
    self.position = _sinusoids(sizes.length, sizes.width)
    self.encoder = [
      TransformerLayer(sizes, attends_to_memory=False, name=f"encoder_{i}")
      for i in range(sizes.layers)
    ]
    self.decoder = [
      TransformerLayer(sizes, attends_to_memory=True, name=f"decoder_{i}")
      for i in range(sizes.layers)
    ]
    self.projection = layers.Dense(sizes.vocabulary, name="projection")

  def call(self, source, target):
    """Returns logits `[batch, length, vocabulary]` of the next tokens."""
    memory = self.source_embedding(source) + self.position
    for layer in self.encoder:
      memory = layer(memory)
    x = self.target_embedding(target) + self.position
    for layer in self.decoder:
      x = layer(x, memory)
    return self.projection(x)


class TransformerLayer(layers.Layer):
  """Self-attention, attention to the memory in a decoder, feed-forward."""

  def __init__(
    self, sizes: TransformerSizes, attends_to_memory: bool, name: str
  ):
    super().__init__(name=name)

    def attention(name: str) -> layers.MultiHeadAttention:
      return layers.MultiHeadAttention(
        sizes.heads, sizes.width // sizes.heads, name=name
      )

    self.is_decoder = attends_to_memory
    self.attention = attention("attention")
    self.norm = layers.LayerNormalization(name="norm")
    if self.is_decoder:
      self.memory_attention = attention("memory_attention")
      self.memory_norm = layers.LayerNormalization(name="memory_norm")
    self.hidden = layers.Dense(4 * sizes.width, "relu", name="hidden")
    self.output_layer = layers.Dense(sizes.width, name="output")
    self.output_norm = layers.LayerNormalization(name="output_norm")

  def call(self, x, memory=None):
    """Returns `[batch, length, width]`, the layer's output."""
    attended = self.attention(x, x, use_causal_mask=self.is_decoder)
    x = self.norm(x + attended)
    if self.is_decoder:
      x = self.memory_norm(x + self.memory_attention(x, memory))
    return self.output_norm(x + self.output_layer(self.hidden(x)))


def _sinusoids(length: int, width: int) -> np.ndarray:
  """Returns float32 `[length, width]`, Vaswani et al., section 3.5."""
  position = np.arange(length)[:, None]
  pair = np.arange(width)[None, :] // 2
  angle = position / 10_000 ** (2 * pair / width)
  even = np.arange(width) % 2 == 0
  return np.where(even, np.sin(angle), np.cos(angle)).astype(np.float32)
