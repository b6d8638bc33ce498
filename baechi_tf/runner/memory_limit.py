"""A real memory limit for a process: a control group of Linux.

In version 1 of control groups a directory below /sys/fs/cgroup/memory is a
group. The system kills a process of a group that needs more than its limit. A
new group is made within this process' own, so that its limits hold too.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator

_ROOT = "/sys/fs/cgroup/memory"
_REMOVAL_S = 2.0
_NAME = re.compile(r"baechi-(\d+)-\d+")  # the id of the process that made it


@contextlib.contextmanager
def memory_group(index: int) -> Iterator[str]:
  """Yields the directory of a new group; removes it, when it is empty.

  Groups that a killed process has left are removed too.

  Args:
    index: which of this process' groups it is.

  Raises:
    OSError: this system, or this user's rights, do not allow it.
  """
  parent = _own_group()
  _remove_abandoned(parent)
  path = os.path.join(parent, f"baechi-{os.getpid()}-{index}")
  os.mkdir(path)
  try:
    _write(path, "memory.swappiness", 0)
    yield path
  finally:
    _remove(path)


def put(path: str, pid: int) -> None:
  """Moves a process to the group.

  Raises:
    OSError: it is gone, or the system refuses.
  """
  _write(path, "cgroup.procs", pid)


def limit(path: str, more_bytes: int) -> int:
  """Lets the group have so much more than now; returns its limit in bytes.

  Raises:
    OSError: the system refuses.
  """
  total = _in_use(path) + more_bytes
  _write(path, "memory.limit_in_bytes", total)
  with contextlib.suppress(FileNotFoundError):  # without swap accounting
    _write(path, "memory.memsw.limit_in_bytes", total)
  return total


def was_exceeded(path: str) -> bool:
  """Whether the system has killed a process of the group for its memory."""
  with open(os.path.join(path, "memory.oom_control"), encoding="ascii") as file:
    counts = dict(line.split() for line in file)
  return int(counts.get("oom_kill", 0)) > 0


def _remove_abandoned(parent: str) -> None:
  for name in os.listdir(parent):
    made = _NAME.fullmatch(name)
    if made and not os.path.exists(f"/proc/{made[1]}"):
      with contextlib.suppress(OSError):  # a process is still in it
        os.rmdir(os.path.join(parent, name))


def _own_group() -> str:
  with open("/proc/self/cgroup", encoding="ascii") as file:
    entries = [line.rstrip("\n").split(":", 2) for line in file]
  own = [path for _, kinds, path in entries if "memory" in kinds.split(",")]
  if not own:
    raise FileNotFoundError("there are no control groups for memory")
  # In a container, the path may be the host's.
  path = _ROOT + own[0]
  return path if os.path.isdir(path) else _ROOT


def _in_use(path: str) -> int:
  """Returns the bytes of the group that cannot be read again from a file."""
  with open(os.path.join(path, "memory.stat"), encoding="ascii") as file:
    counts = {key: int(value) for key, value in map(str.split, file)}
  usage = os.path.join(path, "memory.usage_in_bytes")
  with open(usage, encoding="ascii") as file:
    return int(file.read()) - counts["active_file"] - counts["inactive_file"]


def _write(path: str, key: str, value: int) -> None:
  with open(os.path.join(path, key), "w", encoding="ascii") as file:
    file.write(str(value))


def _remove(path: str) -> None:
  """Removes a group; a process that has just ended may still be in it."""
  deadline = time.monotonic() + _REMOVAL_S
  while True:
    try:
      os.rmdir(path)
      return
    except FileNotFoundError:
      return
    except OSError as error:
      if error.errno != errno.EBUSY or time.monotonic() > deadline:
        raise
    time.sleep(0.01)
