"""Small trainings on replicas with models of their own, for Keras' sake."""

import keras
import numpy as np

import robust_tf
from robust_tf.compressors import GRBS
from robust_tf.compressors import TopK
from tests.robust_tf import mirrored_fits

BATCH = mirrored_fits.BATCH
NUM_STEPS = mirrored_fits.NUM_STEPS  # in an epoch
GRADIENT = GRBS(8, num_blocks=8)
RESET = GRBS(4, num_blocks=8, seed=1)

# An epoch has 4 steps: with periods of 3 and 5 none ends with a common model.
OPTIMIZERS = {
  "cser": lambda **kwargs: robust_tf.CSER(
    0.1,
    sync_period=3,
    reset_compressor=TopK(4),
    gradient_compressor=GRADIENT,
    **kwargs,
  ),
  "local_sgd": lambda **kwargs: robust_tf.LocalSGD(
    0.1, sync_period=5, **kwargs
  ),
  "qsparse": lambda **kwargs: robust_tf.QSparseLocalSGD(
    0.1, sync_period=3, compressor=RESET, **kwargs
  ),
  "ef_sgd": lambda **kwargs: robust_tf.ErrorFeedbackSGD(
    0.1, compressor=TopK(4), **kwargs
  ),
  "local_adaalter": lambda **kwargs: robust_tf.LocalAdaAlter(
    0.5, sync_period=3, **kwargs
  ),
}


def optimizer_of(model):
  """Returns a model's optimizer, without a loss scale around it."""
  return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def snapshot(model) -> dict[str, list]:
  """Returns all that a training is made of, by name."""
  optimizer = optimizer_of(model)
  found = {
    "weights": model.get_weights(),
    "models": optimizer.local_models(),
    "bytes_sent": optimizer.bytes_sent,
    "iterations": optimizer.iterations.numpy(),
  }
  for name in optimizer.initial_state:
    found[name] = optimizer.local_state(name)
  return found


def assert_same(found, expected) -> None:
  """Asserts that two snapshots, or parts of them, are equal bit by bit."""
  keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


def mean_of_models(optimizer) -> list[np.ndarray]:
  """Returns the mean of the workers' models, in float64."""
  return [
    np.mean(of_variable, axis=0, dtype=np.float64)
    for of_variable in zip(*optimizer.local_models(), strict=True)
  ]


def spread(optimizer) -> float:
  """Returns how far the workers' models are from each other."""
  return max(
    np.ptp(of_variable, axis=0).max()
    for of_variable in zip(*optimizer.local_models(), strict=True)
  )
