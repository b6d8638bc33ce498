"""The folder that a run writes to.

    run.flags        the flags: robust-train --flagfile=run.flags repeats it
    partition.png    which worker holds how many examples of which class
    checkpoints/     where the run goes on if it is stopped
    events.jsonl     with few devices at a time: the order of events
    participation.png  and who took part, with what staleness
    processes/       of a local cluster: what its processes wrote
    logs/            for TensorBoard
    result.json      what came of it
    plot.png         the same, as curves
    model.keras      the trained model

A folder is one run's: it is refused if anything else is in it, and another
run replaces it only when told to.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from collections.abc import Mapping

from robust_tf.training.federated_flags import MAY_CHANGE
from robust_tf.training.job_flags import flag_texts
from robust_tf.training.job_flags import parse_flags

FLAGS = "run.flags"
PARTITION = "partition.png"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
RESULT = "result.json"
PLOT = "plot.png"
MODEL = "model.keras"
EVENTS = "events.jsonl"
PARTICIPATION = "participation.png"
PROCESSES = "processes"
FILES = frozenset(
  {
    FLAGS, PARTITION, CHECKPOINTS, LOGS, RESULT, PLOT, MODEL, EVENTS,
    PARTICIPATION, PROCESSES,
  }
)  # fmt: skip
_TEMPORARY = ".robust-train-"


@contextlib.contextmanager
def run_folder(
  output: str, flags: Mapping[str, str], overwrite: bool
) -> Iterator[None]:
  """Makes the folder a run's, or finds it so, and keeps others out meanwhile.

  Args:
    output: the folder; it is made if it is not there.
    flags: the text of each of the run's flags.
    overwrite: whether another run may be replaced; this one starts again then.

  Raises:
    ValueError: it is no folder, cannot be written, holds something else or
      another run, or another process is at work in it.
  """
  if os.path.lexists(output) and not os.path.isdir(output):
    raise ValueError(f"--output={output} is not a folder; choose another path")
  try:
    os.makedirs(output, exist_ok=True)
    if not os.access(output, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except OSError as error:
    raise ValueError(
      f"--output={output} cannot be written: {error.strerror}; choose another"
      " folder"
    ) from None
  with _locked(output):
    _prepare(output, flags, overwrite)
    yield


def _prepare(output: str, flags: Mapping[str, str], overwrite: bool) -> None:
  present = set(os.listdir(output))
  # Left by a process that was killed while it wrote them.
  abandoned = {name for name in present if name.startswith(_TEMPORARY)}
  present -= abandoned
  others = sorted(present - FILES)
  if others:
    raise ValueError(
      f"--output={output} holds {others[0]}, which is no part of a run; choose"
      " another folder"
    )
  if present and FLAGS not in present:
    raise ValueError(
      f"--output={output} holds {min(present)} and no {FLAGS}, which says what"
      " run it is of; choose another folder"
    )
  if present and not overwrite:
    check_same(read_flags(output), flags, output)
    present = set()
  # Last goes what says that the rest is ours: this may be interrupted.
  for name in sorted(present | abandoned, key=lambda x: x == FLAGS):
    _remove(os.path.join(output, name))
  with replacing(os.path.join(output, FLAGS)) as path:
    with open(path, "w", encoding="utf-8") as file:
      file.writelines(f"--{name}={text}\n" for name, text in flags.items())


@contextlib.contextmanager
def _locked(output: str) -> Iterator[None]:
  """Holds a lock on the folder, which a killed process loses."""
  descriptor = os.open(output, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"--output={output}: another process is at work in it; wait for it, or"
        " choose another folder"
      ) from None
    yield
  finally:
    os.close(descriptor)


def read_flags(output: str) -> dict[str, str]:
  """Returns the flags of the run in a folder.

  Raises:
    ValueError: they cannot be read as such.
  """
  path = os.path.join(output, FLAGS)
  try:
    return flag_texts(parse_flags([f"--flagfile={path}"]))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def check_same(
  before: Mapping[str, str], now: Mapping[str, str], where: str
) -> None:
  """Checks that a run goes on with the flags that it began with.

  It may go on for more steps, if the last of before was evaluated in its turn.

  Raises:
    ValueError: it does not; says which flags differ.
  """
  differing = [
    name
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name) and name not in MAY_CHANGE
  ]
  if differing == ["steps"] and _extends(before, now):
    return
  if differing:
    details = "; ".join(
      f"{_flag(name, before)} there, {_flag(name, now)} here"
      for name in differing[:3]
    )
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise ValueError(
      f"{where} holds another run: {details}{more}. Give the same flags to"
      " resume it, --overwrite to replace it, or another --output"
    )


def _extends(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
  done, steps = int(before["steps"]), int(now["steps"])
  return steps > done and done % int(now["evaluate_every"]) == 0


def _flag(name: str, texts: Mapping[str, str]) -> str:
  return f"--{name}={texts[name]}" if name in texts else f"no --{name}"


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields a path whose file takes the place of `path` when it is complete.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}-{name}")
  try:
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    named = path if error.filename == temporary else error.filename
    raise OSError(error.errno, error.strerror, named) from None
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)


def _remove(path: str) -> None:
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  else:
    os.remove(path)
