"""Shows on a terminal how far a run is; elsewhere says nothing."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn

_SHOWN = {
  "loss": "loss {:.4g}",
  "test_accuracy": "accuracy {:.4f}",
  "staleness": "staleness {:.1f}",
  "refused": "{} refused",
  "rows_accepted": "{:.1f} rows accepted",
  "compression_ratio": "{:.0f} times fewer bytes",
}


class StepProgress:
  """A context in which calls show the present step, in one line."""

  def __init__(self, total: int, quiet: bool = False):
    self._progress = None
    if sys.stderr.isatty() and not quiet:
      self._progress = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(10),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
      )
      self._task = self._progress.add_task("starting", total=total)
    self._shown = {}

  def __enter__(self) -> Self:
    if self._progress:
      self._progress.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._progress:
      self._progress.stop()

  def __call__(self, step: int, values: Mapping[str, float]) -> None:
    """Shows a step, and of the values those that are newest and matter."""
    if self._progress:
      self._shown.update(values)
      parts = [
        text.format(self._shown[name])
        for name, text in _SHOWN.items()
        if name in self._shown
      ]
      self._progress.update(
        self._task, completed=step, description=", ".join(parts)
      )
