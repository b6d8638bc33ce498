"""Processes that this one starts, each in a session of its own, and ends.

What they write goes to files, and to whoever shows it. Each is ended with all
that it started itself.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

_GRACE_S = 2.0
_TAIL_LINES = 20
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


def free_addresses(count: int) -> list[str]:
  """Returns addresses of this machine that nothing listens on."""
  with contextlib.ExitStack() as stack:
    sockets = [
      stack.enter_context(socket.create_server(("localhost", 0)))
      for _ in range(count)
    ]
    return [f"localhost:{x.getsockname()[1]}" for x in sockets]


def peer_environment(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables of a process that talks to others by gRPC."""
  kept = {k: v for k, v in environment.items() if k.lower() not in _PROXIES}
  # Fail at once when a peer is gone, not after gRPC's own retries.
  kept["GRPC_FAIL_FAST"] = "use_caller"
  return kept


def start(
  command: Sequence[str],
  environment: Mapping[str, str],
  *,
  stdin: int = subprocess.DEVNULL,
  shows_output: bool = False,
) -> subprocess.Popen:
  """Returns a new process, which can be ended with all that it starts.

  Args:
    command: the program and its arguments.
    environment: its variables.
    stdin: as `subprocess.Popen` takes it.
    shows_output: whether it writes where this process does; if not, what it
      writes is to be read, see `keep_output`.

  Raises:
    OSError: the command cannot be run.
  """
  return subprocess.Popen(
    command,
    env=environment,
    stdin=stdin,
    stdout=None if shows_output else subprocess.PIPE,
    stderr=None if shows_output else subprocess.STDOUT,
    start_new_session=True,
  )


def keep_output(
  process: subprocess.Popen,
  log_path: str,
  readers: contextlib.ExitStack,
  show: Callable[[str], None] = lambda line: None,
) -> None:
  """Copies what a process writes to the end of a file.

  Args:
    process: which one.
    log_path: of the file.
    readers: waits, when it is closed, for the end of what is written.
    show: called with each line.
  """
  reader = threading.Thread(
    target=_copy_output, args=(process.stdout, log_path, show)
  )
  reader.start()
  readers.enter_context(process)  # closes the pipe
  readers.callback(reader.join)


def _copy_output(stream, log_path: str, show: Callable[[str], None]) -> None:
  with open(log_path, "ab") as log:
    for line in stream:
      log.write(line)
      log.flush()
      show(line.decode(errors="replace").rstrip())


def end(processes: Sequence[subprocess.Popen]) -> None:
  """Ends processes and whatever they started: asks first, then insists.

  TensorFlow's workers do not end when asked.
  """
  for number in (signal.SIGTERM, signal.SIGKILL):
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=max(0.0, deadline - time.monotonic()))


def end_with_parent(code: int) -> None:
  """Has this process end when its standard input does.

  So it ends, however the one ended that started it with a pipe for its input
  and writes nothing there.

  Args:
    code: its exit code then.
  """

  def wait() -> None:
    while os.read(0, 1):
      pass
    os._exit(code)

  threading.Thread(target=wait, daemon=True).start()


def exit_code(process: subprocess.Popen) -> int | None:
  """Returns its exit code, 128 + the signal if killed; None if it runs."""
  code = process.poll()
  return code if code is None or code >= 0 else 128 - code


def read_log(path: str) -> str:
  """Returns all that is in a log."""
  with open(path, encoding="utf-8", errors="replace") as log:
    return log.read()


def last_lines(path: str) -> str:
  """Returns the last lines of a log."""
  return "\n".join(read_log(path).splitlines()[-_TAIL_LINES:])
