"""Publishes files and directories together, each complete or not at all.

Everything is first built in a staging directory beside its target, on the same
file system, and brought to the disk. Only when all outputs are complete do they
get their names. A name that was free is taken without replacing what another
process may have put there meanwhile. What is replaced stays in the staging
directory until all else has succeeded, and goes back if anything fails.

A killed process leaves its staging directories, `.baechi-` and 32 hexadecimal
digits. Each holds a lock file of our own name, made first and removed last. The
next writer to the same directory removes those whose lock no process holds, and
empty ones.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)

_STAGING = re.compile(r"\.baechi-[0-9a-f]{32}")
_LOCK = "baechi_tf.lock"

# Raises if what is at the path given to it must not be replaced.
CheckReplaced = Callable[[str], None]


def replace_file(path: str) -> None:
  """Lets an output replace a file.

  Raises:
    IsADirectoryError: there is a directory at the path.
  """
  if os.path.isdir(path):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def write_text(path: str | os.PathLike, chunks: Iterable[str]) -> None:
  """Writes the chunks, joined, as the file's text; replaces a file.

  Raises:
    OSError: the file cannot be written; what was there before is still there.
  """
  write_bytes(path, (chunk.encode() for chunk in chunks))


def write_bytes(path: str | os.PathLike, chunks: Iterable[bytes]) -> None:
  """Writes the chunks, joined, as the file; replaces a file.

  Raises:
    OSError: the file cannot be written; what was there before is still there.
  """
  with publishing() as outputs:
    outputs.write_bytes(path, chunks)


@contextlib.contextmanager
def publishing() -> Iterator["Outputs"]:
  """Yields outputs to fill, which all appear if the block succeeds.

  On a file system that cannot exchange two names in one step, there is nothing
  at a path for an instant when it is replaced.

  Raises:
    OSError: an output cannot be written; all paths are as they were before.
    ValueError: something is at a path that must not be replaced; likewise.
  """
  outputs = Outputs()
  try:
    yield outputs
    outputs.publish()
  finally:
    outputs.remove_staging()


class Outputs:
  """Files and directories that `publishing` gives their names together."""

  def __init__(self):
    self._staged: list[_Staged] = []

  def write_bytes(
    self,
    path: str | os.PathLike,
    chunks: Iterable[bytes],
    check_replaced: CheckReplaced = replace_file,
  ) -> None:
    """Stages a file.

    Args:
      path: where the file will be; the target of a symbolic link, if it is one.
      chunks: its bytes, in pieces.
      check_replaced: raises if what is at `path` must not be replaced.

    Raises:
      OSError: the file cannot be written.
    """
    with self._stage(path, check_replaced) as content:
      with open(content, "xb") as file:
        file.writelines(chunks)

  def write_text(
    self,
    path: str | os.PathLike,
    chunks: Iterable[str],
    check_replaced: CheckReplaced = replace_file,
  ) -> None:
    """Stages a text file, see `write_bytes`."""
    encoded = (chunk.encode() for chunk in chunks)
    self.write_bytes(path, encoded, check_replaced)

  @contextlib.contextmanager
  def directory(
    self, path: str | os.PathLike, check_replaced: CheckReplaced
  ) -> Iterator[str]:
    """Stages a directory: yields a new one, for the block to fill.

    Args:
      path: where the directory will be; the target of a symbolic link, if it
        is one.
      check_replaced: raises if what is at `path` must not be replaced.

    Raises:
      OSError: the directory cannot be written.
    """
    with self._stage(path, check_replaced) as content:
      os.mkdir(content)
      yield content

  @contextlib.contextmanager
  def _stage(self, path, check_replaced) -> Iterator[str]:
    """Yields where to build an output, which then goes to the disk."""
    staged = _Staged(os.fspath(path), check_replaced)
    with staged.errors_named():
      staged.open()
      self._staged.append(staged)
      yield staged.content
      _sync_tree(staged.content)

  def publish(self) -> None:
    """Gives the outputs their names; takes all back if one cannot be given."""
    attempted = []
    try:
      for staged in self._staged:
        attempted.append(staged)
        staged.publish()
      for staged in self._staged:
        with staged.errors_named():
          _sync(os.path.dirname(staged.target))
    except BaseException:
      for staged in reversed(attempted):
        staged.withdraw()
      raise

  def remove_staging(self) -> None:
    """Removes the staging directories and what was replaced."""
    for staged in self._staged:
      staged.close()


class _Staged:
  """An output on its way: where it is built, and where it goes."""

  def __init__(self, path: str, check_replaced: CheckReplaced):
    self.path = path
    # A symbolic link stays, and what it leads to is replaced.
    self.target = os.path.realpath(path)
    parent = os.path.dirname(self.target)
    self.directory = os.path.join(parent, f".baechi-{uuid.uuid4().hex}")
    self.content = os.path.join(self.directory, "content")
    self._check_replaced = check_replaced
    self._lock = None
    self._undo = None

  def open(self) -> None:
    """Makes the staging directory and locks it."""
    _remove_abandoned(os.path.dirname(self.directory))
    while self._lock is None:
      os.mkdir(self.directory)
      self._lock = _lock_new(self.directory)

  def close(self) -> None:
    """Removes the staging directory, and what was replaced with it."""
    with contextlib.suppress(OSError):
      _remove_staging(self.directory)
    os.close(self._lock)

  def publish(self) -> None:
    """Moves the output to its path."""
    with self.errors_named():
      if _move_to_free(self.content, self.target):
        self._undo = os.rename
        return
      self._check_replaced(self.target)
      _exchange(self.content, self.target)
      self._undo = _exchange
      # Another process may have put something else there since the check.
      self._check_replaced(self.content)

  def withdraw(self) -> None:
    """Puts back what `publish` moved."""
    if self._undo:
      self._undo(self.target, self.content)

  @contextlib.contextmanager
  def errors_named(self) -> Iterator[None]:
    """Makes errors name the path: the user has not given the staging's."""
    try:
      yield
    except OSError as error:
      name = str(error.filename or self.path)
      for staging in (self.content, self.directory):
        name = name.replace(staging, self.path)
      reason = error.strerror or " ".join(map(str, error.args))
      raise OSError(error.errno or errno.EIO, reason, name) from None


