"""A run that was stopped, killed even, ends as if it had not been."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from robust_tf.training import output
from tests.robust_tf.server_network import server_network
from tests.tensorflow_setup import tf
from tools import local_cluster

# Each run is a process of its own, with TensorFlow to load.
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (
  sys.executable,
  "-c",
  "from robust_tf.training.main import run; run()",
)
TIMEOUT_S = 300
RANDOM = (
  "--workers=6",
  "--batch_size=16",
  "--partition=dirichlet",
  "--dirichlet_alpha=1",
  "--aggregator=phocas",
  "--trim=2",
  "--attack=gaussian",
  "--byzantine=1,4",
  "--attack_start_step=30",
  "--optimizer=adam",
  "--learning_rate=0.01",
  "--decay_steps=50",
)
ZENO = (
  "--workers=6",
  "--batch_size=16",
  "--aggregator=zeno",
  "--num_suspected=4",
  "--attack=sign_flip",
  "--byzantine=0-3",
  "--optimizer=momentum",
  "--learning_rate=0.02",
)


def environment(**changes):
  return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def run(*argv):
  done = subprocess.run(
    [*COMMAND, *argv],
    env=environment(),
    capture_output=True,
    text=True,
    timeout=TIMEOUT_S,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done


def kill_after(step, folder, *argv):
  """Runs the command, and kills it as soon as a step is saved."""
  saved = os.path.join(folder, output.CHECKPOINTS, f"ckpt-{step}.index")
  deadline = time.monotonic() + TIMEOUT_S
  with subprocess.Popen(
    [*COMMAND, *argv, f"--output={folder}"],
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  ) as process:
    while not os.path.exists(saved):
      assert process.poll() is None, process.stderr.read().decode()
      assert time.monotonic() < deadline
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  assert not os.path.exists(os.path.join(folder, output.RESULT))


def result(folder):
  return (pathlib.Path(folder) / output.RESULT).read_bytes()


@pytest.mark.parametrize("argv", [RANDOM, ZENO], ids=["phocas", "zeno"])
def test_killed_run_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path, argv):
  argv = (*argv, "--steps=400", "--evaluate_every=10")
  whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
  run(*argv, f"--output={whole}")
  kill_after(20, killed, *argv)
  kill_after(150, killed, *argv)
  run(*argv, f"--output={killed}")
  # Evaluations, reports and a digest of the weights; nothing else is in it.
  assert result(whole) == result(killed)
  logged = [
    {
      (event.step, value.tag, value.tensor.SerializeToString())
      for log in (pathlib.Path(folder) / output.LOGS).iterdir()
      for event in tf.compat.v1.train.summary_iterator(str(log))
      for value in event.summary.value
    }
    for folder in (whole, killed)
  ]
  assert logged[0] == logged[1]


@pytest.mark.process
def test_run_killed_while_it_saves_goes_on(tmp_path):
  # It saves at every step, so most kills come while it does.
  argv = (*RANDOM, "--steps=60", "--evaluate_every=1")
  whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
  run(*argv, f"--output={whole}")
  for step in (3, 30):
    kill_after(step, killed, *argv)
  run(*argv, f"--output={killed}")
  assert result(whole) == result(killed)


def cluster(folder, logs, *argv):
  with server_network() as prefix:
    return local_cluster.run(
      [*prefix, *COMMAND, *argv, f"--output={folder}"],
      3,
      log_directory=str(logs),
      timeout_s=TIMEOUT_S,
      environment=environment(),
    )


def test_processes_give_the_numbers_of_one_and_resume(tmp_path):
  # Two workers in each process.
  argv = (*RANDOM, "--evaluate_every=20")
  run(*argv, "--steps=60", f"--output={tmp_path / 'one'}")
  argv = (*argv, "--strategy=multi_worker")
  for name, steps in (("whole", 60), ("parts", 40), ("parts", 60)):
    done = cluster(tmp_path / name, tmp_path / "l", *argv, f"--steps={steps}")
    assert done.exit_code == 0, done.tail(done.failed or 0)
    # The chief alone says what came of it; TensorFlow may log in any of them.
    told = [
      "phocas(trim=2) against gaussian" in done.output(i) for i in range(3)
    ]
    assert told == [True, False, False]
  assert result(tmp_path / "whole") == result(tmp_path / "parts")
  weights = [
    tf.keras.models.load_model(tmp_path / name / output.MODEL).get_weights()
    for name in ("one", "whole")
  ]
  for one, other in zip(*weights, strict=True):
    assert abs(one - other).max() < 1e-5
