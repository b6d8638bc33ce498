"""One process of a run: started, asked, and ended with all that it starts.

Questions and answers are lines of JSON over its standard input and output; it
ends when its input does, however this process ends. Its stderr goes to a file.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

_TAIL_LINES = 6
# What TensorFlow logs of any process, such as that there is no GPU.
_CHATTER = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl")
_GRACE_S = 1.0  # for a lost process to be seen, once another complains
_POLL_S = 0.2
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Child:
  """A process.

  Attributes:
    name: what messages call it.
    process: the process itself.
    log: the file with what it writes to stderr.
  """

  name: str
  process: subprocess.Popen
  log: str

  def tell(self, question: Message) -> None:
    """Sends a message; a process that is gone is noticed by `answer`."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps(question).encode() + b"\n")
      self.process.stdin.flush()

  def last_lines(self) -> str:
    """Returns the end of what the process wrote to stderr."""
    with open(self.log, encoding="utf-8", errors="replace") as file:
      lines = [x.rstrip() for x in file if not _CHATTER.match(x)]
    return "\n".join(lines[-_TAIL_LINES:])


def start(
  name: str, log: str, *, module: str, prefix: Sequence[str] = ()
) -> Child:
  """Returns a new process that runs a module of this package.

  Args:
    name: what messages call it.
    log: a file for its stderr.
    module: the module's full name.
    prefix: what the command begins with, such as `ip netns exec NAME`.

  Raises:
    OSError: the command cannot be run.
  """
  with open(log, "wb") as stderr:
    process = subprocess.Popen(
      # -P: a file in the working directory is no module of ours.
      [*prefix, sys.executable, "-P", "-m", module],
      env=_environment(os.environ),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=stderr,
      start_new_session=True,  # out of Ctrl-C's reach
    )
  return Child(name, process, log)


def answer(
  child: Child, everyone: Sequence[Child], timeout_s: float | None = None
) -> Message:
  """Returns what a process answers, while all of them live.

  Args:
    child: the one that was asked.
    everyone: the processes that it needs, itself among them.
    timeout_s: how long it may take; None for any time.

  Raises:
    ChildProcessError: a process ended, or the one asked reports an error.
    TimeoutError: there is no answer in time.
  """
  deadline = None if timeout_s is None else time.monotonic() + timeout_s
  with selectors.DefaultSelector() as selector:
    selector.register(child.process.stdout, selectors.EVENT_READ)
    while not selector.select(_POLL_S):
      check_alive(everyone)
      if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError(
          f"{child.name} does not answer within {timeout_s:g} s"
        )
  line = child.process.stdout.readline()
  message = json.loads(line) if line else {"error": "it ended"}
  if "error" in message:
    _await_loss(everyone)
    raise ChildProcessError(f"{child.name} fails: {message['error']}")
  return message


def check_alive(children: Sequence[Child]) -> None:
  """Does nothing while all processes live.

  Raises:
    ChildProcessError: one ended; says which, how, and its last lines.
  """
  for child in children:
    code = child.process.poll()
    if code is not None:
      how = f"exit code {code}"
      if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
      lines = child.last_lines()
      raise LostError(
        child, f"the process of {child.name} ended ({how})" + (
          f"; its last lines: {lines}" if lines else ""
        ),
      )  # fmt: skip


class LostError(ChildProcessError):
  """A process ended; `child` is the one."""

  def __init__(self, child: Child, message: str):
    super().__init__(message)
    self.child = child


def end(children: Sequence[Child]) -> None:
  """Ends processes and whatever they started."""
  for child in children:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(child.process.pid, signal.SIGKILL)
  for child in children:
    child.process.wait()
    child.process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
      child.process.stdin.close()


def _await_loss(children: Sequence[Child]) -> None:
  """Raises if a process ends: then that is why another one complains."""
  deadline = time.monotonic() + _GRACE_S
  while time.monotonic() < deadline:
    check_alive(children)
    time.sleep(_POLL_S / 4)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
  kept = {k: v for k, v in environment.items() if k.lower() not in _PROXIES}
  root = str(pathlib.Path(__file__).resolve().parents[2])
  paths = [root, *filter(None, [kept.get("PYTHONPATH")])]
  return {
    **kept,
    "PYTHONPATH": os.pathsep.join(paths),
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Fail at once when a peer is gone, not after gRPC's own retries.
    "GRPC_FAIL_FAST": "use_caller",
  }
