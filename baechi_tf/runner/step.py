"""A loaded step of a SavedModel, with its inputs, ready to be called."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf.saved_model import load
from baechi_tf.signatures import choose_signature


def load_step(
  path: str,
  signature: str | None,
  tags: Iterable[str] | None,
  inputs: str,
  device: str | None = None,
) -> Callable[[], None]:
  """Returns a function that runs the step once, on the same inputs each time.

  Args:
    path: the SavedModel.
    signature: which signature; None for the only one, else serving_default.
    tags: which graph; None if there is only one.
    inputs: a NumPy archive with an array for every feed of the item.
    device: where all of a model goes that is not placed; None for a placed one.

  Raises:
    ValueError: there is no such signature, or an input has no plain form.
    OSError: a file cannot be read.
  """
  with contextlib.ExitStack() as stack:
    if device:
      stack.enter_context(tf.device(device))
    model = load(path, tags)
  names = sorted(model.signatures)
  function = model.signatures[choose_signature(names, signature)]
  with np.load(inputs, allow_pickle=True) as archive:  # a file of our own
    values = dict(archive.items())
  _, specs = function.structured_input_signature
  arguments = {name: _value(name, x, values) for name, x in specs.items()}

  # A function does not hold the model's variables.
  return functools.partial(_step, model, function, arguments, device)


def _step(model, function, arguments, device: str | None) -> None:
  del model
  with tf.device(device):
    function(**arguments)


def _value(name: str, spec, values: Mapping[str, np.ndarray]):
  if isinstance(spec, tf.SparseTensorSpec):
    return tf.SparseTensor(
      values[f"{name}/indices"],
      values[f"{name}/values"],
      values[f"{name}/dense_shape"],
    )
  if not isinstance(spec, tf.TensorSpec):
    raise ValueError(
      f"input {name!r} is a {type(spec).__name__}, which `run` cannot feed"
    )
  return tf.constant(values[name], spec.dtype)
