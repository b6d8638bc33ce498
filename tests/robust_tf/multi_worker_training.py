"""One process of a multi-worker training run, with one that lies.

    python -m tests.robust_tf.multi_worker_training DIRECTORY RULE...

Trains a model with each rule under `MultiWorkerMirroredStrategy`, and writes
what its variables were after each step; then one by all that Keras offers.
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
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.optimizers.robust import RobustOptimizer
from tests.robust_tf import multi_worker_problem as problem


def second_of_each(updates):
  """Returns the second smallest value of each coordinate."""
  return tf.sort(updates, axis=0)[1]


RULES = {
  "mean": aggregators.mean,
  "median": aggregators.median,
  "phocas": functools.partial(aggregators.phocas, trim=1),
  "geometric_median": aggregators.geometric_median,
  "krum": functools.partial(aggregators.krum, num_byzantine=0),
  "of_a_user": second_of_each,
}


class Trajectory(keras.callbacks.Callback):
  """Keeps the variables of every step."""

  def __init__(self):
    super().__init__()
    self.steps = []

  def on_train_batch_end(self, batch, logs=None):
    weights = self.model.get_weights()
    self.steps.append(np.concatenate([x.ravel() for x in weights]))


def make_model(liar: bool, optimizer) -> keras.Model:
  """Returns the model; a liar's loss is not what it should be."""

  def lie(labels, logits):
    values = keras.losses.sparse_categorical_crossentropy(
      labels, logits, from_logits=True
    )
    return problem.LIE * values

  model = keras.Sequential(
    [
      keras.layers.Dense(8, activation="tanh"),
      keras.layers.Dense(problem.NUM_CLASSES),
    ]
  )
  honest = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(
    optimizer=optimizer, loss=lie if liar else honest, metrics=["accuracy"]
  )
  return model


def train(
  strategy, index: int, rule: str, *, lies: bool
) -> dict[str, np.ndarray]:
  """Returns the variables of each step.

  Args:
    strategy: that of all processes.
    index: of this process.
    rule: its name.
    lies: one process really lies; if not, an attack says that it does.
  """
  data = tf.data.Dataset.from_tensor_slices(problem.worker_data(index))
  attack = Byzantine(
    (problem.LIAR,), functools.partial(attacks.sign_flip, scale=-problem.LIE)
  )
  with strategy.scope():
    optimizer = RobustOptimizer(
      keras.optimizers.SGD(problem.LEARNING_RATE),
      RULES[rule],
      byzantine=None if lies else attack,
    )
    model = make_model(lies and index == problem.LIAR, optimizer)
    model.build((None, 6))
    model.set_weights(problem.initial_variables())
  trajectory = Trajectory()
  model.fit(
    strategy.distribute_datasets_from_function(lambda context: data),
    epochs=problem.NUM_STEPS // problem.STEPS_PER_EPOCH,
    steps_per_epoch=problem.STEPS_PER_EPOCH,
    callbacks=[trajectory],
    shuffle=False,
    verbose=0,
  )
  return {"variables": np.stack(trajectory.steps)}


def use_all_of_keras(strategy) -> dict[str, np.ndarray]:
  """Returns what `fit`, `evaluate` and `predict` say, of arrays.

  The model is not built before, as users leave it.
  """
  points, labels = problem.draw(2, 96)
  with strategy.scope():
    optimizer = RobustOptimizer(
      keras.optimizers.SGD(problem.LEARNING_RATE), aggregators.median
    )
    model = make_model(False, optimizer)
  history = model.fit(
    points,
    labels,
    batch_size=24,
    epochs=3,
    validation_data=(points, labels),
    verbose=0,
  )
  loss, accuracy = model.evaluate(points, labels, batch_size=24, verbose=0)
  variables = [x.ravel() for x in model.get_weights()]
  return {
    "variables": np.concatenate(variables),
    "validation_loss": history.history["val_loss"][-1],
    "loss": loss,
    "accuracy": accuracy,
    "logits": model.predict(points, batch_size=24, verbose=0),
  }


def main(directory: str, *rules: str) -> None:
  """Trains with each rule; writes NAME_INDEX.npz."""
  index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  results = {rule: train(strategy, index, rule, lies=True) for rule in rules}
  results["attack"] = train(strategy, index, "median", lies=False)
  results["keras"] = use_all_of_keras(strategy)
  for name, arrays in results.items():
    np.savez(pathlib.Path(directory) / f"{name}_{index}.npz", **arrays)


if __name__ == "__main__":
  main(*sys.argv[1:])
