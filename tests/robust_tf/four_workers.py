"""Trainings of a small network on four workers, laid out in any way."""

import keras
import numpy as np

from robust_tf import RobustOptimizer
from robust_tf import VectorizedWorkers
from tests.robust_tf import replicas

NUM_STEPS = 4
BATCH = 16


def data(seed=0, classes=3):
  random = np.random.default_rng(seed)
  x = random.normal(size=(NUM_STEPS * BATCH, 5)).astype(np.float32)
  return x, random.integers(classes, size=len(x))


def network():
  """Returns a network with all that workers could disagree about."""
  return keras.Sequential(
    [
      keras.layers.Input((5,)),
      keras.layers.Dense(6, activation="tanh", kernel_regularizer="l2"),
      keras.layers.BatchNormalization(momentum=0.5),
      keras.layers.Dropout(0.3, seed=7),
      keras.layers.ActivityRegularization(l2=0.01),
      keras.layers.Dense(3),
    ]
  )


def cross_entropy():
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(
  aggregator,
  num_replicas,
  rows,
  build=network,
  byzantine=None,
  unroll=None,
  **kwargs,
):
  """Returns a model trained on four workers, and what `fit` logged."""
  strategy = None if num_replicas is None else replicas.mirrored(num_replicas)
  with replicas.scope(strategy):
    keras.utils.set_random_seed(3)
    model = build()
    trained = (
      model if rows is None else VectorizedWorkers(model, rows, unroll=unroll)
    )
    trained.compile(
      RobustOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9),
        aggregator,
        byzantine=byzantine,
        workers_per_replica=rows,
      ),
      cross_entropy(),
      metrics=["accuracy"],
      weighted_metrics=["accuracy"],
    )
  x, y = data()
  history = trained.fit(
    x, y, batch_size=BATCH, shuffle=False, verbose=0, **kwargs
  )
  return model, history.history


def mean_values(model):
  """Returns the weights; the mean over replicas where these differ."""
  return [
    np.mean([v.numpy() for v in getattr(w.value, "values", [w.value])], axis=0)
    for w in model.weights
    if "seed_generator" not in w.path
  ]


def check_same(run, other, tolerance=1e-6):
  for value, expected in zip(
    mean_values(run[0]), mean_values(other[0]), strict=True
  ):
    np.testing.assert_allclose(value, expected, atol=tolerance)
  assert run[1].keys() == other[1].keys()
  for name, values in other[1].items():
    np.testing.assert_allclose(run[1][name], values, atol=1e-5)


def linear():
  return keras.Sequential(
    [keras.layers.Input((5,)), keras.layers.Dense(3, use_bias=False)]
  )
