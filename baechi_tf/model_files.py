"""Copies the files of a model, so that the copy needs nothing outside it.

A symbolic link becomes a copy of what it leads to. A link that leads out of the
model is only followed if that is asked for: a model that someone else made
could otherwise bring any of this user's files into the copy.
"""

import os
import shutil
from collections.abc import Collection


def copy_model_files(
  source: str,
  target: str,
  *,
  apart_from: Collection[str] = (),
  follow_links: bool = False,
) -> None:
  """Copies a model's files and directories into an existing directory.

  Args:
    source: the model's directory.
    target: the directory to fill.
    apart_from: names at the top of `source` that are not copied.
    follow_links: whether links that lead out of `source` are followed.

  Raises:
    ValueError: a link leads out of the model, nowhere, or to a directory that
      it is in; or something is neither a file nor a directory.
    OSError: a file cannot be read or written.
  """
  root = os.path.realpath(source)
  pending = [("", (root,))]  # a directory, and the real ones that it is in
  while pending:
    inside, above = pending.pop()
    for name in sorted(os.listdir(os.path.join(source, inside))):
      if not inside and name in apart_from:
        continue
      relative = os.path.join(inside, name)
      path, copy = (
        os.path.join(source, relative),
        os.path.join(target, relative),
      )
      real = os.path.realpath(path)
      if os.path.islink(path):
        _check_link(path, relative, real, above, follow_links)
      if os.path.isdir(real):
        os.mkdir(copy)
        pending.append((relative, (*above, real)))
      elif os.path.isfile(real):
        shutil.copyfile(real, copy)
      else:
        raise ValueError(f"{path} is neither a file nor a directory; remove it")


def _check_link(path, relative, real, above, follow_links) -> None:
  if not os.path.exists(path):
    raise ValueError(f"{path} is a link that leads nowhere; remove it")
  if not _is_in(real, above[0]) and not follow_links:
    raise ValueError(
      f"{relative} is a link out of the model, to {real}; give"
      " follow_links=True to copy what such links lead to"
    )
  if any(_is_in(directory, real) for directory in above):
    raise ValueError(f"{path} is a link to a directory that it is in")


def _is_in(path: str, directory: str) -> bool:
  return os.path.commonpath([path, directory]) == directory
