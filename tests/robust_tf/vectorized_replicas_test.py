"""Workers on one device give the numbers of as many replicas, and of NumPy."""

import functools

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip
import keras

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf.attacks import Byzantine
from tests.robust_tf.four_workers import BATCH
from tests.robust_tf.four_workers import check_same
from tests.robust_tf.four_workers import data
from tests.robust_tf.four_workers import fit
from tests.robust_tf.four_workers import linear
from tests.robust_tf.four_workers import NUM_STEPS
from tests.tiers import first_fast


@pytest.mark.parametrize(
  ("aggregator", "byzantine"),
  first_fast(
    (
      aggregators.median,
      Byzantine((2,), functools.partial(attacks.inner_product, epsilon=5.0), 2),
    ),
    (functools.partial(aggregators.trimmed_mean, trim=1), None),
    (functools.partial(aggregators.krum, num_byzantine=0), None),
  ),
)
def test_four_workers_are_four_replicas(aggregator, byzantine):
  real = fit(aggregator, 4, None, byzantine=byzantine)
  check_same(fit(aggregator, None, 4, byzantine=byzantine), real)


def test_workers_of_two_replicas_are_four_replicas():
  check_same(fit(aggregators.median, 2, 2), fit(aggregators.median, 4, None))


@pytest.mark.parametrize(
  "weights",
  [
    {"sample_weight": np.linspace(0, 2, NUM_STEPS * BATCH)},
    {"class_weight": {0: 0.5, 1: 1.0, 2: 3.0}},
  ],
)
def test_weights_of_samples_are_the_workers_own(weights):
  real = fit(aggregators.median, 4, None, **weights)
  check_same(fit(aggregators.median, None, 4, **weights), real)


@pytest.mark.parametrize("layout", [(None, 4), (4, None)])
def test_training_equals_a_replay_in_numpy(layout):
  model, history = fit(
    functools.partial(aggregators.trimmed_mean, trim=1), *layout, linear
  )
  keras.utils.set_random_seed(3)
  kernel = linear().get_weights()[0].astype(np.float64)
  momentum = np.zeros_like(kernel)
  x, y = data()
  losses = []
  for step in range(NUM_STEPS):
    gradients = []
    for worker in range(4):
      first = step * BATCH + worker * BATCH // 4
      rows = slice(first, first + BATCH // 4)
      exponentials = np.exp(x[rows].astype(np.float64) @ kernel)
      errors = exponentials / exponentials.sum(axis=1, keepdims=True)
      losses.append(-np.log(errors[np.arange(BATCH // 4), y[rows]]).mean())
      errors[np.arange(BATCH // 4), y[rows]] -= 1
      gradients.append(x[rows].T @ errors / (BATCH // 4))
    aggregate = np.sort(gradients, axis=0)[1:-1].mean(axis=0)
    momentum = 0.9 * momentum - 0.1 * aggregate
    kernel = kernel + momentum
  np.testing.assert_allclose(model.get_weights()[0], kernel, atol=1e-6)
  np.testing.assert_allclose(history["loss"], [np.mean(losses)], rtol=1e-5)
