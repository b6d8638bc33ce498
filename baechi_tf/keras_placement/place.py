"""Plans a Keras model's training step and places the model accordingly."""

import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras

from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostSource
from baechi_tf.costs.profile import Profile
from baechi_tf.keras_placement.batch import as_batch
from baechi_tf.keras_placement.batch import batch_specs
from baechi_tf.keras_placement.batch import check_batch
from baechi_tf.keras_placement.checks import check_devices
from baechi_tf.keras_placement.checks import check_model
from baechi_tf.keras_placement.lost_process import report_lost_processes
from baechi_tf.keras_placement.micro_batches import is_keras_step
from baechi_tf.keras_placement.placed_step import Layout
from baechi_tf.keras_placement.placed_step import own_step
from baechi_tf.keras_placement.placed_step import PlacedStep
from baechi_tf.keras_placement.step_plan import Planner
from baechi_tf.keras_placement.step_plan import StepPlan
from baechi_tf.keras_placement.variables import move_variables
from baechi_tf.micro_batch_graph import name_without_scope
from baechi_tf.pipeline import Progress
from baechi_tf.planner import BEST
from baechi_tf.planner import check_placer
from baechi_tf.planner import default_budget
from baechi_tf.planner import Plan
from baechi_tf.search.budget import Budget

_STEPS = ("train_step", "test_step", "predict_step")


def place_keras(
  model: keras.Model,
  cluster: Cluster,
  example_batch: Any,
  *,
  micro_batches: int | str = 1,
  profile: Profile | str | os.PathLike | None = None,
  estimate: bool = False,
  placer: str = BEST,
  coplacement: bool = True,
  fusion: bool = True,
  order: bool = True,
  pins: Mapping[str, str] = MappingProxyType({}),
  budget: Budget | None = None,
  progress: Progress = lambda stage: None,
) -> Plan:
  """Places a compiled model, which then runs where the returned plan says.

  The training step that `fit` would run is planned, the model's and the
  optimizer's variables move to their devices, and `fit`, `evaluate`, `predict`
  and their `_on_batch` kin run on all of them. The numbers stay the same,
  those of micro-batches up to the order of sums.

  Args:
    model: a compiled `keras.Model`; one that is not built is built on the
      batch. Placed before, it is placed anew.
    cluster: the devices, by the names that TensorFlow knows them under; the
      first is the one that data sets put batches on.
    example_batch: `(x, y)` or `(x, y, sample_weight)`, or what a `train_step`
      of the model's own takes; a batch as large as the largest that the model
      will train on, because memory is planned for it.
    micro_batches: the number of slices of a batch that the training step takes
      one after another, so that devices work on several at a time; their
      gradients are added up for one update. "auto" plans with 1, 2, 4 and 8,
      those that divide the batch, and takes the fastest.
    profile: measured costs by device type, or a profile file's path; ops that
      it lacks are estimated. With neither a profile nor `estimate`, ops are
      measured here, on this batch.
    estimate: whether all ops are estimated, see `CostSource`.
    placer: a name in `PLACERS`, or "best", which tries all and searches on.
    coplacement: whether ops may be co-placed before they are placed.
    fusion: whether co-placed ops may be contracted to one.
    order: whether control edges keep the planned order of ops that take long.
    pins: device names by the path or name of a layer, such as
      "encoder/embedding", or by a regular expression that is found in names of
      ops; these are on that device with the layer's variables, whatever else
      is planned. See `docs/steering.md`.
    budget: the time or placements that the search of "best" may take; default
      two seconds.
    progress: called with a line before each stage, and during long ones.

  Returns:
    The plan of the training step, with the predicted step, its peak memory and
    notes of all stages.

  Raises:
    ValueError: the model, the batch, a device or an argument is not right; the
      message says what to change.
    OSError: the profile cannot be read.
    InfeasiblePlacementError: no plan was found that fits the memory.
  """
  source = CostSource(profile=profile, estimate=estimate)
  budget = default_budget(placer) if budget is None else budget
  check_placer(placer, budget)
  check_model(model)
  check_devices(cluster)
  source.check_types(cluster)
  batch = as_batch(example_batch)
  own = {name: own_step(model, name) for name in _STEPS}
  num_examples = check_batch(
    batch, any_structure=not is_keras_step(own["train_step"])
  )
  if not source.measured_types(cluster):
    source = dataclasses.replace(source, batch_size=num_examples)
  specs = batch_specs(batch, any_rows=True)
  planner = Planner(
    model=model,
    train_step=own["train_step"],
    specs=specs,
    batch=batch,
    cluster=cluster,
    source=source,
    order=order,
    pins=pins,
    arguments={
      "placer": placer,
      "coplacement": coplacement,
      "fusion": fusion,
      "budget": budget,
    },
    progress=progress,
  )
  found = planner.plan(micro_batches, num_examples)
  _install(model, own, found, specs)
  return found.plan


def _install(model, own, found: StepPlan, specs) -> None:
  """Moves the variables, and gives Keras the placed steps."""
  planned, step = found.plan, found.graph
  device_of = planned.placement.as_dict()
  device_of_variable = {
    id(variable): device_of[name] for name, variable in step.variables.items()
  }
  # Evaluation has the ops of a micro-batch, without its scope.
  unscoped = {name_without_scope(name): x for name, x in device_of.items()}
  layout = Layout(
    planned.placement.device_names,
    unscoped | device_of,
    planned.ordered_ops,
    device_of_variable,
  )
  move_variables(step.variables.values(), device_of_variable)
  for name, original in own.items():
    if name == "train_step":
      placed = PlacedStep(model, original, layout, trains=found.run)
    else:
      placed = PlacedStep(model, original, layout)
    setattr(model, name, placed)
  model.train_step.add(specs, step, device_of)
  report_lost_processes(model, planned.placement.device_names)
  # Keras makes them anew, of the placed steps.
  model.train_function = None
  model.test_function = None
  model.predict_function = None
