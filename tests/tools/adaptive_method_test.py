"""The methods with adaptive learning rates, beside their transcriptions."""

from tests.tensorflow_setup import tf  # isort: skip

import keras
import numpy as np
import pytest

from tests.robust_tf import local_oracles as oracles
from tests.robust_tf import local_training as training
from tests.robust_tf import multi_worker_problem as network
from tools.adaptive_method import AdaptiveMethod

NUM_WORKERS, NUM_STEPS = 4, 8
EPSILON = 0.01

CASES = {
  "Adagrad": (None, lambda x: oracles.adagrad(x, EPSILON, EPSILON)),
  "AdaAlter": (None, lambda x: oracles.adaalter(x, EPSILON, EPSILON)),
  "LocalAdaAlter": (
    3,
    lambda x: oracles.local_adaalter(x, EPSILON, EPSILON, 3),
  ),
  "NaiveLocalAdaGrad": (
    3,
    lambda x: oracles.naive_local_adagrad(x, EPSILON, EPSILON, 3),
  ),
}


def models_by_step(method, given):
  """Yields every worker's model, [n, d], after each step."""
  optimizer = method.make_optimizer(0.1, NUM_WORKERS)
  variables = [keras.Variable(x) for x in network.initial_variables()]
  optimizer.build(variables)
  for t in range(1, NUM_STEPS + 1):
    x = shown(optimizer, variables)
    by_worker = [
      network.unflatten(g) for g in given.gradients(x.astype(np.float64), t)
    ]
    optimizer.apply(
      [
        tf.constant(np.stack(of_variable), tf.float32)
        for of_variable in zip(*by_worker, strict=True)
      ],
      variables,
    )
    yield shown(optimizer, variables)


def shown(optimizer, variables):
  if hasattr(optimizer, "local_models"):
    return training.rows(optimizer.local_models())
  return training.rows([[v.numpy() for v in variables]] * NUM_WORKERS)


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_oracle(name):
  period, oracle = CASES[name]
  given = training.problem(NUM_WORKERS, NUM_STEPS, lambda step: 0.1)
  method = AdaptiveMethod("title", name, EPSILON, period)
  pairs = zip(models_by_step(method, given), oracle(given), strict=True)
  for models, expected in pairs:
    # Float32 beside float64, a few steps.
    np.testing.assert_allclose(models, expected["models"], atol=1e-5, rtol=0)


def test_local_adaalter_that_always_synchronises_is_adaalter():
  given = training.problem(NUM_WORKERS, NUM_STEPS, lambda step: 0.1)
  always = AdaptiveMethod("title", "LocalAdaAlter", EPSILON, 1)
  adaalter = AdaptiveMethod("title", "AdaAlter", EPSILON)
  for models, expected in zip(
    models_by_step(always, given), models_by_step(adaalter, given), strict=True
  ):
    np.testing.assert_allclose(models, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
  ("optimizer", "period", "ratio"),
  [
    ("Adagrad", None, 1),
    ("AdaAlter", None, 0.5),  # sends models and squares at every step
    ("LocalAdaAlter", 4, 2),
    ("LocalAdaAlter", 16, 8),
    ("NaiveLocalAdaGrad", 16, 16),
  ],
)
def test_compression_ratio_counts_vectors(optimizer, period, ratio):
  method = AdaptiveMethod("title", optimizer, EPSILON, period)
  assert method.compression_ratio == ratio
