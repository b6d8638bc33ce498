"""Writes a file or a directory of files complete or not at all.

Everything goes to a sibling with a temporary name, on the same file system,
which is renamed when it is complete and on the disk. What was there before
stays until then, also if the process is killed. A killed process leaves its
sibling behind; the next writer of the same path removes it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable
from collections.abc import Iterator

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_text(path: str | os.PathLike, chunks: Iterable[str]) -> None:
  """Writes the chunks, joined, as the file's text.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  write_bytes(path, (chunk.encode() for chunk in chunks))


def write_bytes(path: str | os.PathLike, chunks: Iterable[bytes]) -> None:
  """Writes the chunks, joined, as the file.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  path = os.fspath(path)
  temporary = _sibling(path)
  with _errors_named(temporary, path):
    _remove_abandoned(path)
    try:
      with open(temporary, "xb") as file, _locked(temporary):
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)
      _sync_parent(path)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)


@contextlib.contextmanager
def replacing_directory(path: str | os.PathLike) -> Iterator[str]:
  """Yields a new directory that takes `path`'s place if the block succeeds.

  Whoever looks at `path` sees what was there before or the new directory. On
  a file system that cannot exchange two names in one step there is nothing at
  `path` for an instant when it is replaced.

  Raises:
    OSError: it cannot be written; what was there before is still there.
  """
  path = os.fspath(path)
  temporary = _sibling(path)
  with _errors_named(temporary, path):
    _remove_abandoned(path)
    try:
      os.mkdir(temporary)
      with _locked(temporary):
        yield temporary
        _sync_tree(temporary)
        _move(temporary, path)
      _sync_parent(path)
    finally:
      # After an exchange this is what was there before.
      shutil.rmtree(temporary, ignore_errors=True)


def _sibling(path: str) -> str:
  return f"{_prefix(path)}{uuid.uuid4().hex}"


def _prefix(path: str) -> str:
  parent, name = os.path.split(os.path.abspath(path))
  return os.path.join(parent, f".{name}.baechi-")


@contextlib.contextmanager
def _errors_named(temporary: str, path: str) -> Iterator[None]:
  """Makes errors speak of `path`: the user has not given the other name."""
  try:
    yield
  except OSError as error:
    named = str(error.filename or path).replace(temporary, path)
    raise OSError(error.errno, error.strerror, named) from None


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
  """Holds a lock, which a killed process loses.

  Raises:
    BlockingIOError: another process holds it.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(descriptor)


def _remove_abandoned(path: str) -> None:
  """Removes the siblings that killed writers of `path` left."""
  prefix = _prefix(path)
  parent = os.path.dirname(prefix)
  for name in sorted(os.listdir(parent)):
    sibling = os.path.join(parent, name)
    if not sibling.startswith(prefix):
      continue
    # Another writer may be at work on it, or remove it first.
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
      with _locked(sibling):
        if os.path.isdir(sibling):
          shutil.rmtree(sibling)
        else:
          os.remove(sibling)


def _move(temporary: str, path: str) -> None:
  """Puts the new directory at `path`, and what was there where it was."""
  if not os.path.lexists(path):
    os.rename(temporary, path)
  elif not _exchange(temporary, path):
    aside = _sibling(path)
    os.rename(path, aside)
    os.rename(temporary, path)
    os.rename(aside, temporary)


def _exchange(first: str, second: str) -> bool:
  """Swaps two names in one step; False where the system cannot."""
  libc = ctypes.CDLL(None, use_errno=True)
  if not hasattr(libc, "renameat2"):
    return False
  a, b = os.fsencode(first), os.fsencode(second)
  if not libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE):
    return True
  code = ctypes.get_errno()
  if code in (errno.ENOSYS, errno.EINVAL):
    return False
  raise OSError(code, os.strerror(code), second)


def _sync_tree(root: str) -> None:
  for directory, _, names in os.walk(root):
    for name in names:
      _sync(os.path.join(directory, name))
    _sync(directory)


def _sync_parent(path: str) -> None:
  _sync(os.path.dirname(os.path.abspath(path)))


def _sync(path: str) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
