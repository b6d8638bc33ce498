"""Checks where output is to go, before the work whose output it is."""

import os
from collections.abc import Callable

from baechi_tf.reports.directory import is_report


def check_output(
  path: str,
  *,
  apart_from: tuple[str, ...],
  overwrite: bool,
  is_ours: Callable[[str], bool],
  kind: str,
) -> None:
  """Checks that the output can be written and destroys nothing.

  Args:
    path: a file or directory to write.
    apart_from: paths that must not contain it, nor lie in it.
    overwrite: whether what is there may be replaced.
    is_ours: whether what is at a path is of the kind that would replace it.
    kind: in words, such as "a SavedModel".

  Raises:
    ValueError: it cannot.
  """
  for other in apart_from:
    _check_apart(path, other)
  parent = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(parent):
    raise ValueError(f"cannot write {path}: there is no directory {parent}")
  if not os.access(parent, os.W_OK):
    raise ValueError(f"cannot write {path}: {parent} is not writable")
  if not os.path.lexists(path):
    return
  if not overwrite:
    raise ValueError(
      f"{path} exists; give --overwrite to replace it, or another path"
    )
  if not is_ours(path):
    raise ValueError(
      f"{path} is not {kind}, so --overwrite does not replace it; remove it"
      " yourself or choose another path"
    )


def check_report(
  path: str, apart_from: tuple[str, ...], overwrite: bool
) -> None:
  """Checks that a report can be written there, see `check_output`.

  Raises:
    ValueError: it cannot.
  """
  check_output(
    path,
    apart_from=apart_from,
    overwrite=overwrite,
    is_ours=is_report,
    kind="a report",
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
