"""Which checkpoints of a folder are whole, and what is damaged.

TensorFlow keeps a checksum of every tensor and of the index of them, and checks
it when it reads: a checkpoint is whole if all of it can be read. The state file
`checkpoint` is written last. Data without an index that the state does not name
is of a save that was interrupted, and no damage.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.training.output import replacing

STATE = "checkpoint"

_FILE = re.compile(r"ckpt-(\d+)\.(index|data-.*)")
_LATEST = re.compile(rb'model_checkpoint_path: "ckpt-(\d+)"')


@dataclasses.dataclass(frozen=True)
class SavedSteps:
  """What a folder of checkpoints holds.

  Attributes:
    steps: those whose checkpoints have an index, newest first.
    whole: those of them whose checkpoints are whole.
    damage: what is wrong with a file or a checkpoint, by its name.
    is_empty: whether there is no file of any checkpoint.
  """

  steps: tuple[int, ...] = ()
  whole: tuple[int, ...] = ()
  damage: Mapping[str, str] = dataclasses.field(default_factory=dict)
  is_empty: bool = True

  def row(self, count: int) -> list[int]:
    """Returns for `agreed_step` whether there is damage, and steps.

    Args:
      count: of the steps, those of the newest whole checkpoints; 0 beyond.
    """
    return [int(bool(self.damage)), *[*self.whole, *[0] * count][:count]]


def checkpoint_name(step: int) -> str:
  """Returns the name of a step's checkpoint, without its files' endings."""
  return f"ckpt-{step}"


def read(directory: str) -> SavedSteps:
  """Returns what a folder of checkpoints holds; it reads all of them.

  Args:
    directory: the folder; it need not be there.

  Raises:
    OSError: the folder cannot be read.
  """
  try:
    files = [x for x in map(_FILE.fullmatch, os.listdir(directory)) if x]
  except FileNotFoundError:
    return SavedSteps()
  steps = {int(file[1]) for file in files if file[2] == "index"}
  named, damage = set(), {}
  with contextlib.suppress(FileNotFoundError):
    try:
      named.add(_latest(os.path.join(directory, STATE)))
    except ValueError as error:
      damage[STATE] = str(error)
  whole = []
  for step in sorted(steps | named, reverse=True):
    reason = _damage(os.path.join(directory, checkpoint_name(step)))
    if reason:
      damage[checkpoint_name(step)] = reason
    else:
      whole.append(step)
  return SavedSteps(
    steps=tuple(sorted(steps, reverse=True)),
    whole=tuple(whole),
    damage=damage,
    is_empty=not (files or damage),
  )


def agreed_step(
  rows: Sequence[Sequence[int]],
) -> tuple[int, Mapping[str, str]]:
  """Returns the newest step that all processes can go on from, and damage.

  Args:
    rows: of each process, see `SavedSteps.row`.

  Returns:
    The step, 0 if there is none; and what is wrong if there should be one. None
    need be there if processes were interrupted at their first checkpoint.
  """
  common = set.intersection(*(set(steps) for _, *steps in rows))
  step = max(common, default=0)
  if step or not any(damaged or rest[1] for damaged, *rest in rows):
    return step, {}
  if len(rows) == 1:
    return 0, {}  # the process knows more of it itself
  return 0, {"the processes": "no whole checkpoints of theirs are of one step"}


def write_state(directory: str, steps: Sequence[int]) -> None:
  """Has the state file name these checkpoints alone.

  Args:
    directory: of the checkpoints.
    steps: newest first; without any the state file is removed.

  Raises:
    OSError: it cannot be written.
  """
  path = os.path.join(directory, STATE)
  if not steps:
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    return
  lines = [f'model_checkpoint_path: "{checkpoint_name(steps[0])}"\n']
  lines += [
    f'all_model_checkpoint_paths: "{checkpoint_name(step)}"\n'
    for step in reversed(steps)
  ]
  with replacing(path) as temporary:
    with open(temporary, "w", encoding="utf-8") as file:
      file.writelines(lines)


def _latest(path: str) -> int:
  """Returns the step that a state file names as the latest.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it names none.
  """
  try:
    with open(path, "rb") as file:
      match = _LATEST.match(file.read())
  except IsADirectoryError:
    match = None
  if not match:
    raise ValueError("it names no checkpoint")
  return int(match[1])


def _damage(path: str) -> str | None:
  """Returns what keeps a checkpoint from being read, None if nothing does."""
  if not os.path.exists(f"{path}.index"):
    return "its .index is missing"
  try:
    reader = tf.train.load_checkpoint(path)
    for name, dtype in reader.get_variable_to_dtype_map().items():
      if dtype == tf.variant:  # such as where a data set is
        tf.raw_ops.RestoreV2(
          prefix=path,
          tensor_names=[name],
          shape_and_slices=[""],
          dtypes=[dtype],
        )
      else:
        reader.get_tensor(name)
  # TensorFlow 2.21 tells a short file by an IndexError, and some damage by a
  # ValueError.
  except (tf.errors.OpError, IndexError, ValueError) as error:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    # Without the names of a node in front and of an op behind.
    return first_line.rpartition("}} ")[2].partition(" [Op:")[0]
  return None
