"""The training steps whose plans `tools.benchmarks.plans` runs for real.

Each is a whole Keras step, which ends in Keras' own `optimizer.apply`, and
takes 30 to 200 ms on one core: small enough that all plans of a model run in a
minute or two, large enough that ops and not the runtime make up the step.
"""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tools import benchmark_models
from tools import training_step
from tools.benchmark_models import Benchmark
from tools.benchmark_models import GnmtSizes
from tools.benchmark_models import TransformerSizes
from tools.training_step import TrainingStep

SIGNATURE = "train"

# A model's name -> the Keras optimizer that its step ends in.
MODELS: Mapping[str, str] = {
  "towers": "sgd",
  "inception": "sgd",
  "transformer": "adam",
  "gnmt": "adam",
  "recommender": "sgd",
  "chain": "sgd",
  "tiny": "sgd",
  "wide_layers": "sgd",
}
# "tiny" is for the tool's own test: its step takes less than a millisecond.
# "wide_layers" needs more memory than a process of `plan_memory` may have.
BENCHMARKS = tuple(x for x in MODELS if x not in ("tiny", "wide_layers"))

_TRANSFORMER = TransformerSizes(
  batch=8, layers=1, width=192, heads=4, length=32, vocabulary=2000
)
_GNMT = GnmtSizes(batch=32, layers=2, width=192, length=6, vocabulary=2000)


def export(name: str, path: str) -> dict[str, np.ndarray]:
  """Writes a model's training step, with weights from a fixed seed.

  Args:
    name: a key of `MODELS`.
    path: where the SavedModel goes.

  Returns:
    A batch: a value for every input of the signature `SIGNATURE`.

  Raises:
    ValueError: the path exists.
  """
  benchmark = _build(name)
  training_step.export(TrainingStep(benchmark, MODELS[name]), path)
  return benchmark.example_batch(seed=0)


def _build(name: str) -> Benchmark:
  match name:
    case "transformer":
      return benchmark_models.build(_TRANSFORMER)
    case "gnmt":
      return benchmark_models.build(_GNMT)
  keras.utils.clear_session()
  keras.utils.set_random_seed(0)
  match name:
    case "towers":
      return towers(batch=256, num_towers=4, depth=6, width=768)
    case "inception":
      return inception(batch=32, image_size=28, num_modules=3)
    case "recommender":
      return recommender(batch=256, num_branches=8, rows=50_000, width=32)
    case "chain":
      return chain(batch=256, depth=12, width=512)
    case "wide_layers":
      return chain(batch=16, depth=48, width=2048)
    case _:
      return towers(batch=4, num_towers=2, depth=1, width=8)


def _benchmark(
  model: keras.Model, inputs: tf.TensorSpec, num_labels: int
) -> Benchmark:
  labels = tf.TensorSpec(inputs.shape[:1], tf.int32, "labels")
  return Benchmark(model, (inputs,), labels, num_labels)


def towers(batch: int, num_towers: int, depth: int, width: int) -> Benchmark:
  """Returns parallel towers of dense layers, joined by one of 10 units."""
  x = keras.Input((width,))
  outputs = []
  for _ in range(num_towers):
    y = x
    for _ in range(depth):
      y = layers.Dense(width, "relu")(y)
    outputs.append(y)
  logits = layers.Dense(10)(layers.concatenate(outputs))
  inputs = tf.TensorSpec((batch, width), tf.float32, "x")
  return _benchmark(keras.Model(x, logits), inputs, 10)


def chain(batch: int, depth: int, width: int) -> Benchmark:
  """Returns a multi-layer perceptron, in which each layer waits for another."""
  x = y = keras.Input((width,))
  for _ in range(depth):
    y = layers.Dense(width, "relu")(y)
  inputs = tf.TensorSpec((batch, width), tf.float32, "x")
  return _benchmark(keras.Model(x, layers.Dense(10)(y)), inputs, 10)


def inception(batch: int, image_size: int, num_modules: int) -> Benchmark:
  """Returns a small Inception.

  Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, Figure 2 (b),
  with batch normalisation after each convolution.
  """
  x = keras.Input((image_size, image_size, 3))
  y = _convolution(x, 32, 3)
  for _ in range(num_modules):
    pooled = layers.MaxPooling2D(3, strides=1, padding="same")(y)
    branches = [
      _convolution(y, 32, 1),
      _convolution(_convolution(y, 32, 1), 48, 3),
      _convolution(_convolution(y, 16, 1), 24, 5),
      _convolution(pooled, 24, 1),
    ]
    y = layers.concatenate(branches)
  y = layers.GlobalAveragePooling2D()(y)
  inputs = tf.TensorSpec((batch, image_size, image_size, 3), tf.float32, "x")
  return _benchmark(keras.Model(x, layers.Dense(10)(y)), inputs, 10)


def _convolution(x, filters: int, size: int):
  x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
  return layers.ReLU()(layers.BatchNormalization()(x))


def recommender(
  batch: int, num_branches: int, rows: int, width: int
) -> Benchmark:
  """Returns a wide recommender: a branch for each group of features.

  A branch embeds a bag of 8 features and runs three dense layers; the branches
  meet in two more, as in Cheng et al., "Wide & Deep Learning for Recommender
  Systems", DLRS 2016.
  """
  x = keras.Input((num_branches, 8), dtype="int32")
  branches = []
  for i in range(num_branches):
    y = layers.Flatten()(layers.Embedding(rows, width)(x[:, i]))
    for _ in range(3):
      y = layers.Dense(512, "relu")(y)
    branches.append(y)
  y = layers.Dense(256, "relu")(layers.concatenate(branches))
  inputs = tf.TensorSpec((batch, num_branches, 8), tf.int32, "x")
  return _benchmark(keras.Model(x, layers.Dense(2)(y)), inputs, 2)
