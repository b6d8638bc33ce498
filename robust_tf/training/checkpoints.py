"""Where a run goes on after it was stopped, however that happened.

A checkpoint is made by `tf.train.CheckpointManager`, which names it as the
latest only when all of it is written. It holds the weights, the journal, and
the optimizer with its counters and where the server's own batches are, or the
state of the server that few devices at a time train with; workers' batches
follow from the step, so nothing else is needed to go on exactly.

A run goes on from the newest checkpoint that is whole, see `saved_steps`.
"""

import os
import sys
import tempfile
from collections.abc import Mapping

import keras
import tensorflow as tf

from robust_tf.training import saved_steps
from robust_tf.training.journal import Journal
from robust_tf.training.output import check_same
from robust_tf.training.printable import printable
from robust_tf.training.process import Process
from robust_tf.training.saved_steps import checkpoint_name
from robust_tf.training.saved_steps import SavedSteps

KEPT = 2


class Checkpoints:
  """Saves and restores a run.

  Attributes:
    found: what there is to go on from.
  """

  def __init__(
    self,
    directory: str,
    process: Process,
    journal: Journal,
    parts: Mapping[str, tf.train.experimental.PythonState | keras.Model],
    *,
    of_each_process: bool = False,
  ):
    """Says what is saved, and where; reads what is there.

    Args:
      directory: of the checkpoints.
      process: this one. TensorFlow wants all to save.
      journal: of the run.
      parts: what is saved beside it, by name: what TensorFlow can save.
      of_each_process: whether each process saves what its own workers keep,
        in a folder of its own, and goes on from there. If not, all go on from
        what the chief saves, and what others do is thrown away.

    Raises:
      OSError: the folder cannot be read.
    """
    self._journal = journal
    self._checkpoint = tf.train.Checkpoint(journal=journal, **parts)
    if of_each_process and not process.is_chief:
      directory = os.path.join(directory, f"process_{process.index}")
    self._directory = directory
    self._is_owner = process.is_chief or of_each_process
    self._manager = None
    self.found: SavedSteps = saved_steps.read(directory)

  def start(self, step: int, damage: Mapping[str, str] | None = None) -> None:
    """Begins to save, after the step that the run goes on from.

    It says what is damaged.

    Args:
      step: 0 if the run begins anew.
      damage: of other files that the run needs to go on, as in `found`.

    Raises:
      OSError: a file cannot be written.
      ValueError: the run would begin anew because of damage.
    """
    damage = {**self.found.damage, **(damage or {})}
    told = "; ".join(f"{name}: {damage[name]}" for name in sorted(damage))
    if damage and not step:
      raise ValueError(
        f"no checkpoint in {self._directory} is whole: {told}; give --overwrite"
        " to begin anew"
      )
    if not self._is_owner:
      self._thrown_away = tempfile.TemporaryDirectory()
      self._manager = self._new_manager(self._thrown_away.name)
      return
    if damage:
      _say(
        f"{self._directory} is damaged: {told}; the run goes on from"
        f" {checkpoint_name(step)}"
      )
    elif not (step or self.found.is_empty):
      _say(
        f"no checkpoint in {self._directory} was completed; the run begins anew"
      )
    saved_steps.write_state(
      self._directory, [x for x in self.found.steps if x <= step]
    )
    self._manager = self._new_manager(self._directory)

  def save(self, step: int) -> None:
    """Saves the run after a step.

    Raises:
      OSError: it cannot be written; the checkpoint before it is still there.
    """
    try:
      self._manager.save(checkpoint_number=step)
    except tf.errors.OpError as error:
      raise OSError(
        f"the checkpoint of step {step} cannot be written to"
        f" {self._manager.directory}: {_cause(error)}; the one before it is"
        " still there, and the same command goes on from it"
      ) from None

  def restore(self, step: int) -> None:
    """Takes the run back to what it was after a step that was saved.

    Raises:
      ValueError: the checkpoint is not found, or of another run.
    """
    path = os.path.join(self._directory, checkpoint_name(step))
    now = self._journal.flags, self._journal.data_digest
    try:
      # What it says of itself comes first: another model's would not fit.
      alone = tf.train.Checkpoint(journal=self._journal)
      alone.restore(path).expect_partial()
      check_same(self._journal.flags, now[0], path)
      if self._journal.data_digest != now[1]:
        raise ValueError(f"{path} was trained on other data than there is now")
      self._checkpoint.restore(path).assert_consumed()
    except (tf.errors.OpError, AssertionError) as error:
      first_line = str(error).splitlines()[0]
      raise ValueError(
        f"cannot go on from the checkpoint {path}: {first_line}; give"
        " --overwrite to begin anew"
      ) from None
    self._journal.flags = now[0]

  def _new_manager(self, directory: str) -> tf.train.CheckpointManager:
    return tf.train.CheckpointManager(
      self._checkpoint, directory, max_to_keep=KEPT
    )


def _say(message: str) -> None:
  print(f"robust-train: {printable(message)}", file=sys.stderr, flush=True)


def _cause(error: tf.errors.OpError) -> str:
  """Returns what the file system said, without the file's name and the op's."""
  said = str(error).splitlines()[0].rpartition(";")[2]
  return said.partition("[Op:")[0].strip()
