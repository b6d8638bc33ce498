"""Runs a cluster on this machine, and starts again what dies.

A worker that died is started again, and gets tasks again; its own are done by
others. When a parameter server died or hangs, or the coordinator died, both are
started again and the run goes on from its latest checkpoint.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence

from robust_tf.training import child_processes
from robust_tf.training.cluster_task import CHIEF
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import PS
from robust_tf.training.cluster_task import WORKER
from robust_tf.training.federated_flags import ClusterSize
from robust_tf.training.printable import printable
from robust_tf.training.uninterrupted import uninterrupted

# The coordinator's exit code where it cannot go on, and another one can: that
# of sysexits.h for a failure that passes.
TRY_AGAIN = os.EX_TEMPFAIL

_POLL_S = 0.05
# How long the coordinator may take to find out that a server is gone.
_NOTICE_S = 10.0

Member = tuple[str, int]  # a job, and an index
_CHIEF: Member = (CHIEF, 0)


class Supervisor:
  """The processes of a cluster, and how often they were started again."""

  def __init__(
    self,
    command: Sequence[str],
    size: ClusterSize,
    *,
    max_restarts: int,
    log_directory: str,
    environment: Mapping[str, str] = os.environ,
  ):
    """Chooses addresses; starts nothing.

    Args:
      command: of every process; TF_CONFIG tells them what they are, and they
        end when their standard input does.
      size: how many workers and parameter servers.
      max_restarts: how often processes are started again, in all.
      log_directory: gets what workers and parameter servers write; it is made
        if it is not there.
      environment: the variables of all processes.
    """
    self._command = command
    self._restarts_left = self._max_restarts = max_restarts
    self._directory = log_directory
    self._environment = child_processes.peer_environment(environment)
    counts = {CHIEF: 1, PS: size.ps, WORKER: size.workers}
    self._members: list[Member] = [
      (job, index) for job in (PS, WORKER) for index in range(counts[job])
    ]
    addresses = iter(child_processes.free_addresses(sum(counts.values())))
    self._cluster = {
      job: tuple(next(addresses) for _ in range(count))
      for job, count in counts.items()
    }
    self._processes: dict[Member, subprocess.Popen] = {}
    self._readers = contextlib.ExitStack()

  def run(self) -> int:
    """Returns the run's exit code. Whatever happens, no process is left.

    Raises:
      OSError: a process cannot be started, or its log not be written.
    """
    os.makedirs(self._directory, exist_ok=True)
    with self._readers:
      try:
        for member in [*self._members, _CHIEF]:
          self._start(member)
        while True:
          code = child_processes.exit_code(self._processes[_CHIEF])
          if code is not None and not _can_go_on(code):
            return code
          dead = self._dead()
          lost = [x for x in dead if x[0] != WORKER]
          if lost and not self._start_coordinator_again(lost):
            return self._give_up(lost[0])
          for member in dead:
            if member not in lost and not self._start_again(member):
              return self._give_up(member)
          time.sleep(_POLL_S)
      finally:
        with uninterrupted():
          # The coordinator first, which would miss the others.
          chief = self._processes.pop(_CHIEF, None)
          child_processes.end([chief] if chief else [])
          child_processes.end([*self._processes.values()])

  def _start(self, member: Member) -> None:
    job, index = member
    task = ClusterTask(self._cluster, job, index)
    with uninterrupted():  # or nobody would know of the process
      process = child_processes.start(
        self._command,
        {**self._environment, "TF_CONFIG": task.to_json()},
        stdin=subprocess.PIPE,
        shows_output=job == CHIEF,
      )
      self._processes[member] = process
    if job == CHIEF:
      self._readers.enter_context(process)  # closes the pipe
    else:
      child_processes.keep_output(process, self._log(member), self._readers)

  def _dead(self) -> list[Member]:
    return [
      member
      for member, process in self._processes.items()
      if process.poll() is not None
    ]

  def _start_again(self, member: Member) -> bool:
    """Starts a process that died, unless that was too often; says so."""
    if not self._restarts_left:
      return False
    self._restarts_left -= 1
    code = self._processes[member].returncode
    _say(
      f"{_name(member)} {_fate(code)}, and is started again"
      f" ({self._max_restarts - self._restarts_left} of at most"
      f" {self._max_restarts} times)"
    )
    self._start(member)
    return True

  def _start_coordinator_again(self, lost: Sequence[Member]) -> bool:
    """Starts parameter servers that were lost, and then the coordinator."""
    # It ends by itself when a server is gone; until then it must not meet one
    # in its place that knows nothing.
    chief = self._processes[_CHIEF]
    with contextlib.suppress(subprocess.TimeoutExpired):
      chief.wait(timeout=_NOTICE_S)
    child_processes.end([chief])
    servers = [member for member in lost if member != _CHIEF]
    if not servers and chief.returncode == TRY_AGAIN:
      servers = self._end_parameter_servers()
    if servers:
      if not all(self._start_again(member) for member in servers):
        return False
      self._start(_CHIEF)
      return True
    return self._start_again(_CHIEF)

  def _end_parameter_servers(self) -> list[Member]:
    """Ends those of which one hangs, nobody knows which; returns them."""
    servers = [member for member in self._members if member[0] == PS]
    _say("a parameter server does not answer: they are ended")
    child_processes.end([self._processes[member] for member in servers])
    return servers

  def _give_up(self, member: Member) -> int:
    """Says what died too often; returns the run's exit code."""
    process = self._processes[member]
    message = (
      f"{_name(member)} {_fate(process.returncode)}, after"
      f" --max_restarts={self._max_restarts} restarts"
    )
    if member[0] != CHIEF:
      log = self._log(member)
      message += f"; the end of {log}:\n{child_processes.last_lines(log)}"
    _say(message)
    return child_processes.exit_code(process) or 1

  def _log(self, member: Member) -> str:
    return os.path.join(self._directory, f"{member[0]}_{member[1]}.log")


def _can_go_on(code: int) -> bool:
  """Whether another coordinator can do better: this one lost, or was killed."""
  return code == TRY_AGAIN or code >= 128


def _name(member: Member) -> str:
  job, index = member
  if job == CHIEF:
    return "the coordinator"
  return f"{'parameter server' if job == PS else job} {index}"


def _fate(return_code: int) -> str:
  if return_code < 0:
    return f"was killed by {signal.Signals(-return_code).name}"
  return f"ended with exit code {return_code}"


def _say(message: str) -> None:
  print(f"robust-train: {printable(message)}", file=sys.stderr, flush=True)
