"""The loops that are timed do what they say."""

import os
import subprocess
import sys

import pytest

from robust_tf.training import child_processes

pytestmark = pytest.mark.slow


def test_table_has_a_line_for_each_number_of_workers():
  ended = subprocess.run(
    [
      *(sys.executable, "-m", "tools.bench_fed_async", "--workers=2"),
      *("--turns=1", "--updates=5"),
    ],
    env=child_processes.peer_environment(os.environ),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
  lines = [line for line in ended.stdout.splitlines() if "│" in line]
  assert len(lines) == 1
  workers, *numbers = (float(x) for x in lines[0].strip("│ ").split("│"))
  assert workers == 2
  assert all(x > 0 for x in numbers)
