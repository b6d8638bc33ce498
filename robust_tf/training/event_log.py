"""The order of events of a run, a line of JSON each.

All that a model is follows from it: which push changed the server's model,
from which version it started, and with what weight it was mixed in.
"""

import dataclasses
import json
import os

from robust_tf.federated.events import Event


class EventLog:
  """Writes events to a file."""

  def __init__(self, path: str | None):
    """Opens the file, to go on at its end.

    Args:
      path: of the file; None writes nothing.

    Raises:
      OSError: it cannot be opened.
    """
    self._file = None
    if path is not None:
      self._file = open(path, "ab")  # noqa: SIM115  see `close`

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

  def cut(self, num_bytes: int) -> None:
    """Forgets what came after so many bytes: it is of no model that there is.

    Raises:
      ValueError: the file is shorter.
      OSError: it cannot be written.
    """
    if not self._file:
      return
    if self._file.tell() < num_bytes:
      raise ValueError(
        f"{self._file.name} is shorter than it was at the checkpoint; give"
        " --overwrite to begin anew"
      )
    self._file.truncate(num_bytes)
    self._file.seek(num_bytes)

  def close(self) -> None:
    """Closes the file."""
    if self._file:
      self._file.close()
