"""Programs that `tools.benchmarks.plans` runs on a host, pinned to its core."""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from baechi_tf.runner.start import Host
from robust_tf.training import child_processes

BAECHI = (
  sys.executable,
  "-c",
  "from baechi_tf.cli.main import run; run()",
)
_ROOT = str(pathlib.Path(__file__).parents[2])
_TIMEOUT_S = 900.0
_TAIL_LINES = 10


class RunError(Exception):
  """A process failed; says which, and the last lines that it wrote."""


def on(host: Host) -> list[str]:
  """Returns what a command begins with that runs on a host."""
  return [*host.prefix, *pinned(host.cores)]


def pinned(cores: Sequence[int]) -> list[str]:
  """Returns what a command begins with that may use some cores only."""
  return ["taskset", "--cpu-list", ",".join(map(str, cores))]


def output_of(command: Sequence[str]) -> str:
  """Returns what a command writes to its standard output.

  Raises:
    RunError: it fails or takes too long.
  """
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(
      command,
      env=environment(),
      cwd=_ROOT,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      start_new_session=True,
    )
    try:
      output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
      raise RunError(
        f"`{shlex.join(command)}` is not done after {_TIMEOUT_S:g} s"
      ) from None
    finally:
      child_processes.end([process])
    if process.returncode:
      errors.seek(0)
      lines = "\n".join(errors.read().splitlines()[-_TAIL_LINES:])
      raise RunError(
        f"`{shlex.join(command)}` ended with {process.returncode}; its last"
        f" lines:\n{lines}"
      )
  return output


def environment() -> dict[str, str]:
  """Returns the variables of every process: no GPU, no proxy between them."""
  return {
    **child_processes.peer_environment(os.environ),
    "PYTHONPATH": _ROOT,
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
