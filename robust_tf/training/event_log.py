"""The order of events of a run, a line of JSON each.

All that a model is follows from it: which push changed the server's model,
from which version it started, and with what weight it was mixed in.
"""

import contextlib
import dataclasses
import json
import os

from robust_tf.federated.events import Event


class EventLog:
  """Writes events to a file."""

  def __init__(self, path: str | None):
    """Takes the path of the file; None writes nothing."""
    self._path = path
    self._file = None

  def open(self, num_bytes: int) -> None:
    """Opens the file, to go on after so many bytes.

    What comes after them is forgotten: it is of no model that there is.

    Args:
      num_bytes: that are kept.

    Raises:
      ValueError: the file is shorter.
      OSError: it cannot be written.
    """
    if self._path is None:
      return
    if num_bytes and os.path.getsize(self._path) < num_bytes:
      raise ValueError(
        f"{self._path} is shorter than it was at the checkpoint; give"
        " --overwrite to begin anew"
      )
    self._file = open(self._path, "ab")  # noqa: SIM115  see `close`
    self._file.truncate(num_bytes)

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
      self._file.write(json.dumps(known).encode() + b"\n")

  def saved_bytes(self) -> int:
    """Returns how long the file is, once all of it is on the disk.

    Raises:
      OSError: it cannot be written.
    """
    if not self._file:
      return 0
    self._file.flush()
    os.fsync(self._file.fileno())
    return self._file.tell()

  def close(self) -> None:
    """Closes the file, if it is open."""
    if self._file:
      # What is not saved yet is of no checkpoint.
      with contextlib.suppress(OSError):
        self._file.close()
