"""Exports a compiled Keras model as a SavedModel that trains."""

import os
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from baechi_tf import atomic
from baechi_tf.keras_placement.batch import as_batch
from baechi_tf.keras_placement.batch import batch_specs
from baechi_tf.keras_placement.batch import check_batch
from baechi_tf.keras_placement.checks import check_compiled
from baechi_tf.keras_placement.placed_step import own_step
from baechi_tf.keras_placement.step_graph import check_captures
from baechi_tf.keras_placement.variables import variables_by_handle
from baechi_tf.output_path import saved_model_output

_PARTS = ("x", "y", "sample_weight")


def export_keras(
  model: keras.Model,
  path: str | os.PathLike,
  example_batch: Any,
  *,
  overwrite: bool = False,
) -> None:
  """Writes a compiled model as a SavedModel that trains, whole or not at all.

  Its signatures take batches of any size:

  - "train" runs the model's own training step, which updates its variables, and
    returns the loss and the metrics of that batch;
  - "evaluate" returns those of a batch and trains nothing;
  - "serving_default" takes `x` alone and returns the model's outputs.

  Inputs are named "x", "y" and "sample_weight"; parts of a structure are named
  after their place in it, such as "x_0" or "x_image". Outputs are named after
  the metrics and, of the model, by their keys or "output_0" and so on.

  Args:
    model: a compiled `keras.Model`; one that is not built is built on the
      batch. Its values stay as they are. A placed model is exported as it was.
    path: the SavedModel's directory.
    example_batch: `(x, y)` or `(x, y, sample_weight)`, as `fit` would get it.
    overwrite: whether a SavedModel at `path` may be replaced.

  Raises:
    ValueError: the model, the batch or the path is not right, or a step uses a
      resource that is no Keras variable, such as a table.
    OSError: the files cannot be written.
  """
  check_compiled(model)
  output = saved_model_output(os.fspath(path), overwrite)
  output.check(apart_from=())
  batch = as_batch(example_batch)
  check_batch(batch)
  specs = batch_specs(batch, any_rows=True)
  signatures = {
    "train": _signature(_of_batch(model, "train_step"), specs),
    "evaluate": _signature(_of_batch(model, "test_step"), specs),
    "serving_default": _signature(_prediction(model), specs[:1]),
  }
  traced = {
    name: function.get_concrete_function()
    for name, function in signatures.items()
  }
  by_handle = variables_by_handle(model)
  for name, function in traced.items():
    check_captures(function.captured_inputs, by_handle, name)
  # A tracked Keras model would be saved with a function for each layer.
  module = tf.Module()
  module.state = [x.value for x in by_handle.values()]
  with (
    atomic.publishing() as outputs,
    outputs.directory(output.path, output.check_replaced) as directory,
  ):
    tf.saved_model.save(module, directory, traced)


def _of_batch(model: keras.Model, name: str) -> Callable[[Any], Any]:
  """Returns a model's step, whose metrics are those of one batch."""
  step = own_step(model, name)

  def run(data):
    for metric in model.metrics:
      metric.reset_state()
    logs = step(data)
    return logs if isinstance(logs, dict) else {"loss": logs}

  return run


def _prediction(model: keras.Model) -> Callable[[Any], Any]:
  """Returns a model's step that predicts, with names for its outputs."""
  step = own_step(model, "predict_step")

  def run(data):
    outputs = step(data)
    if isinstance(outputs, dict):
      return outputs
    return {f"output_{i}": x for i, x in enumerate(keras.tree.flatten(outputs))}

  return run


def _signature(
  step: Callable[[Any], Any], specs: tuple[Any, ...]
) -> tf.types.experimental.PolymorphicFunction:
  """Returns a step as a function of named tensors, of named tensors.

  Args:
    step: takes a batch, and returns a dictionary of tensors.
    specs: the types in the batch.
  """
  signature = []
  for part, structure in zip(_PARTS, specs, strict=False):
    for place, spec in keras.tree.flatten_with_path(structure):
      name = _name(part, *place)
      if isinstance(spec, tf.TensorSpec):
        signature.append(tf.TensorSpec(spec.shape, spec.dtype, name))
      elif spec is not None:
        raise ValueError(
          f"example_batch: {name} is {type(spec).__name__}; a signature takes"
          " dense tensors alone"
        )

  @tf.function(autograph=False, input_signature=signature)
  def run(*tensors):
    given = iter(tensors)
    data = keras.tree.map_structure(
      lambda x: None if x is None else next(given), specs
    )
    outputs = keras.tree.flatten_with_path(step(data))
    return {_name(*place): tensor for place, tensor in outputs}

  return run


def _name(*place: Any) -> str:
  return re.sub(r"\W", "_", "_".join(map(str, place)))
