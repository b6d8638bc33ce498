"""Finds private parts of TensorFlow and Keras, or says which one is missing.

Other versions than those that were checked are welcome, as long as what a hook
needs is there and takes the arguments that the hook knows.
"""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

CHECKED = "TensorFlow 2.21 and 2.22, Keras 3.15 and 3.16"


def check_backend() -> None:
  """Checks that Keras runs on TensorFlow.

  Raises:
    ValueError: it does not.
  """
  if keras.backend.backend() != "tensorflow":
    raise ValueError(
      f"Keras runs on {keras.backend.backend()!r}, robust_tf needs"
      " 'tensorflow': set KERAS_BACKEND=tensorflow"
    )


def find(hook: str, path: str, parameters: Sequence[str] = ()) -> Any:
  """Returns a module, class or function by its dotted path.

  Args:
    hook: the `__name__` of the module that needs it.
    path: for example `keras.optimizers.Optimizer._clip_gradients`.
    parameters: the names of a function's first parameters. Any more that it has
      must have defaults.

  Raises:
    ValueError: it is not there, or takes other arguments.
  """
  found, rest = _imported(path)
  for name in rest:
    if not hasattr(found, name):
      raise _error(hook, path, parameters, "is not there")
    found = getattr(found, name)
  if parameters:
    signature = inspect.signature(found)
    if not _takes(signature, parameters):
      raise _error(hook, path, parameters, f"takes {signature}")
  return found


def attribute(hook: str, owner: Any, name: str) -> Any:
  """Returns an attribute of an object.

  Raises:
    ValueError: the object has no such attribute.
  """
  if not hasattr(owner, name):
    kind = type(owner)
    path = f"{kind.__module__}.{kind.__qualname__}.{name}"
    raise _error(hook, path, (), "is not there")
  return getattr(owner, name)


def broken(hook: str, path: str, behaviour: str) -> ValueError:
  """Returns the error that a private part does not do what a hook relies on.

  Args:
    hook: the `__name__` of the module that relies on it.
    path: the dotted path of the part.
    behaviour: what it does instead.
  """
  return _error(hook, path, (), behaviour)


def _imported(path: str) -> tuple[Any, list[str]]:
  """Returns the innermost module of a path, and the names after it."""
  names = path.split(".")
  module = importlib.import_module(names[0])
  for i in range(1, len(names)):
    try:
      module = importlib.import_module(".".join(names[: i + 1]))
    except ModuleNotFoundError:
      return module, names[i:]
  return module, []


def _takes(signature: inspect.Signature, parameters: Sequence[str]) -> bool:
  found = list(signature.parameters.values())
  optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  return [p.name for p in found[: len(parameters)]] == list(parameters) and all(
    p.kind in optional or p.default is not inspect.Parameter.empty
    for p in found[len(parameters) :]
  )


def _error(hook, path, parameters, found: str) -> ValueError:
  arguments = f"({', '.join(parameters)})" if parameters else ""
  return ValueError(
    f"the hook {hook.rpartition('.')[2]} of robust_tf needs {path}{arguments},"
    f" which {found} in TensorFlow {tf.__version__} with Keras"
    f" {keras.__version__}: install versions that it was checked with,"
    f" {CHECKED}"
  )
