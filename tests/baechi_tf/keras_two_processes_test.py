"""A placed Keras model in two processes on loopback."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from baechi_tf.cluster import read_cluster
from baechi_tf.keras_placement.checks import check_devices
from tests.baechi_tf import keras_two_processes
from tests.robust_tf.server_network import server_network

pytestmark = [pytest.mark.slow, pytest.mark.process]
# Sums in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """Where the client wrote what came out."""
  directory = tmp_path_factory.mktemp("keras_two_processes")
  with server_network() as prefix:
    subprocess.run(
      [
        *prefix, sys.executable, "-m", "tests.baechi_tf.keras_two_processes",
        str(directory),
      ],
      env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
      timeout=600,
      check=True,
    )  # fmt: skip
  return directory


@pytest.fixture(scope="module")
def facts(directory):
  """What the client found out."""
  return json.loads((directory / "facts.json").read_text())


def values(directory, name):
  return list(np.load(directory / f"{name}.npz").values())


def test_placed_model_gives_the_numbers_of_the_model(directory):
  whole = values(directory, "whole")
  placed = values(directory, "placed_1")
  # Predictions are rounded after ops that TensorFlow fuses on one device.
  np.testing.assert_allclose(placed.pop(3), whole[3], rtol=ROUNDING)
  for a, b in zip(placed, [*whole[:3], *whole[4:]], strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(values(directory, "placed_4"), whole, strict=True):
    np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("num", keras_two_processes.MICRO_BATCHES)
def test_ops_run_and_variables_live_in_both_processes(num, facts):
  assert facts[f"devices {num}"] == keras_two_processes.NAMES
  counts = facts[f"ops {num}"]
  assert counts["found"] > 100
  assert counts["right"] >= 0.99 * counts["found"]


def test_sums_of_gradients_are_not_merged(facts):
  assert facts["ops 4"]["merged"] == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_saved_file_loads_in_one_process(directory):
  loaded = keras.models.load_model(directory / "model.keras")
  for a, b in zip(
    loaded.get_weights(), values(directory, "saved"), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_missing_server_is_one_error(facts):
  kind, message = facts["no server"]
  assert kind == "ServerMissingError"
  assert message.startswith("/job:worker/task:1: no server answers at local")
  assert "baechi_tf.serve" in message


def test_lost_process_is_one_error(facts):
  kind, message = facts["killed"]
  assert kind == "ConnectionError"
  assert "/job:worker/task:1 does not answer any more" in message


def test_devices_of_a_process_that_is_not_connected_are_named(directory):
  with pytest.raises(ValueError, match=r"no device '/job:worker.*connect"):
    check_devices(read_cluster(directory / "cluster.toml"))
