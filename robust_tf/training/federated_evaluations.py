"""Evaluates the server's model as it is trained, and keeps what is found."""

import collections
import os
from collections.abc import Callable
from collections.abc import Mapping

import tensorflow as tf

from robust_tf.federated.events import ACCEPTED
from robust_tf.federated.events import Event
from robust_tf.federated.events import OVERDUE
from robust_tf.federated.events import REFUSED
from robust_tf.federated.events import RETRIED
from robust_tf.training import output
from robust_tf.training.algorithms import ASYNCHRONOUS
from robust_tf.training.journal import Journal
from robust_tf.training.settings import Settings


class Evaluations:
  """What is found of the model, and what came since it was last evaluated."""

  def __init__(
    self,
    settings: Settings,
    test: Callable[[], dict[str, float]],
    journal: Journal,
    show: Callable[[int, Mapping[str, float]], None],
  ):
    """Takes where to put what is found.

    Args:
      settings: of the run.
      test: evaluates the model, see `evaluation.test_function`.
      journal: gets evaluations.
      show: is told of each.
    """
    self._test = test
    self._journal = journal
    self._show = show
    self._told = [ACCEPTED, REFUSED]
    if settings.algorithm_arguments["deadline_s"] is not None:
      self._told.append(OVERDUE)
    if settings.strategy == "parameter_server":
      self._told.append(RETRIED)
    self._tells_staleness = settings.algorithm in ASYNCHRONOUS
    self._writer = tf.summary.create_noop_writer()
    if settings.output:
      self._writer = tf.summary.create_file_writer(
        os.path.join(settings.output, output.LOGS)
      )
    self._kinds = collections.Counter()
    self._staleness = 0

  def add(self, event: Event) -> None:
    """Counts an event."""
    self._kinds[event.kind] += 1
    if event.kind == ACCEPTED:
      self._staleness += event.staleness

  def evaluate(self, version: int) -> None:
    """Evaluates the model, and begins to count anew."""
    found = {**self._test(), **(self._counts() if version else {})}
    self._kinds.clear()
    self._staleness = 0
    self._journal.evaluations.append({"step": version, **found})
    with self._writer.as_default(step=version):
      for name, value in found.items():
        tf.summary.scalar(name, value)
    self._writer.flush()
    self._show(version, found)

  def _counts(self) -> dict[str, float]:
    counts = {x: self._kinds[x] for x in self._told}
    if self._tells_staleness:
      counts["staleness"] = self._staleness / max(1, counts[ACCEPTED])
    return counts
