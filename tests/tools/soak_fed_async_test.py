"""A short run among faults loses nothing."""

import json
import os
import subprocess
import sys

import pytest

from robust_tf.training import child_processes

pytestmark = pytest.mark.slow


def test_short_run_ends_whole():
  ended = subprocess.run(
    [
      *(sys.executable, "-m", "tools.soak_fed_async"),
      *("--updates=400", "--fault_every=100", "--seed=2"),
    ],
    env=child_processes.peer_environment(os.environ),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
  report = json.loads(ended.stdout[ended.stdout.index("{\n") :])
  tasks = report["tasks"]
  assert report["updates"] == tasks["accepted"] == 400
  assert sum(report["faults"].values()) >= 1
  assert tasks["pushed twice"] == 0
  assert tasks["started"] == (
    tasks["accepted"]
    + tasks["refused"]
    + tasks["given up, and not pushed since"]
    + tasks["at work at the end"]
  )
