r"""Runs a command in several processes that find each other on loopback.

Each process gets a TF_CONFIG with its own index and the ports of all, as
`tf.distribute.MultiWorkerMirroredStrategy` reads it, and no proxy between
itself and the others:

    python -m tools.local_cluster --workers=3 -- \
        robust-train --strategy=multi_worker --aggregator=median

They are in a network of their own, because TensorFlow's servers listen on
every interface and ask for no password; --listen_on_network leaves them in this
machine's.

Every line that a process writes is shown with its worker's number, and kept in
a file of its own. When one fails, or time is up, or on Ctrl-C, all are ended;
the last lines of the one that failed are shown again, and its exit code is
this command's.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

from absl import app
from absl import flags

from robust_tf.training import child_processes
from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.private_network import private_network
from robust_tf.training.uninterrupted import interrupt
from robust_tf.training.uninterrupted import uninterrupted

TIMED_OUT = 124  # what timeout(1) exits with

_POLL_S = 0.05


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a cluster ended.

  Attributes:
    exit_code: 0; or that of the worker that failed first, 128 + the signal if
      it was killed; or `TIMED_OUT`.
    failed: the worker that failed first, None if none did.
    logs: the path of each worker's output.
  """

  exit_code: int
  failed: int | None
  logs: tuple[str, ...]

  def output(self, worker: int) -> str:
    """Returns all that a worker wrote."""
    return child_processes.read_log(self.logs[worker])

  def tail(self, worker: int) -> str:
    """Returns the last lines that a worker wrote."""
    return child_processes.last_lines(self.logs[worker])


@dataclasses.dataclass(frozen=True)
class Host:
  """Where a process runs.

  Attributes:
    address: where the others find it, as host:port.
    prefix: what a command there begins with, such as `ip netns exec NAME`.
  """

  address: str
  prefix: tuple[str, ...] = ()


def run(
  command: Sequence[str],
  num_workers: int,
  *,
  log_directory: str,
  hosts: Sequence[Host] | None = None,
  timeout_s: float | None = None,
  environment: Mapping[str, str] | None = None,
  show: Callable[[str], None] = lambda line: None,
) -> Outcome:
  """Runs a command in `num_workers` processes, and ends them all.

  Args:
    command: the program and its arguments, the same for all.
    num_workers: how many processes.
    log_directory: made if it is not there; gets worker_0.log and so on.
    hosts: where each process runs; by default at free ports of this machine,
      in the network that the command runs in.
    timeout_s: after how long all are ended; None for never.
    environment: the variables of all, by default this process's.
    show: called with each line of output, with its worker's number in front.

  Returns:
    The `Outcome`. Whatever happens, no process is left.

  Raises:
    OSError: if the command cannot be run.
    ValueError: if `num_workers` is less than 1 or not the number of `hosts`,
      or the command is empty.
  """
  if num_workers < 1:
    raise ValueError(f"workers={num_workers} must be at least 1")
  if hosts is None:
    addresses = child_processes.free_addresses(num_workers)
    hosts = [Host(address) for address in addresses]
  if len(hosts) != num_workers:
    raise ValueError(
      f"workers={num_workers} needs as many hosts, not {len(hosts)}"
    )
  if not command:
    raise ValueError("no command: give it after --")
  os.makedirs(log_directory, exist_ok=True)
  logs = tuple(
    os.path.join(log_directory, f"worker_{i}.log") for i in range(num_workers)
  )
  environments = worker_environments(
    [host.address for host in hosts],
    os.environ if environment is None else environment,
  )
  deadline = None if timeout_s is None else time.monotonic() + timeout_s
  with contextlib.ExitStack() as readers:
    processes = []
    try:
      for i in range(num_workers):
        with uninterrupted():  # or nobody would know of a process
          process = child_processes.start(
            [*hosts[i].prefix, *command], environments[i]
          )
          processes.append(process)
        with contextlib.suppress(FileNotFoundError):
          os.remove(logs[i])
        child_processes.keep_output(
          process, logs[i], readers, functools.partial(_show, show, i)
        )
      failed, exit_code = _wait(processes, deadline)
    finally:
      with uninterrupted():
        child_processes.end(processes)
  return Outcome(exit_code, failed, logs)


def worker_environments(
  addresses: Sequence[str], environment: Mapping[str, str]
) -> list[dict[str, str]]:
  """Returns the variables of each process: TF_CONFIG and no proxies."""
  kept = child_processes.peer_environment(environment)
  return [
    {
      **kept,
      "TF_CONFIG": json.dumps(
        {
          "cluster": {"worker": list(addresses)},
          "task": {"type": "worker", "index": index},
        }
      ),
    }
    for index in range(len(addresses))
  ]


def _show(show: Callable[[str], None], index: int, line: str) -> None:
  show(f"[{index}] {line}")


def _wait(
  processes: Sequence[subprocess.Popen], deadline: float | None
) -> tuple[int | None, int]:
  """Waits for all to end well, or one badly; returns which and its code."""
  while True:
    codes = [child_processes.exit_code(process) for process in processes]
    for index, code in enumerate(codes):
      if code:
        return index, code
    if None not in codes:
      return None, 0
    if deadline is not None and time.monotonic() > deadline:
      return None, TIMED_OUT
    time.sleep(_POLL_S)


def _report(outcome: Outcome, timeout_s: float | None) -> None:
  """Says on stderr what went wrong, if something did."""
  if outcome.failed is not None:
    log = outcome.logs[outcome.failed]
    message = (
      f"worker {outcome.failed} failed with exit code {outcome.exit_code};"
      f" the end of {log}:\n{outcome.tail(outcome.failed)}"
    )
  elif outcome.exit_code == TIMED_OUT:
    message = (
      f"not done after --timeout_s={timeout_s:g}; the output is in"
      f" {os.path.dirname(outcome.logs[0])}"
    )
  else:
    return
  print(message, file=sys.stderr)


def main(argv: list[str]) -> int:
  """Runs the command that stands after `--`; returns its exit code."""
  values = flags.FLAGS
  # Being ended must end the workers too.
  signal.signal(signal.SIGTERM, interrupt)
  directory = values.logs or tempfile.mkdtemp(prefix="local_cluster_")
  try:
    with contextlib.ExitStack() as stack:
      network = ()
      if not values.listen_on_network:
        network = stack.enter_context(private_network())
      outcome = run(
        [*network, *argv[1:]] if argv[1:] else [],
        values.workers,
        log_directory=directory,
        timeout_s=values.timeout_s,
        show=lambda line: print(line, flush=True),
      )
  except NotAllowedError as error:
    raise app.UsageError(
      f"{error}; without a network of their own the processes need"
      " --listen_on_network"
    ) from error
  except (OSError, ValueError) as error:
    raise app.UsageError(str(error)) from error
  except KeyboardInterrupt as stopped:
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
  _report(outcome, values.timeout_s)
  return outcome.exit_code


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_integer("workers", 2, "How many processes.", lower_bound=1)
  flags.DEFINE_string(
    "logs", None, "Where each one's output is kept; a new directory if unset."
  )
  flags.DEFINE_bool(
    "listen_on_network", False, "Whether other machines may reach them."
  )
  flags.DEFINE_float(
    "timeout_s", None, "After how many seconds all are ended.", lower_bound=0
  )


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
