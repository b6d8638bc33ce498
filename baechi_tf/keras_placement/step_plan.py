"""Plans a Keras model's training step, whole or cut into micro-batches."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostSource
from baechi_tf.graph_item import GraphItem
from baechi_tf.keras_placement.layer_pins import op_pins
from baechi_tf.keras_placement.micro_batches import check_divisible
from baechi_tf.keras_placement.micro_batches import micro_batched
from baechi_tf.keras_placement.micro_batches import notes_of
from baechi_tf.keras_placement.step_graph import StepGraph
from baechi_tf.keras_placement.step_graph import trace_step
from baechi_tf.keras_placement.variables import variables_by_handle
from baechi_tf.micro_batch_plan import plan_micro_batches
from baechi_tf.pipeline import cost_item
from baechi_tf.pipeline import Progress
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import Plan
from baechi_tf.planner import plan

AUTO = "auto"
_TRIED = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
  """A training step and its plan.

  Attributes:
    run: the step as a function of a batch.
    graph: its trace that was planned.
    plan: the plan of that.
  """

  run: Callable[[Any], Any]
  graph: StepGraph
  plan: Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Planner:
  """What all plans of one model's training step have in common.

  Attributes:
    model: the model.
    train_step: its own training step.
    specs: the types of a batch, from `batch_specs`.
    batch: the example batch, of tensors.
    cluster: the devices.
    source: where costs come from.
    order: whether control edges keep the planned order.
    pins: device names by layer path or by regular expression of op names.
    arguments: more arguments of `planner.plan`.
    progress: called with a line before each stage.
  """

  model: keras.Model
  train_step: Callable[[Any], Any]
  specs: Any
  batch: Any
  cluster: Cluster
  source: CostSource
  order: bool
  pins: Mapping[str, str]
  arguments: Mapping[str, Any]
  progress: Progress

  def plan(self, micro_batches: int | str, num_rows: int) -> StepPlan:
    """Returns the step of so many micro-batches, planned.

    Args:
      micro_batches: the number, or "auto" for the fastest of 1, 2, 4 and 8.
      num_rows: the number of examples in the batch.

    Raises:
      ValueError: the step cannot be cut so, traced or costed.
      InfeasiblePlacementError: no plan was found that fits the memory.
    """
    if micro_batches != 1:
      check_divisible(self.model, self.train_step)
    if micro_batches != AUTO:
      _check_number(micro_batches, num_rows)
      return self._planned(micro_batches)
    best, error, lines = None, None, []
    for num in _TRIED:
      if num_rows % num:
        continue
      try:
        found = self._planned(num)
      except InfeasiblePlacementError as infeasible:
        error = infeasible
        lines.append(f"{num}: does not fit")
        continue
      makespan_us = found.plan.simulation.makespan_us
      lines.append(f"{num}: {makespan_us / 1000:.2f} ms")
      if best is None or makespan_us < best.plan.simulation.makespan_us:
        best = found
    if best is None:
      raise error
    note = f"micro-batches and the predicted step: {'; '.join(lines)}"
    return _with_notes(best, (note,))

  def _planned(self, num: int) -> StepPlan:
    run, graph = self.train_step, None
    if num == 1 or not self.model._compile_loss.built:
      self.progress("tracing the training step")
      graph = self._traced(run)  # builds the losses too
    if num > 1:
      self.progress(f"tracing the training step of {num} micro-batches")
      run = micro_batched(self.model, num)
      graph = self._traced(run)
    source = self.source
    if source.measured_types(self.cluster):
      source = dataclasses.replace(
        source, inputs=_values(graph.item, self.batch)
      )
    costed = cost_item(graph.item, self.cluster, source, self.progress)
    planned = (plan_micro_batches if num > 1 else plan)(
      costed.graph,
      self.cluster,
      order=self.order,
      pins=op_pins(self.model, graph, self.pins),
      progress=self.progress,
      **self.arguments,
    )
    notes = notes_of(self.model) if num > 1 else ()
    return _with_notes(StepPlan(run, graph, planned), (*costed.notes, *notes))

  def _traced(self, train_step) -> StepGraph:
    model = self.model
    try:
      return trace_step(
        train_step, self.specs, lambda: variables_by_handle(model)
      )
    except (TypeError, tf.errors.OpError) as error:
      shapes = tf.nest.map_structure(
        lambda x: getattr(x, "shape", x), self.batch
      )
      raise ValueError(
        f"model {model.name!r} cannot train on example_batch, of the shapes"
        f" {shapes}: {error}"
      ) from error


def _with_notes(found: StepPlan, notes: tuple[str, ...]) -> StepPlan:
  planned = dataclasses.replace(found.plan, notes=(*notes, *found.plan.notes))
  return dataclasses.replace(found, plan=planned)


def _check_number(num: Any, num_rows: int) -> None:
  """Raises ValueError if a batch cannot be cut into so many slices."""
  if isinstance(num, bool) or not isinstance(num, int) or num < 1:
    raise ValueError(
      f'micro_batches={num!r} must be a whole number from 1, or "{AUTO}"'
    )
  if num_rows % num:
    divisors = [i for i in range(1, num_rows + 1) if num_rows % i == 0]
    raise ValueError(
      f"micro_batches={num} does not divide the {num_rows} examples of"
      f" example_batch: use one of {', '.join(map(str, divisors))}"
    )


def _values(item: GraphItem, batch: Any) -> dict[str, np.ndarray]:
  """Returns a batch's arrays by the names of the step's inputs."""
  fed = [
    x for x in tf.nest.flatten(batch, expand_composites=True) if tf.is_tensor(x)
  ]
  return {
    feed.name: np.asarray(x) for feed, x in zip(item.feeds, fed, strict=True)
  }
