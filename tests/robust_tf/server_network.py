"""Where tests start TensorFlow's servers, which ask nobody for a password.

Others are kept out where the system allows it; elsewhere tests run all the
same.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.private_network import private_network
from tools import local_cluster

_ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def server_network() -> Iterator[tuple[str, ...]]:
  """Yields what a command begins with that starts servers."""
  with contextlib.ExitStack() as stack:
    try:
      prefix = stack.enter_context(private_network())
    except NotAllowedError:
      prefix = ()
    yield prefix


def local_cluster_flags() -> tuple[str, ...]:
  """Returns what `robust-train --local_cluster` needs here beside that."""
  try:
    with private_network():
      return ()
  except NotAllowedError:
    return ("--listen_on_network",)


def run_in_processes(
  module: str, num_processes: int, directory: pathlib.Path, *args: str
) -> None:
  """Runs a module of tests as the workers of one cluster.

  Args:
    module: its name; it is started as a program.
    num_processes: how many workers there are.
    directory: its first argument, where it writes its results.
    *args: its other arguments.

  Raises:
    AssertionError: a process failed; the message is the end of its log.
  """
  with server_network() as prefix:
    outcome = local_cluster.run(
      [*prefix, sys.executable, "-m", module, str(directory), *args],
      num_processes,
      log_directory=str(directory / "logs"),
      timeout_s=600,
      environment={
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": str(_ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
      },
    )
  assert outcome.exit_code == 0, outcome.tail(outcome.failed or 0)
