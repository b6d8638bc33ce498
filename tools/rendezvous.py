"""Processes of one machine that wait for each other and swap values.

They meet in a directory, so that a network between them carries nothing of it.
"""

import json
import os
import pathlib
import time

_POLL_S = 0.005


class Rendezvous:
  """Where processes meet, in the same order in all of them."""

  def __init__(self, directory: str, index: int, num_workers: int):
    """Joins.

    Args:
      directory: the same for all; empty at first.
      index: of this process, from 0.
      num_workers: how many processes meet.
    """
    self._directory = pathlib.Path(directory)
    self._index = index
    self._num_workers = num_workers
    self._round = 0

  def meet(self, value=None) -> list:
    """Returns the values of all processes, by index, once all are here.

    Args:
      value: of this process, as JSON has it.
    """
    self._round += 1
    mine = self._path(self._index)
    unfinished = mine.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value))
    os.replace(unfinished, mine)
    return [
      json.loads(self._wait(self._path(index)))
      for index in range(self._num_workers)
    ]

  def _path(self, index: int) -> pathlib.Path:
    return self._directory / f"round_{self._round}_{index}.json"

  def _wait(self, path: pathlib.Path) -> str:
    while not path.exists():
      time.sleep(_POLL_S)
    return path.read_text()
