"""Finds private modules of TensorFlow, or says which one is missing."""

import importlib
from types import ModuleType

import tensorflow as tf

CHECKED = "2.21 and 2.22"


def find(path: str, purpose: str) -> ModuleType:
  """Returns a private module of TensorFlow.

  Args:
    path: its dotted path.
    purpose: the use of the module, for the message.

  Raises:
    ImportError: the installed TensorFlow does not have it.
  """
  try:
    return importlib.import_module(path)
  except ImportError as error:
    raise ImportError(
      f"TensorFlow {tf.__version__} has no {path}, which baechi_tf needs for"
      f" {purpose}: install TensorFlow {CHECKED}, with which it was checked"
      f" ({error})"
    ) from error
