"""Writes a file or a directory of files complete or not at all.

Everything goes to a sibling with a temporary name, on the same file system,
which is renamed when it is complete. What was there before stays until then.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable
from collections.abc import Iterator


def write_text(path: str | os.PathLike, chunks: Iterable[str]) -> None:
  """Writes the chunks, joined, as the file's text.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  path = os.fspath(path)
  temporary = _sibling(path)
  try:
    with open(temporary, "x", encoding="utf-8") as file:
      file.writelines(chunks)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    # The user gave `path` and does not know the temporary name.
    raise type(error)(error.errno, error.strerror, path) from None
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)


@contextlib.contextmanager
def replacing_directory(path: str | os.PathLike) -> Iterator[str]:
  """Yields a new directory that takes `path`'s place if the block succeeds.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  path = os.fspath(path)
  temporary = _sibling(path)
  try:
    os.mkdir(temporary)
    yield temporary
    if os.path.lexists(path):
      old = _sibling(path)
      os.rename(path, old)
      os.rename(temporary, path)
      shutil.rmtree(old)
    else:
      os.rename(temporary, path)
  except OSError as error:
    if error.filename is not None:
      named = str(error.filename).replace(temporary, path)
      raise type(error)(error.errno, error.strerror, named) from None
    raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _sibling(path: str) -> str:
  parent, name = os.path.split(os.path.abspath(path))
  return os.path.join(parent, f".{name}.baechi-{uuid.uuid4().hex}")
