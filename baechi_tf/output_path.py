"""Checks where output is to go, before the work and when it is published."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class OutputPath:
  """A path to write, and what may be replaced there.

  Attributes:
    path: a file or directory.
    overwrite: whether what is there may be replaced.
    is_ours: whether what is at a path is of the kind that would replace it.
    kind: the kind in words, such as "a SavedModel".
  """

  path: str
  overwrite: bool
  is_ours: Callable[[str], bool]
  kind: str

  def check(self, apart_from: tuple[str, ...]) -> None:
    """Checks that the output can be written and destroys nothing.

    Args:
      apart_from: paths that must not contain the output, nor lie in it.

    Raises:
      ValueError: the output cannot be written, or would destroy something.
    """
    for other in apart_from:
      _check_apart(self.path, other)
    parent = os.path.dirname(os.path.realpath(self.path))
    if not os.path.isdir(parent):
      raise ValueError(
        f"cannot write {self.path}: there is no directory {parent}"
      )
    try:
      with contextlib.suppress(FileNotFoundError):
        os.lstat(self.path)  # its name may be too long
      # Nobody, root either, can write to some file systems.
      tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
      raise ValueError(
        f"cannot write {self.path}: {parent} takes no such file"
        f" ({error.strerror})"
      ) from None
    if os.path.lexists(self.path):
      self.check_replaced(self.path)

  def check_replaced(self, there: str) -> None:
    """Checks that the output may replace something.

    Args:
      there: where the thing is: at the path, or already moved from it.

    Raises:
      ValueError: the thing must stay.
    """
    if not self.overwrite:
      raise ValueError(
        f"{self.path} exists; give overwrite=True to replace it, or another"
        " path"
      )
    if not self.is_ours(there):
      raise ValueError(
        f"{self.path} is not {self.kind}, so overwrite=True does not replace"
        " it; remove it yourself or choose another path"
      )


def file_output(path: str, overwrite: bool) -> OutputPath:
  """Returns the path of a file to write."""
  return OutputPath(path, overwrite, os.path.isfile, "a file")


def saved_model_output(path: str, overwrite: bool) -> OutputPath:
  """Returns the path of a SavedModel to write."""
  return OutputPath(path, overwrite, _is_saved_model, "a SavedModel")


def placed_output(model: str, path: str, overwrite: bool) -> OutputPath:
  """Returns the path of a placed model to write, of the kind of the model.

  Args:
    model: a SavedModel's directory, or a graph file.
    path: a directory for a SavedModel, for a graph file a name that ends in
      ".pb" or ".pbtxt".
    overwrite: whether what is at the path may be replaced.

  Raises:
    ValueError: the name is not one for a graph file.
  """
  if os.path.isdir(model):
    return saved_model_output(path, overwrite)
  # A file of another name is refused when it is read.
  is_graph = os.path.isfile(model) and model.endswith(
    (".pb", ".pbtxt", ".meta")
  )
  if is_graph and not path.endswith((".pb", ".pbtxt")):
    raise ValueError(
      f"the placed graph of {model} needs a name that ends in .pb or .pbtxt,"
      f" not {path}"
    )
  return file_output(path, overwrite)


def _is_saved_model(path: str) -> bool:
  return any(
    os.path.isfile(os.path.join(path, name))
    for name in ("saved_model.pb", "saved_model.pbtxt")
  )


def _check_apart(path: str, other: str) -> None:
  real, real_other = os.path.realpath(path), os.path.realpath(other)
  common = os.path.commonpath([real, real_other])
  if real == real_other:
    raise ValueError(f"{path} and {other} are the same; choose another output")
  if common == real_other:
    raise ValueError(f"the output {path} is inside {other}; choose another")
  if common == real:
    raise ValueError(
      f"{other} is inside the output {path}, which would be replaced; choose"
      " another"
    )
