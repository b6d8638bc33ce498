"""Runs a command on a damaged input in this process, and says what is wrong.

A command may succeed, or end with exit code 2 or 3 and one line on stderr; then
it leaves nothing behind. Anything else is a fault.
"""

import contextlib
import dataclasses
import io
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

BAD_INPUT, INFEASIBLE = 2, 3


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line on the inputs in the working directory.

  Attributes:
    main: takes the arguments, returns the exit code.
    argv: the arguments.
    outputs: what appears if it succeeds.
    must_succeed: whether any other exit code than 0 is a fault too, because
      its input was made by the command before it.
  """

  main: Callable[[Sequence[str]], int]
  argv: tuple[str, ...]
  outputs: tuple[str, ...] = ()
  must_succeed: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
  """A kind of input file.

  Attributes:
    name: what the command line calls it.
    prepare: writes good inputs into the working directory, once.
    damage: damages one of them.
    commands: returns what reads them; each is run if the one before succeeds.
  """

  name: str
  prepare: Callable[[], None]
  damage: Callable[[random.Random], None]
  commands: Callable[[random.Random], Sequence[Command]]


def damage_file(
  path: str, mutate: Callable[[bytes, random.Random], bytes]
) -> Callable[[random.Random], None]:
  """Returns a function that damages one file."""

  def damage(draw: random.Random) -> None:
    with open(path, "rb") as file:
      data = file.read()
    with open(path, "wb") as file:
      file.write(mutate(data, draw))

  return damage


def faults(commands: Sequence[Command]) -> tuple[list[str], list[int | None]]:
  """Runs commands in the working directory until one fails.

  Returns:
    What is wrong, a line each, and the exit codes (None for a traceback).
  """
  wrong, codes = [], []
  for command in commands:
    before = set(os.listdir("."))
    code, out, err = _run(command)
    after = set(os.listdir("."))
    codes.append(code)
    wrong += [
      f"{' '.join(command.argv)}: {x}"
      for x in _judge(command, code, out, err, after - before)
    ]
    if code != 0:
      break
  return wrong, codes


def _judge(command, code, out, err, appeared) -> Iterator[str]:
  if code is None:
    yield err
    return
  if code not in (0, BAD_INPUT, INFEASIBLE):
    yield f"exit code {code}"
  elif code and command.must_succeed:
    yield f"exit code {code}: {err.strip()}"
  lines = err.splitlines()
  if len(lines) > 1 or (code and not lines):
    yield f"{len(lines)} lines on stderr at exit code {code}: {err[:500]!r}"
  left = appeared - set(() if code else command.outputs)
  if left:
    yield f"leaves {', '.join(sorted(left))} at exit code {code}"
  if not all(x.isprintable() for x in [*out.split("\n"), *err.split("\n")]):
    yield "prints control characters"


def _run(command: Command) -> tuple[int | None, str, str]:
  """Returns the exit code (None if it raised), stdout and stderr."""
  out, err = io.StringIO(), io.StringIO()
  with (
    _native_stderr() as native,
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    warnings.catch_warnings(),
  ):
    # Those that a user sees, each time.
    warnings.simplefilter("always")
    for unseen in (DeprecationWarning, ImportWarning, ResourceWarning):
      warnings.simplefilter("ignore", unseen)
    try:
      code = command.main(command.argv)
    except SystemExit as end:
      code = end.code
    except Exception:
      return None, out.getvalue(), traceback.format_exc(limit=-9)
    native.seek(0)
    return code, out.getvalue(), err.getvalue() + native.read()


@contextlib.contextmanager
def _native_stderr() -> Iterator[io.TextIOBase]:
  """Yields a file with what C++ code writes, which does not know sys.stderr."""
  with tempfile.TemporaryFile("w+", errors="backslashreplace") as file:
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield file
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
