"""The mean model's loss and accuracy against Keras-free arithmetic."""

import concurrent.futures

import numpy as np
import pytest

from robust_tf.training.data import Dataset
from tools.rendezvous import Rendezvous
from tools.slow_link_evaluation import MeanModel

SIZES = (6, 5, 4, 3)


def make_data(num_train, num_test):
  rng = np.random.default_rng(0)

  def draw(count):
    return (
      rng.normal(size=(count, SIZES[0])).astype(np.float32),
      rng.integers(SIZES[-1], size=count).astype(np.int32),
    )

  return Dataset(*draw(num_train), *draw(num_test), num_classes=SIZES[-1])


def make_weights(seed):
  rng = np.random.default_rng(seed)
  weights = []
  for inputs, outputs in zip(SIZES, SIZES[1:], strict=False):
    weights.append(rng.normal(size=(inputs, outputs)).astype(np.float32))
    weights.append(rng.normal(size=outputs).astype(np.float32))
  return weights


def logits_of(weights, x):
  """Returns the logits, an example at a time."""
  rows = []
  for h in np.asarray(x, np.float64):
    h = np.maximum(weights[0].T @ h + weights[1], 0)
    h = np.maximum(weights[2].T @ h + weights[3], 0)
    rows.append(weights[4].T @ h + weights[5])
  return np.stack(rows)


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("num_train", [7, 1100])
def test_all_workers_get_what_the_mean_model_gets(
  num_workers, num_train, tmp_path
):
  data = make_data(num_train, 11)
  rounds = 3

  def work(index):
    meeting = Rendezvous(str(tmp_path), index, num_workers)
    model = MeanModel(data, str(tmp_path), index, meeting)
    results = []
    for r in range(rounds):
      values = model.update(make_weights((index, r)), index + r)
      results.append((values, model.training_loss(), model.test_accuracy()))
    return results

  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    of_workers = list(pool.map(work, range(num_workers)))
  for r in range(rounds):
    models = [make_weights((i, r)) for i in range(num_workers)]
    layers = zip(*models, strict=True)
    mean = [np.mean(x, axis=0, dtype=np.float64) for x in layers]
    count = min(num_train, 1000)
    logits = logits_of(mean, data.x_train[:count])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right = shares[np.arange(count), data.y_train[:count]]
    guesses = logits_of(mean, data.x_test).argmax(axis=1)
    for results in of_workers:
      values, loss, accuracy = results[r]
      assert values == [i + r for i in range(num_workers)]
      # float32 products of sums of six values or less.
      np.testing.assert_allclose(loss, np.mean(-np.log(right)), rtol=1e-5)
      assert accuracy == np.mean(guesses == data.y_test)
