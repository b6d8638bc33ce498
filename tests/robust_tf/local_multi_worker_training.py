"""One process of a multi-worker training run with local models.

    python -m tests.robust_tf.local_multi_worker_training DIRECTORY CASE...

Trains under `MultiWorkerMirroredStrategy` with each optimizer, and writes what
this process' worker held after each step.
"""

import json
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf

from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_training as training
from tests.robust_tf import multi_worker_problem as network

NUM_STEPS = 12


def train(strategy, index: int, name: str) -> dict[str, np.ndarray]:
  """Returns every state of this worker, `[NUM_STEPS, d]` each."""
  data = tf.data.Dataset.from_tensor_slices(network.worker_data(index))
  case = cases.CASES[name]
  recorder = training.Recorder(case.states)
  with strategy.scope():
    model = training.compiled(case.make)
  model.fit(
    strategy.distribute_datasets_from_function(lambda context: data),
    steps_per_epoch=NUM_STEPS,
    callbacks=[recorder],
    shuffle=False,
    verbose=0,
  )
  states = {
    state: np.concatenate([step[state] for step in recorder.steps])
    for state in recorder.steps[0]
  }
  final = np.concatenate([x.ravel() for x in model.get_weights()])
  return {
    **states,
    "bytes_sent": np.array(recorder.bytes_sent),
    "final": final,
  }


def main(directory: str, *names: str) -> None:
  """Trains with each optimizer; writes NAME_INDEX.npz."""
  index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  for name in names:
    np.savez(
      pathlib.Path(directory) / f"{name}_{index}.npz",
      **train(strategy, index, name),
    )


if __name__ == "__main__":
  main(*sys.argv[1:])
