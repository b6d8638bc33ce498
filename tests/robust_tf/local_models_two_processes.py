"""Two processes whose workers have models of their own, in Keras' hands.

    python -m tests.robust_tf.local_models_two_processes DIRECTORY

is one process of two under `MultiWorkerMirroredStrategy`. With each optimizer
it trains, evaluates and saves, and resumes from its own file; what came out is
written as arrays.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.robust_tf.local_fits import NUM_STEPS
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.mirrored_fits import BATCH
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import network

NUM_PROCESSES = 2
NAMES = ("cser", "local_sgd")


def parts(process: int, seed: int):
  """Returns a process' part of every batch."""
  arrays = [
    array.reshape(NUM_STEPS, NUM_PROCESSES, BATCH // NUM_PROCESSES, -1)
    for array in data(seed)
  ]
  return tf.data.Dataset.from_tensor_slices(
    tuple(array[:, process] for array in arrays)
  )


def flat(arrays) -> np.ndarray:
  """Returns arrays as one vector."""
  return np.concatenate([np.ravel(array) for array in arrays])


def compiled(name: str, strategy) -> keras.Model:
  """Returns a network with the optimizer of that name."""
  with strategy.scope():
    keras.utils.set_random_seed(5)
    model = network()
    model.compile(OPTIMIZERS[name](), "mse")
  return model


def fit(model, train, held_out, epochs: int, **kwargs):
  """Trains, and validates after each epoch; returns the history."""
  return model.fit(
    train,
    epochs=epochs,
    steps_per_epoch=NUM_STEPS,
    validation_data=held_out,
    validation_steps=NUM_STEPS,
    shuffle=False,
    verbose=0,
    **kwargs,
  ).history


def train(name: str, strategy, process: int, directory) -> dict:
  """Returns what came of an optimizer."""

  def distributed(seed):
    return strategy.distribute_datasets_from_function(
      lambda context: parts(process, seed).repeat()
    )

  model = compiled(name, strategy)
  file = f"{directory}/{name}_{process}_{{epoch}}.keras"
  history = fit(
    model,
    distributed(0),
    distributed(7),
    2,
    callbacks=[keras.callbacks.ModelCheckpoint(file)],
  )
  results = {
    "weights": flat(model.get_weights()),
    "model": flat(model.optimizer.local_models()[0]),
    "val_loss": np.array(history["val_loss"]),
    "loss": model.evaluate(distributed(7), steps=NUM_STEPS, verbose=0),
  }
  with strategy.scope():
    resumed = keras.models.load_model(file.format(epoch=1))
  fit(resumed, distributed(0), distributed(7), 1)
  results["resumed_weights"] = flat(resumed.get_weights())
  results["resumed_model"] = flat(resumed.optimizer.local_models()[0])
  return results


def main(directory: str) -> None:
  """Trains with each optimizer as one process of two."""
  process = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  for name in NAMES:
    np.savez(
      pathlib.Path(directory) / f"{name}_{process}.npz",
      **train(name, strategy, process, directory),
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
