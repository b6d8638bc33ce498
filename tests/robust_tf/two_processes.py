"""Trainings that a MirroredStrategy and two processes must agree on.

    python -m tests.robust_tf.two_processes DIRECTORY

is one process of two under `MultiWorkerMirroredStrategy`; it trains each case
and writes the variables that came out.
"""

import functools
import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustOptimizer
from robust_tf import ValidationLoss
from robust_tf import VectorizedWorkers
from robust_tf.attacks import Byzantine

NUM_PROCESSES = 2
NUM_STEPS = 4
BATCH = 8  # of both processes


def _sgd():
  return keras.optimizers.SGD(0.1, momentum=0.9)


def _largest(rows):
  return tf.reduce_max(rows, axis=0)


def _held_out():
  x, y = draw(7, 6)
  return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)


# By name: what makes the optimizer for a model, and the workers per replica.
CASES = {
  "accumulating": (
    lambda model: RobustOptimizer(
      _sgd(),
      _largest,
      gradient_accumulation_steps=2,
      clipvalue=0.3,
    ),
    None,
  ),
  "short_batches": (
    lambda model: RobustOptimizer(_sgd(), aggregators.median),
    None,
  ),
  "vectorized": (
    lambda model: RobustOptimizer(
      _sgd(),
      aggregators.median,
      workers_per_replica=2,
      byzantine=Byzantine((2,), attacks.gaussian, seed=5),
    ),
    2,
  ),
  "zeno": (
    lambda model: RobustOptimizer(
      _sgd(),
      functools.partial(aggregators.zeno, num_suspected=1),
      validation_loss=ValidationLoss(model, "mse", _held_out()),
    ),
    None,
  ),
}


def draw(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns points [size, 3] and what to make of them [size, 2]."""
  random = np.random.default_rng(seed)
  x = random.normal(size=(size, 3)).astype(np.float32)
  return x, (x[:, :2] - 0.5 * x[:, 1:]).astype(np.float32)


def train(case: str, strategy, dataset) -> list[np.ndarray]:
  """Returns a model's weights after an epoch of the dataset."""
  make_optimizer, workers = CASES[case]
  with strategy.scope():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
      [
        keras.layers.Input((3,)),
        keras.layers.Dense(4, activation="tanh"),
        keras.layers.Dense(2),
      ]
    )
    trained = model if workers is None else VectorizedWorkers(model, workers)
    trained.compile(make_optimizer(model), "mse")
  trained.fit(dataset, shuffle=False, verbose=0)
  return model.get_weights()


def _own_batches(strategy, process: int):
  """Returns this process's part of every batch."""
  parts = [
    part.reshape(NUM_STEPS, NUM_PROCESSES, BATCH // NUM_PROCESSES, -1)
    for part in draw(0, NUM_STEPS * BATCH)
  ]
  dataset = tf.data.Dataset.from_tensor_slices(
    tuple(part[:, process] for part in parts)
  )
  return strategy.distribute_datasets_from_function(lambda context: dataset)


def batches(case: str) -> tf.data.Dataset:
  """Returns the batches of a case, each of both processes."""
  if case != "short_batches":
    return tf.data.Dataset.from_tensor_slices(draw(0, NUM_STEPS * BATCH)).batch(
      BATCH
    )
  # The last batch has an example for one of two workers.
  dataset = tf.data.Dataset.from_tensor_slices(draw(0, 9)).batch(4)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
  )
  return dataset.with_options(options)


def main(directory: str) -> None:
  """Trains every case as one process of two."""
  process = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  for case in CASES:
    dataset = (
      batches(case)
      if case == "short_batches"
      else _own_batches(strategy, process)
    )
    weights = train(case, strategy, dataset)
    np.savez(pathlib.Path(directory) / f"{case}_{process}.npz", *weights)


if __name__ == "__main__":
  main(*sys.argv[1:])
