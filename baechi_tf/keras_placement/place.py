"""Plans a Keras model's training step and places the model accordingly."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.costs.measured import measure
from baechi_tf.costs.profile import Profile
from baechi_tf.graph_item import GraphItem
from baechi_tf.keras_placement.checks import check_batch
from baechi_tf.keras_placement.checks import check_devices
from baechi_tf.keras_placement.checks import check_model
from baechi_tf.keras_placement.placed_step import Layout
from baechi_tf.keras_placement.placed_step import PlacedStep
from baechi_tf.keras_placement.step_graph import batch_specs
from baechi_tf.keras_placement.step_graph import StepGraph
from baechi_tf.keras_placement.step_graph import trace_step
from baechi_tf.keras_placement.variables import move_variables
from baechi_tf.keras_placement.variables import variables_by_handle
from baechi_tf.placement_pass import PlacementPass
from baechi_tf.planner import Plan
from baechi_tf.python_item import as_tensors

_STEPS = ("train_step", "test_step", "predict_step")


def place_keras(
  model: keras.Model,
  cluster: Cluster,
  example_batch: Any,
  *,
  placement_pass: PlacementPass | None = None,
  estimate: bool = False,
) -> Plan:
  """Places a compiled model, which then runs where the returned plan says.

  The training step that `fit` would run is planned, the model's and the
  optimizer's variables move to their devices, and `fit`, `evaluate`, `predict`
  and their `_on_batch` kin run on all of them. The numbers stay the same.

  Args:
    model: a compiled `keras.Model`; one that is not built is built on the
      batch. Placed before, it is placed anew.
    cluster: the devices, by the names that TensorFlow knows them under; the
      first is the one that data sets put batches on.
    example_batch: `(x, y)` or `(x, y, sample_weight)`, a batch as large as the
      largest that the model will train on; memory is planned for it.
    placement_pass: how to plan, and what is known of the ops' costs; default
      the best of all placers, on costs that are measured here on this batch.
    estimate: estimate every op from the cluster's `device_types`. By default
      ops are measured for CPUs and for GPUs that the cluster does not describe,
      and estimated for others.

  Returns:
    The plan of the training step, with the predicted step and its peak memory.

  Raises:
    ValueError: the model, the batch or a device is not right; the message says
      what to change.
    InfeasiblePlacementError: no plan was found that fits the memory.
  """
  check_model(model)
  check_devices(cluster)
  batch = _as_batch(example_batch)
  num_examples = check_batch(batch)
  own = {name: _own_step(model, name) for name in _STEPS}
  specs = batch_specs(batch, any_rows=True)
  step = _traced(model, own["train_step"], specs, batch)
  placement_pass = placement_pass or PlacementPass()
  if placement_pass.profile is None and not estimate:
    profile = _measured(step.item, cluster, batch)
    placement_pass = dataclasses.replace(placement_pass, profile=profile)
  placement_pass = dataclasses.replace(placement_pass, batch_size=num_examples)
  planned = placement_pass.plan(cluster, step.item)
  order = placement_pass.ordered_ops(planned)
  _install(model, own, step, specs, planned, order)
  return planned


def _as_batch(batch: Any) -> Any:
  """Returns the arrays in a batch as tensors."""

  def as_tensor(value):
    known = value is None or tf.is_tensor(value)
    return value if known else as_tensors(value)

  return tf.nest.map_structure(as_tensor, batch)


def _own_step(model: keras.Model, name: str):
  """Returns the model's own step, of a placed model too."""
  step = getattr(model, name)
  return step.original if isinstance(step, PlacedStep) else step


def _traced(model, train_step, specs, batch) -> StepGraph:
  try:
    return trace_step(train_step, specs, lambda: variables_by_handle(model))
  except (TypeError, tf.errors.OpError) as error:
    shapes = tf.nest.map_structure(lambda x: getattr(x, "shape", x), batch)
    raise ValueError(
      f"model {model.name!r} cannot train on example_batch, of the shapes"
      f" {shapes}: {error}"
    ) from error


def _measured(item: GraphItem, cluster: Cluster, batch: Any) -> Profile:
  """Returns what the ops take here, by the device types that are here."""
  fed = [
    x for x in tf.nest.flatten(batch, expand_composites=True) if tf.is_tensor(x)
  ]
  values = {
    feed.name: np.asarray(x) for feed, x in zip(item.feeds, fed, strict=True)
  }
  try:
    return {
      name: measure(item, values, device_type=name)
      for name in dict.fromkeys(cluster.types)
      if name == "CPU" or (name == "GPU" and name not in cluster.device_types)
    }
  except tf.errors.OpError as error:
    reason = error.message.partition("\n")[0]
    raise ValueError(
      f"the step cannot be measured here: {reason}; pass estimate=True, or a"
      " placement_pass with a profile"
    ) from error


def _install(model, own, step: StepGraph, specs, planned: Plan, order) -> None:
  """Moves the variables, and gives Keras the placed steps."""
  device_of = planned.placement.as_dict()
  device_of_variable = {
    id(variable): device_of[name] for name, variable in step.variables.items()
  }
  layout = Layout(
    planned.placement.device_names, device_of, order, device_of_variable
  )
  move_variables(step.variables.values(), device_of_variable)
  for name, original in own.items():
    trains = name == "train_step"
    setattr(model, name, PlacedStep(model, original, layout, trains=trains))
  model.train_step.add(specs, step, device_of)
  # Keras makes them anew, of the placed steps.
  model.train_function = None
  model.test_function = None
  model.predict_function = None
