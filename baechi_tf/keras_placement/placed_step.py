"""The step that Keras calls in place of the model's own: the placed graph."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from baechi_tf.costs.profile import OpCost
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.keras_placement.batch import batch_specs
from baechi_tf.keras_placement.carry import carried_devices
from baechi_tf.keras_placement.step_graph import StepGraph
from baechi_tf.keras_placement.step_graph import trace_step
from baechi_tf.keras_placement.variables import variables_by_handle
from baechi_tf.order_edges import order_edges

GraphDef = tf.compat.v1.GraphDef


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """The devices of a model's ops and variables.

  Attributes:
    devices: the names of the cluster's devices, the client's first.
    device_of: the device of each op of the training step that was planned.
    order: the ops that control edges keep in order, as they start.
    variables: the device of each variable, by the `id` of the Keras variable.
  """

  devices: tuple[str, ...]
  device_of: Mapping[str, str]
  order: Sequence[str]
  variables: Mapping[int, str]


class PlacedStep:
  """Runs a model's step where a plan says; Keras traces it as its own.

  Attributes:
    original: the model's own step.
  """

  def __init__(
    self,
    model: keras.Model,
    original: Callable[[Any], Any],
    layout: Layout,
    *,
    trains: Callable[[Any], Any] | None = None,
  ):
    """Makes a step that has no trace yet.

    Args:
      model: the model.
      original: the model's own step.
      layout: the devices of the model's ops and variables.
      trains: the training step that is placed in place of `original`, which may
        be `original`; None for other steps.
    """
    self.original = original
    self._step = trains or original
    self._model = model
    self._layout = layout
    self._trains = trains is not None
    # Keras makes a new one in each `compile`.
    self._compiled = model._compile_config
    self._placed = []  # of each trace the batch's types, and the placed graph

  def add(self, specs: Any, step: StepGraph, device_of: Mapping) -> None:
    """Adds a trace whose ops' devices are known."""
    self._placed.append(
      (specs, step, _placed_graph(step, device_of, self._layout.order))
    )

  def __call__(self, data: Any) -> Any:
    """Returns what the step returns for a batch, inside a traced function.

    Raises:
      ValueError: the model runs eagerly, or was compiled anew since it was
        placed.
    """
    if tf.executing_eagerly():
      raise ValueError(
        f"model {self._model.name!r} is placed and cannot run eagerly: compile"
        " it with run_eagerly=False and place it again, and leave"
        " tf.config.run_functions_eagerly off"
      )
    if self._compiled is not self._model._compile_config:
      if self._trains:
        raise ValueError(
          f"model {self._model.name!r} was compiled anew after it was placed,"
          " and its plan is of the step from before: call"
          " baechi_tf.place_keras again"
        )
      self._compiled = self._model._compile_config
      self._placed = []  # they have the losses and metrics from before
    step, placed = self._for(batch_specs(data))
    return _call(step, placed, data)

  def _for(self, specs: Any) -> tuple[StepGraph, GraphDef]:
    for known, step, placed in self._placed:
      if known == specs:
        return step, placed
    step = trace_step(
      self._step, specs, lambda: variables_by_handle(self._model)
    )
    self.add(specs, step, self._devices(step))
    return self._placed[-1][1:]

  def _devices(self, step: StepGraph) -> dict[str, str]:
    """Returns the devices of a step other than the one that was planned."""
    index = {name: i for i, name in enumerate(self._layout.devices)}
    variables = {}
    for name, variable in step.variables.items():
      device = self._layout.variables.get(id(variable))
      if device is None and self._trains:
        raise ValueError(
          f"model {self._model.name!r} has a variable that its plan lacks,"
          f" {variable.path!r}: it was changed after it was placed; call"
          " baechi_tf.place_keras again"
        )
      if device is not None:
        variables[name] = index[device]
    device_of = self._layout.device_of
    graph = _graph_without_costs(step)
    known = {x: index[device_of[x]] for x in graph.names if x in device_of}
    device = carried_devices(graph, variables, known)
    return {
      name: self._layout.devices[i]
      for name, i in zip(graph.names, device.tolist(), strict=True)
    }


def own_step(model: keras.Model, name: str) -> Callable[[Any], Any]:
  """Returns the model's own step, of a placed model too."""
  step = getattr(model, name)
  return step.original if isinstance(step, PlacedStep) else step


def _graph_without_costs(step: StepGraph):
  """Returns a step's ops, edges and groups, all of which cost nothing."""
  free = {node.name: OpCost(node.op, 0.0) for node in step.item.graph_def.node}
  return op_graph_from_item(step.item, {"*": free}, ["*"])


def _placed_graph(step: StepGraph, device_of, order) -> GraphDef:
  """Returns the step's graph with devices, without its inputs and handles."""
  item = step.item
  outside = {*step.variables, *(parse_ref(x)[0] for x in step.inputs)}
  order = [x for x in order if x in item.paths and x not in outside]
  edges = order_edges(step.graph_def, item.paths, device_of, order)
  placed, _ = rewrite_devices(
    step.graph_def, item.paths, device_of, edges.after
  )
  result = GraphDef(versions=placed.versions, library=placed.library)
  for node in placed.node:
    if node.name not in outside:
      # Every op has its device; what others tie it to may be outside.
      node.attr.pop("_class", None)
      result.node.add().CopyFrom(node)
  return result


def _call(step: StepGraph, placed: GraphDef, data: Any) -> Any:
  """Adds the placed graph to the one being traced; returns its outputs."""
  fed = [
    x
    for x in tf.nest.flatten(data, expand_composites=True)
    if isinstance(x, tf.Tensor)
  ]
  outside = dict(zip(step.inputs, fed, strict=True))
  graph = tf.compat.v1.get_default_graph()
  for name, variable in step.variables.items():
    outside[f"{name}:0"] = graph.capture(variable.handle)
  names = [
    x
    for x in tf.nest.flatten(step.outputs, expand_composites=True)
    if isinstance(x, str)
  ]
  inside = list(dict.fromkeys(x for x in names if x not in outside))
  taken = {"{}:{}".format(*parse_ref(x)) for n in placed.node for x in n.input}
  results = tf.graph_util.import_graph_def(
    placed,
    input_map={name: x for name, x in outside.items() if name in taken},
    return_elements=inside,
    name="placed",
  )
  values = outside | dict(zip(inside, results, strict=True))
  return tf.nest.map_structure(
    lambda x: values[x] if isinstance(x, str) else x,
    step.outputs,
    expand_composites=True,
  )
