"""Gradients of an embedding's few rows do what dense ones would."""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import keras
import numpy as np
import pytest

from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_oracles as oracles
from tests.robust_tf import local_training as training
from tests.robust_tf import replicas

NUM_WORKERS, NUM_STEPS, BATCH = 4, 7, 8
WORDS, LENGTH, CLASSES = 24, 3, 4
# Float32 beside float64, a few steps.
TOLERANCE = 1e-5


def worker_data(worker):
  """Returns sentences of words that the other workers mostly do not have."""
  random = np.random.default_rng(20 + worker)
  words = random.integers(8, size=(NUM_STEPS, BATCH, LENGTH)) + 5 * worker
  # Some word is twice in a sentence, and the last one is in none.
  words[:, :, 0] = words[:, :, 1]
  return words % (WORDS - 1), words[:, :, 2] % CLASSES


def gradient(worker, x, step):
  """Returns the gradient of the mean cross entropy, [d], with zeros."""
  words, labels = (values[step] for values in worker_data(worker))
  counts = np.zeros((BATCH, WORDS))
  for sentence, row in zip(words, counts, strict=True):
    np.add.at(row, sentence, 1 / LENGTH)
  logits = counts @ x.reshape(WORDS, CLASSES)
  errors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  errors[np.arange(BATCH), labels] -= 1
  return (counts.T @ errors / BATCH).ravel()


@pytest.mark.parametrize("name", ["local_adaalter", "grbs"])
def test_embedding_equals_the_dense_oracle(name):
  case = cases.CASES[name]
  x0 = np.random.default_rng(0).normal(size=(WORDS, CLASSES))
  recorder = training.Recorder(case.states)
  with replicas.mirrored(NUM_WORKERS).scope():
    model = keras.Sequential(
      [
        keras.layers.Input((LENGTH,), dtype="int32"),
        keras.layers.Embedding(WORDS, CLASSES),
        keras.layers.GlobalAveragePooling1D(),
      ]
    )
    model.set_weights([x0])
    model.compile(
      case.make(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
  words, labels = (
    np.stack(values, axis=1)
    for values in zip(*map(worker_data, range(NUM_WORKERS)), strict=True)
  )
  model.fit(
    words.reshape(-1, LENGTH),
    labels.ravel(),
    batch_size=NUM_WORKERS * BATCH,
    shuffle=False,
    verbose=0,
    callbacks=[recorder],
  )
  problem = oracles.Problem(
    x0.astype(np.float32).ravel(), NUM_WORKERS, NUM_STEPS, gradient, case.rate
  )
  for seen, expected in zip(recorder.steps, case.expect(problem), strict=True):
    for state in seen:
      np.testing.assert_allclose(
        seen[state], expected[state], atol=TOLERANCE, err_msg=state
      )
