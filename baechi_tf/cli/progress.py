"""Says on stderr what is being done, if it takes long enough to wonder.

A terminal shows the present stage and how it moves. Elsewhere (a log) a line
is written for what goes on every two seconds, so that short work, and bad
input, write none.
"""

import sys
import threading
from types import TracebackType
from typing import Self

import rich.console
import rich.status
import rich.text

from baechi_tf.printable import printable

INTERVAL_S = 2.0


class Progress:
  """A context in which calls name the present stage."""

  def __init__(self):
    self._stage = ""
    self._shown = ""
    self._done = threading.Event()
    self._status = None
    self._thread = None

  def __enter__(self) -> Self:
    if sys.stderr.isatty():
      console = rich.console.Console(stderr=True)
      self._status = rich.status.Status("", console=console)
      self._status.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._done.set()
    if self._status:
      self._status.stop()
    if self._thread:
      self._thread.join()

  def __call__(self, stage: str) -> None:
    """Names the present stage."""
    self._stage = printable(stage)
    if self._status:
      # As text: rich would take "[red]" in a path for a colour.
      self._status.update(rich.text.Text(self._stage))
    elif self._thread is None:
      self._thread = threading.Thread(target=self._write_lines, daemon=True)
      self._thread.start()

  def count(self, stage: str):
    """Returns a function of (done, in all) that shows both."""
    return lambda done, total: self(f"{stage}, {done} of {total}")

  def _write_lines(self) -> None:
    while not self._done.wait(INTERVAL_S):
      stage = self._stage
      if stage != self._shown:
        print(f"{stage} ...", file=sys.stderr, flush=True)
        self._shown = stage
