"""Keras sees in several processes what it sees in one: the mean model."""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import numpy as np
import pytest

from tests.robust_tf import local_models_two_processes as processes
from tests.robust_tf import mirrored_fits
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.server_network import run_in_processes

pytestmark = pytest.mark.slow

# Float32, whose sums are in another order, after a few steps.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  """What came of an optimizer in each process."""
  directory = tmp_path_factory.mktemp("local_models")
  run_in_processes(
    "tests.robust_tf.local_models_two_processes",
    processes.NUM_PROCESSES,
    directory,
  )
  return lambda name: [
    np.load(directory / f"{name}_{process}.npz")
    for process in range(processes.NUM_PROCESSES)
  ]


@pytest.fixture(scope="module")
def expected():
  """What two replicas of one process come to, with each optimizer."""

  def train(name):
    model = mirrored_fits.compiled(OPTIMIZERS[name], num_replicas=2)
    history = mirrored_fits.fit(
      model, epochs=2, validation_data=mirrored_fits.data(7)
    ).history
    return model, history

  return {name: train(name) for name in processes.NAMES}


@pytest.mark.parametrize("name", processes.NAMES)
def test_processes_agree_with_replicas(name, results, expected):
  model, history = expected[name]
  models = [processes.flat(own) for own in model.optimizer.local_models()]
  for found, own in zip(results(name), models, strict=True):
    np.testing.assert_allclose(found["model"], own, atol=ROUNDING)
    np.testing.assert_allclose(
      found["weights"], processes.flat(model.get_weights()), atol=ROUNDING
    )
    np.testing.assert_allclose(
      found["val_loss"], history["val_loss"], rtol=ROUNDING
    )


@pytest.mark.parametrize("name", processes.NAMES)
def test_processes_see_one_mean_of_models_that_differ(name, results):
  first, second = results(name)
  assert np.abs(first["model"] - second["model"]).max() > 0.01
  mean = (first["model"] + second["model"]) / 2
  np.testing.assert_allclose(first["weights"], mean, atol=1e-6)
  for key in "weights", "val_loss", "loss":
    np.testing.assert_array_equal(first[key], second[key])
  np.testing.assert_allclose(first["loss"], first["val_loss"][-1], rtol=1e-6)


@pytest.mark.parametrize("name", processes.NAMES)
def test_each_process_resumes_exactly_from_its_file(name, results):
  for found in results(name):
    for key in "weights", "model":
      np.testing.assert_array_equal(found[f"resumed_{key}"], found[key])
