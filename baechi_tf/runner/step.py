"""A loaded step of a SavedModel, with its inputs, ready to be called."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf import private
from baechi_tf.saved_model import load
from baechi_tf.signatures import choose_signature

context = private.find(
  "tensorflow.python.eager.context", "the graphs that a step runs as"
)

# The device of each node, and of each send the tensor and where it goes.
Executed = tuple[dict[str, str], dict[str, tuple[str, str]]]


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

  return functools.partial(_step, model, function, arguments, device)


def _step(model, function, arguments, device: str | None) -> None:
  """Runs the step, up to its outputs being here: a remote call returns early.

  The model is held because a function does not hold its variables.
  """
  del model
  with tf.device(device):
    outputs = function(**arguments)
  for output in tf.nest.flatten(outputs, expand_composites=True):
    output.numpy()


def executed_graph(step: Callable[[], None]) -> Executed:
  """Runs a step for the first time and returns what TensorFlow runs for it.

  Raises:
    RuntimeError: the step has run before: TensorFlow does not tell again.
  """
  context.enable_run_metadata()
  try:
    step()
    metadata = context.export_run_metadata()
  finally:
    context.disable_run_metadata()
  # Whatever else runs, such as a constant, is a function of its own: the step
  # is the largest.
  graphs = max(
    (x.partition_graphs for x in metadata.function_graphs),
    key=lambda graphs: sum(len(x.node) for x in graphs),
    default=(),
  )
  device_of, sends = {}, {}
  for node in (node for graph in graphs for node in graph.node):
    device_of[node.name] = node.device
    if node.op == "_Send":
      receiver = node.attr["recv_device"].s.decode()
      sends[node.name] = (node.input[0], receiver)
  return device_of, sends


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
