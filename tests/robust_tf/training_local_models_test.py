"""The training job with optimizers whose workers send little."""

import json
import pathlib

import keras
import numpy as np
import pytest

from robust_tf.training import output
from robust_tf.training.main import main
from tests.robust_tf.training_resume_test import cluster
from tests.robust_tf.training_resume_test import kill_after
from tests.robust_tf.training_resume_test import result
from tests.robust_tf.training_resume_test import run
from tests.tiers import tiers

# NumPy 2 asks for an argument of __array__ that TensorFlow 2.21 does not take,
# where Keras writes a model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
SMALL = ("--workers=4", "--batch_size=8", "--evaluate_every=10", "--steps=20")
CSER = (
  "--optimizer=cser",
  "--reset_compressor=top_k:4",
  "--gradient_compressor=grbs:8",
  "--sync_period=3",
  "--learning_rate=0.05",
)


def train(folder, *argv):
  """Runs the command; returns what it wrote, and the weights it ended with."""
  assert main([*SMALL, *argv, f"--output={folder}"]) == 0
  path = pathlib.Path(folder)
  found = json.loads((path / output.RESULT).read_text())
  return found, keras.models.load_model(path / output.MODEL).get_weights()


def assert_close(weights, others, atol):
  for mine, other in zip(weights, others, strict=True):
    np.testing.assert_allclose(mine, other, rtol=0, atol=atol)


OPTIMIZERS = {
  "cser": CSER,
  "qsparse": ("--optimizer=qsparse_local_sgd", "--compressor=qsgd:7"),
  "adaalter": ("--optimizer=local_adaalter", "--sync_period=2"),
}


@pytest.mark.parametrize("name", tiers(OPTIMIZERS, ["cser"]))
def test_devices_do_not_change_the_numbers(tmp_path, name):
  argv = OPTIMIZERS[name]
  one, weights = train(tmp_path / "one", *argv)
  two, others = train(
    tmp_path / "two", *argv, "--strategy=mirrored", "--replicas=2"
  )
  # Sums over workers in another order, in float32.
  assert_close(weights, others, 1e-5)
  sent = [x["final"]["bytes_sent"] for x in (one, two)]
  assert sent[0] == sent[1] > 0


def test_all_sent_at_every_step_is_sgd_on_the_mean(tmp_path):
  argv = ("--optimizer=local_sgd", "--sync_period=1", "--momentum=0")
  found, weights = train(tmp_path / "local", *argv)
  _, others = train(tmp_path / "mean", "--optimizer=sgd")
  assert_close(weights, others, 1e-5)
  # A model a step.
  size = sum(x.size for x in weights)
  assert found["final"]["bytes_sent"] == 4 * size * 20
  assert found["final"]["compression_ratio"] == 1


def test_flipped_labels_can_be_sent_too(tmp_path):
  argv = ("--attack=label_flip", "--byzantine=0-2", "--optimizer=local_sgd")
  _, weights = train(tmp_path / "flipped", *argv)
  _, others = train(tmp_path / "honest", "--optimizer=local_sgd")
  assert any(np.any(x != y) for x, y in zip(weights, others, strict=True))


def test_compressor_that_does_not_fit_is_one_line(capsys):
  argv = ("--optimizer=csea", "--compressor=grbs:5000")
  assert main([*SMALL, *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith("robust-train: --compressor=grbs: num_blocks=1024")
  assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.process
def test_killed_run_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path):
  argv = (*SMALL[:2], *CSER, "--steps=200", "--evaluate_every=10")
  whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
  run(*argv, f"--output={whole}")
  kill_after(40, killed, *argv)
  run(*argv, f"--output={killed}")
  assert result(whole) == result(killed)


@pytest.mark.slow
@pytest.mark.process
def test_each_process_goes_on_from_what_its_workers_kept(tmp_path):
  argv = ("--workers=6", "--batch_size=8", *CSER, "--evaluate_every=20")
  argv += ("--strategy=multi_worker",)
  patient = "--heartbeat_timeout_s=60"
  for name, steps in (("whole", 60), ("parts", 40), ("parts", 60)):
    steps = f"--steps={steps}"
    done = cluster(tmp_path / name, tmp_path / "l", *argv, steps, patient)
    assert done.exit_code == 0, done.tail(done.failed or 0)
    if (name, steps) == ("parts", "--steps=40"):
      # One process cannot go on from its last checkpoint, so none does.
      kept = tmp_path / "parts" / output.CHECKPOINTS / "process_1"
      (kept / "ckpt-40.index").write_bytes(b"rubbish")
  assert "ckpt-40: file is too short" in done.output(1)
  assert "the run goes on from ckpt-20" in done.output(1)
  assert result(tmp_path / "whole") == result(tmp_path / "parts")
  run(*argv[:-1], "--steps=60", f"--output={tmp_path / 'one'}")
  weights = [
    keras.models.load_model(tmp_path / name / output.MODEL).get_weights()
    for name in ("one", "whole")
  ]
  assert_close(*weights, 1e-5)
