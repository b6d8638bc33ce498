"""The order of events of a run, a line of JSON each.

All that a model is follows from it: which push changed the server's model,
from which version it started, and with what weight it was mixed in.
"""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Mapping

from robust_tf.federated.events import Event

_BEGINNING = {"bytes": 0, "crc32": 0}


class DamagedLogError(Exception):
  """The file does not begin with what it held at a checkpoint."""


class EventLog:
  """Writes events to a file."""

  def __init__(self, path: str | None):
    """Takes the path of the file; None writes nothing."""
    self._path = path
    self._file = None
    self._crc32 = 0

  def open(self, saved: Mapping[str, int] | None) -> None:
    """Opens the file, to go on after what was saved of it.

    What comes after that is forgotten: it is of no model that there is.

    Args:
      saved: what `saved` returned then; None to begin.

    Raises:
      DamagedLogError: the file does not hold that any more.
      OSError: it cannot be written.
    """
    if self._path is None:
      return
    saved = saved or _BEGINNING
    if saved["bytes"]:
      _check(self._path, saved)
    self._crc32 = saved["crc32"]
    self._file = open(self._path, "ab")  # noqa: SIM115  see `close`
    self._file.truncate(saved["bytes"])

  def add(self, event: Event) -> None:
    """Writes an event.

    Raises:
      OSError: it cannot be written.
    """
    if self._file:
      known = {
        name: value
        for name, value in dataclasses.asdict(event).items()
        if value is not None
      }
      line = json.dumps(known).encode() + b"\n"
      self._crc32 = zlib.crc32(line, self._crc32)
      self._file.write(line)

  def saved(self) -> dict[str, int]:
    """Returns the file's length and checksum, once all is on the disk.

    Raises:
      OSError: it cannot be written.
    """
    if not self._file:
      return _BEGINNING
    self._file.flush()
    os.fsync(self._file.fileno())
    return {"bytes": self._file.tell(), "crc32": self._crc32}

  def close(self) -> None:
    """Closes the file, if it is open."""
    if self._file:
      # What is not saved yet is of no checkpoint.
      with contextlib.suppress(OSError):
        self._file.close()


def _check(path: str, saved: Mapping[str, int]) -> None:
  """Raises `DamagedLogError` if a file does not begin with what was saved."""
  try:
    with open(path, "rb") as file:
      content = file.read(saved["bytes"])
  except FileNotFoundError:
    raise DamagedLogError("it is missing") from None
  if len(content) < saved["bytes"]:
    raise DamagedLogError("it is shorter than it was at the checkpoint")
  if zlib.crc32(content) != saved["crc32"]:
    raise DamagedLogError("it is not what it was at the checkpoint")