def _lock_new(staging: str) -> int | None:
  """Returns the descriptor of a new directory's lock, which this process holds.

  None if another process took the directory for an abandoned one just before,
  and removed it.
  """
  path = os.path.join(staging, _LOCK)
  try:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
  except FileNotFoundError:
    return None
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  if os.path.exists(path):
    return descriptor
  os.close(descriptor)
  return None


def _remove_abandoned(parent: str) -> None:
  """Removes the staging directories that killed processes left in `parent`."""
  for name in sorted(os.listdir(parent)):
    if not _STAGING.fullmatch(name):
      continue
    staging = os.path.join(parent, name)
    # Another writer may be at work in it, or remove it first; and if it cannot
    # be removed, the new output is no worse for it.
    with contextlib.suppress(OSError):
      if not os.listdir(staging):
        os.rmdir(staging)
        continue
      flags = os.O_RDWR | os.O_NOFOLLOW
      descriptor = os.open(os.path.join(staging, _LOCK), flags)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_staging(staging)
      finally:
        os.close(descriptor)


def _remove_staging(staging: str) -> None:
  """Removes a staging directory, its lock last."""
  for name in os.listdir(staging):
    path = os.path.join(staging, name)
    if name == _LOCK:
      continue
    if os.path.isdir(path) and not os.path.islink(path):
      shutil.rmtree(path)
    else:
      os.remove(path)
  os.remove(os.path.join(staging, _LOCK))
  os.rmdir(staging)


def _move_to_free(source: str, target: str) -> bool:
  """Renames `source`; False if something is at `target`, which stays."""
  try:
    if _renameat2(source, target, _RENAME_NOREPLACE):
      return True
    if os.path.isdir(source):
      os.mkdir(target)  # a directory may be renamed to an empty one
      os.rename(source, target)
    else:
      os.link(source, target)
      os.unlink(source)
    return True
  except FileExistsError:
    return False


def _exchange(first: str, second: str) -> None:
  """Swaps two names, in one step where the system can."""
  if _renameat2(first, second, _RENAME_EXCHANGE):
    return
  aside = f"{first}.aside"
  os.rename(second, aside)
  try:
    os.rename(first, second)
  except OSError:
    os.rename(aside, second)
    raise
  os.rename(aside, first)


def _renameat2(first: str, second: str, flags: int) -> bool:
  """Calls Linux's renameat2; False where the system or file system cannot."""
  libc = ctypes.CDLL(None, use_errno=True)
  if not hasattr(libc, "renameat2"):
    return False
  a, b = os.fsencode(first), os.fsencode(second)
  if not libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, flags):
    return True
  code = ctypes.get_errno()
  if code in _UNSUPPORTED:
    return False
  raise OSError(code, os.strerror(code), second)


def _sync_tree(root: str) -> None:
  if not os.path.isdir(root):
    _sync(root)
  for directory, _, names in os.walk(root):
    for name in names:
      _sync(os.path.join(directory, name))
    _sync(directory)


def _sync(path: str) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
