"""The experiment with slow links: its flags, its runs; that nothing is left.

Skipped, with the system's reason, where namespaces are not allowed.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.tiers import first_fast
from tools import network_namespaces
from tools.slow_link_methods import METHODS

ROOT = pathlib.Path(__file__).parents[2]
NOT_ALLOWED = 77
SMALL = ("--hidden=32", "--batch_size=4", "--mbit=100")


def start(*flags, **environment):
  """Starts the program."""
  return subprocess.Popen(
    [sys.executable, "-m", "tools.slow_links", *flags],
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*flags, **environment):
  """Runs the program; returns its exit code and what it wrote."""
  with start(*flags, **environment) as process:
    output, errors = process.communicate(timeout=300)
  assert not left_by(process)
  return process.returncode, output, errors


def left_by(process):
  """Returns the namespaces of a process."""
  names = network_namespaces.existing()
  return [x for x in names if x.startswith(f"slow-links-{process.pid}-")]


@pytest.fixture
def allowed():
  """Skips a test that needs namespaces where there can be none."""
  try:
    with network_namespaces.star(2):
      pass
  except network_namespaces.NotAllowedError as error:
    pytest.skip(f"network namespaces are not allowed here: {error}")


@pytest.mark.parametrize(
  ("flag", "message"),
  first_fast(
    (
      "--workers=1",
      "flag --workers=1: 1 is not an integer in the range [2, 4]",
    ),
    (
      "--workers=5",
      "flag --workers=5: 5 is not an integer in the range [2, 4]",
    ),
    ("--mbit=0", "--mbit=0 must be positive and finite"),
    ("--mbit=-20", "--mbit=-20 must be positive and finite"),
    ("--mbit=inf", "--mbit=inf must be positive and finite"),
    ("--methods=sgd", "flag --methods=sgd: value should be one of"),
    ("--learning_rate=0", "--learning_rate=0 must be positive"),
    ("--steps=1", "flag --steps=1: 1 is not integer >= 2"),
    (
      "--data=none.npz",
      "no such data: 'none.npz' is neither a file nor one of",
    ),
    ("--picture=a.png", "--picture=a.png must end in .svg"),
    ("--batch_size=800", "--batch_size=800 must be at most 718"),
  ),
)
def test_bad_flag_is_one_line_and_makes_no_network(flag, message):
  code, output, errors = run(flag, PATH="")
  assert code == 1
  assert message in errors
  assert "Traceback" not in errors
  assert not output


def test_system_without_namespaces_is_one_line_and_77(tmp_path):
  fake = tmp_path / "ip"
  fake.write_text(
    '#!/bin/sh\n[ "$2" = list ] && exit 0\n'
    'echo "mount failed: Operation not permitted" >&2\nexit 1\n'
  )
  fake.chmod(0o755)
  code, output, errors = run(*SMALL, PATH=f"{tmp_path}:/bin")
  assert code == NOT_ALLOWED
  assert not output
  (line,) = errors.splitlines()
  assert line.startswith("slow_links: network namespaces are not allowed here:")
  assert line.endswith("Operation not permitted")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("num_workers", "methods"), [(2, list(METHODS)), (3, ["sync_sgd", "cser"])]
)
def test_methods_train_on_slow_links(num_workers, methods, allowed, tmp_path):
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / "data.npz",
    x_train=rng.normal(size=(40, 5)),
    y_train=np.arange(40) % 2,
    x_test=rng.normal(size=(10, 5)),
    y_test=np.arange(10) % 2,
  )
  code, output, errors = run(
    *SMALL,
    *(f"--methods={name}" for name in methods),
    f"--workers={num_workers}",
    f"--data={tmp_path / 'data.npz'}",
    "--steps=9",
    "--target_loss=0",
    f"--json={tmp_path / 'results.json'}",
    f"--picture={tmp_path / 'picture.svg'}",
  )
  assert code == 0, errors
  content = json.loads((tmp_path / "results.json").read_text())
  measurements = content["measurements"]
  assert [(x["method"], x["rate"]) for x in measurements] == [
    (name, rate) for rate in (None, 100e6) for name in methods
  ]
  for measurement in measurements:
    assert measurement["num_parameters"] == 5 * 32 + 32 + 32 * 2 + 2
    steps = [step for step, _, _ in measurement["curve"]]
    assert steps == [1, 2, 4, 6, 8, 9]
    assert measurement["step_s"] > 0 < measurement["compute_s"]
    assert measurement["sent_bytes"] > (measurement["counted_bytes"] or 0)
  # The link changes how long it takes, and nothing else.
  count = len(methods)
  for unshaped, shaped in zip(
    measurements[:count], measurements[count:], strict=True
  ):
    losses = [[loss for *_, loss in x["curve"]] for x in (unshaped, shaped)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
  assert "links: 100 Mbit/s (plain TCP:" in output
  assert "<svg" in (tmp_path / "picture.svg").read_text()


@pytest.mark.slow
def test_run_ends_at_its_target(allowed, tmp_path):
  code, _, errors = run(
    *SMALL,
    "--methods=sync_sgd",
    "--steps=40",
    "--target_loss=1.5",
    f"--json={tmp_path / 'results.json'}",
  )
  assert code == 0, errors
  content = json.loads((tmp_path / "results.json").read_text())
  unshaped, shaped = content["measurements"]
  # Ten classes: 2.3 is where training begins.
  assert unshaped["curve"][-1][0] == 40
  *before, last = shaped["curve"]
  assert last[-1] <= 1.5 < min(loss for *_, loss in before)
  assert last[0] == shaped["steps_to_target"] == unshaped["steps_to_target"]
  assert shaped["speed_up"] == 1


def test_workers_that_take_too_long_are_ended(allowed):
  code, output, errors = run(*SMALL, "--timeout_s=1")
  assert code == 124
  assert "not done after 1 s" in errors
  assert not output


def test_failing_worker_ends_all_and_is_shown(allowed):
  code, output, errors = run(*SMALL, KERAS_BACKEND="unheard_of")
  assert code == 1
  assert "failed with exit code 1" in errors
  assert "unheard_of" in errors
  assert not output


# The probe runs first; after its last line the training does.
@pytest.mark.parametrize("while_training", [False, True])
@pytest.mark.parametrize("impatient", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_program_leaves_nothing(
  number, impatient, while_training, allowed
):
  with start(*SMALL, "--mbit=500") as process:
    if while_training:
      for line in process.stderr:
        if line.startswith("500 Mbit/s: "):
          break
    deadline = time.monotonic() + 60
    while not (pids := workers_of(process)):
      assert time.monotonic() < deadline
      time.sleep(0.05)
    process.send_signal(number)
    if impatient:
      time.sleep(0.02)
      process.send_signal(number)
    process.communicate(timeout=60)
  # Python itself ends by a signal that comes when the program has ended.
  assert process.returncode in (128 + number, -number)
  assert not left_by(process)
  assert not [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]


def workers_of(process):
  """Returns the processes in a run's hosts."""
  pids = []
  for name in left_by(process):
    result = subprocess.run(
      ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    )
    pids += result.stdout.split()
  return pids
