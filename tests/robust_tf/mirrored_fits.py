"""Trainings of a small network on four replicas with RobustOptimizer."""

import functools

import keras
import numpy as np

from robust_tf import aggregators
from robust_tf import RobustOptimizer
from tests.robust_tf import replicas

NUM_STEPS = 4
BATCH = 8
TRIMMED = functools.partial(aggregators.trimmed_mean, trim=1)


def data(seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(NUM_STEPS * BATCH, 3)).astype(np.float32)
  return x, (x[:, :2] - 0.5 * x[:, 1:]).astype(np.float32)


def network():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(4, activation="tanh"),
      keras.layers.Dense(2),
    ]
  )


def compiled(make_optimizer, build=network, num_replicas=4, **kwargs):
  """Returns a model made and compiled in a strategy's scope."""
  with replicas.mirrored(num_replicas).scope():
    keras.utils.set_random_seed(5)
    model = build()
    model.compile(make_optimizer(), "mse", **kwargs)
  return model


def robust(make_inner, aggregator=TRIMMED, **kwargs):
  return lambda: RobustOptimizer(make_inner(), aggregator, **kwargs)


def fit(model, epochs=1, x_and_y=None, **kwargs):
  x, y = x_and_y or data()
  return model.fit(
    x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **kwargs
  )


def assert_equal(model, other):
  for value, expected in zip(
    model.get_weights(), other.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(value, expected)


def assert_close(model, other, tolerance=1e-6):
  for value, expected in zip(
    model.get_weights(), other.get_weights(), strict=True
  ):
    np.testing.assert_allclose(value, expected, atol=tolerance)


def replicas_agree(model):
  for variable in model.trainable_variables:
    for replica in variable.value.values:
      np.testing.assert_array_equal(replica, variable.value.values[0])


def adam():
  return keras.optimizers.Adam(
    keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9),
    weight_decay=0.01,
    use_ema=True,
    ema_momentum=0.5,
  )


def sgd():
  return keras.optimizers.SGD(0.1)
