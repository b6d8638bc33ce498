"""The pipeline: reads a model, finds its costs, plans, and writes it placed.

The command line, `place` and the tools all go through these functions. Each
stage's result is the next one's argument: an item gets costs, its graph is
planned by `planner.plan`, and the plan's devices go into a copy of the model.
"""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from baechi_tf import atomic
from baechi_tf import planner
from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostedModel
from baechi_tf.costed_model import CostSource
from baechi_tf.costs import runnable
from baechi_tf.costs.analytical import estimate_missing
from baechi_tf.costs.carried import carried_over
from baechi_tf.costs.inputs import synthesize_inputs
from baechi_tf.costs.measurement import measure_here
from baechi_tf.costs.profile import check_profile
from baechi_tf.costs.profile import complete
from baechi_tf.costs.profile import Profile
from baechi_tf.costs.profile import read_profile
from baechi_tf.device_choice import choose_devices
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.given_plan import read_plan
from baechi_tf.graph_files import graph_file_bytes
from baechi_tf.graph_files import read_graph_file
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.model_devices import with_own_devices
from baechi_tf.order_edges import order_edges
from baechi_tf.order_edges import OrderEdges
from baechi_tf.output_path import OutputPath
from baechi_tf.output_path import placed_output
from baechi_tf.planner import BEST
from baechi_tf.planner import check_placer
from baechi_tf.planner import default_budget
from baechi_tf.planner import NO_SEARCH
from baechi_tf.planner import Plan
from baechi_tf.rewrites import rewrite_step
from baechi_tf.runner.tasks import tasks_of
from baechi_tf.saved_model import stage_saved_model
from baechi_tf.search.budget import Budget

Progress = Callable[[str], None]


def place(
  model: str | os.PathLike,
  output: str | os.PathLike,
  cluster: Cluster,
  *,
  signature: str | None = None,
  fetches: Sequence[str] = (),
  tags: Iterable[str] | None = None,
  rewrite: bool = True,
  profile: Profile | str | os.PathLike | None = None,
  estimate: bool = False,
  batch_size: int | None = None,
  input_shapes: Mapping[str, tuple[int, ...]] | None = None,
  inputs: Mapping[str, np.ndarray] | str | os.PathLike | None = None,
  placer: str = BEST,
  coplacement: bool = True,
  fusion: bool = True,
  order: bool = True,
  pins: Mapping[str, str] = MappingProxyType({}),
  keep_devices: bool = False,
  only_devices: Sequence[str] = (),
  exclude: Sequence[str] = (),
  plan: str | os.PathLike | None = None,
  budget: Budget | None = None,
  overwrite: bool = False,
  follow_links: bool = False,
  progress: Progress = lambda stage: None,
) -> Plan:
  """Plans a SavedModel or a graph file, and writes it with the planned devices.

  `baechi place` does the same with flags of the same names.

  Args:
    model: a SavedModel's directory or a graph file; it is not changed.
    output: the placed SavedModel's directory, or the placed graph's file
      (".pb", ".pbtxt"), written whole or not at all.
    cluster: the devices, by the names that TensorFlow knows them under.
    signature: the step to plan; default the only one, else "serving_default".
    fetches: the tensors or ops that the step runs for, in place of a signature.
    tags: which of several graphs in a SavedModel, see `read_item`.
    rewrite: whether the graph is rewritten before it is planned, see
      `read_item`.
    profile: measured costs by device type, or a profile file's path; ops that
      it lacks are estimated. With neither a profile nor `estimate`, ops are
      measured on this machine where the cluster has devices of its kind.
    estimate: whether all ops are estimated, see `CostSource`.
    batch_size: the first dimension of inputs whose first dimension is unknown.
    input_shapes: the whole shape of an input, by its name.
    inputs: an array for every input, by its name, or the path of a NumPy
      archive of them: what the step is measured with.
    placer: a name in `PLACERS`, or "best", which tries all and searches on.
    coplacement: whether ops may be co-placed before they are placed.
    fusion: whether co-placed ops may be contracted to one.
    order: whether control edges keep the planned order of ops that take long.
    pins: device names by regular expression; an op in whose name one is found
      is on that device, whatever else is planned. See `docs/steering.md`.
    keep_devices: whether ops stay on devices that they have in the model.
    only_devices: names of the devices to plan for; empty for all.
    exclude: names of devices to plan without.
    plan: the path of a plan's JSON, perhaps edited by hand, that is checked and
      written instead of a new one.
    budget: the time or placements that the search of "best" may take; default
      two seconds.
    overwrite: whether what is at `output` may be replaced by its like.
    follow_links: whether to copy the targets of links out of the model.
    progress: called with a line before each stage, and during long ones.

  Returns:
    The plan, with the predicted step, the lower bound and notes of all stages.

  Raises:
    ValueError: the model, the output, the cluster or an argument is not right,
      an argument leaves another without use, or the step does not run here.
    OSError: a file cannot be read or written.
    InfeasiblePlacementError: no plan was found that fits the memory, or the
      given one does not.
  """
  model, output = os.fspath(model), os.fspath(output)
  tags = None if tags is None else list(tags)
  source = CostSource(
    profile=profile,
    estimate=estimate,
    batch_size=batch_size,
    input_shapes=input_shapes,
    inputs=inputs,
  )
  if plan is None and budget is None:
    budget = default_budget(placer)
  check_placer(placer, budget or NO_SEARCH)
  if plan is not None and (placer != BEST or budget is not None):
    raise ValueError("placer= and budget= are of no use with plan=")
  cluster = choose_devices(cluster, only_devices, exclude, pins)
  tasks_of(cluster.device_names)  # complains of names that are not TensorFlow's
  source.check_types(cluster)
  to = placed_output(model, output, overwrite)
  to.check(apart_from=(model,))
  progress("reading the model")
  item = read_item(
    model, signature=signature, fetches=fetches, tags=tags, rewrite=rewrite
  )
  costed = cost_item(item, cluster, source, progress)
  graph, notes = with_own_devices(
    costed.graph, item, cluster, keep=keep_devices
  )
  arguments = {"order": order, "pins": pins, "progress": progress}
  if plan is not None:
    planned = read_plan(plan, graph, cluster, **arguments)
  else:
    planned = planner.plan(
      graph,
      cluster,
      placer=placer,
      coplacement=coplacement,
      fusion=fusion,
      budget=budget,
      **arguments,
    )
  progress("writing")
  with atomic.publishing() as outputs:
    written = stage_placed(
      outputs, model, to, item, planned, tags=tags, follow_links=follow_links
    )
  notes = (*costed.notes, *notes, *planned.notes, *written)
  return dataclasses.replace(planned, notes=notes)


def cost_item(
  item: GraphItem,
  cluster: Cluster,
  source: CostSource,
  progress: Progress = lambda stage: None,
) -> CostedModel:
  """Returns an item with a cost for each op on each of the cluster's types.

  Args:
    item: the model.
    cluster: the devices; its `device_types` describe those to estimate for.
    source: where the costs come from.
    progress: called with a line before each stage, and during long ones.

  Raises:
    ValueError: an op has no cost, a shape stays unknown, the profile or the
      inputs are not this model's, or the step does not run here.
    OSError: the profile or the inputs cannot be read.
  """
  source.check_types(cluster)
  types = tuple(dict.fromkeys(cluster.types))
  known, shapes = _known_costs(item, cluster, source, progress)
  estimates, notes = estimate_missing(
    item, cluster, known, source.batch_size, shapes, progress
  )
  kinds = [
    cluster.device_types[x].kind if x in cluster.device_types else x
    for x in types
  ]
  notes += runnable.notes(item, kinds)
  costs, coverage = complete(known, item, types, estimates)
  progress("importing the graph")
  graph = op_graph_from_item(item, costs, types)
  return CostedModel(graph, item, coverage, notes + _rewrite_notes(item))


def input_values(item: GraphItem, source: CostSource) -> dict[str, np.ndarray]:
  """Returns a value for every input of a step that runs.

  Args:
    item: the model.
    source: the inputs or, for made-up ones, their shapes.

  Raises:
    ValueError: a shape is not known, or the inputs do not suit the model.
    OSError: the file of the inputs cannot be read.
  """
  return synthesize_inputs(
    item, source.batch_size, source.input_shapes, source.inputs
  )


def stage_placed(
  outputs: atomic.Outputs,
  model: str,
  output: OutputPath,
  item: GraphItem,
  planned: Plan,
  *,
  tags: Sequence[str] | None = None,
  follow_links: bool = False,
) -> list[str]:
  """Adds the placed model to outputs that are published together.

  Args:
    outputs: the outputs that the model is added to.
    model: the SavedModel's directory or the graph file that was read.
    output: where the placed model goes, from `placed_output`; already checked.
    item: the ops' paths in the model.
    planned: the plan; its `ordered_ops` get control edges.
    tags: the tags that were given to `read_item`.
    follow_links: whether to copy the targets of links out of the model.

  Returns:
    Notes on how the plan was written.

  Raises:
    ValueError: a link leads out of the model, or the plan is not one of this
      model's.
    OSError: the model cannot be read or written.
  """
  device_of, order = planned.placement.as_dict(), planned.ordered_ops
  if os.path.isdir(model):
    written = stage_saved_model(
      outputs,
      model,
      output,
      item,
      device_of,
      order=order,
      tags=tags,
      follow_links=follow_links,
    )
    specialised, edges = written.specialised, written.order
    divided = written.divided
  else:
    meta_graph = read_graph_file(model)
    graph_def = meta_graph.graph_def
    if item.rewritten_for:
      graph_def, _ = rewrite_step(meta_graph, item.rewritten_for)
    edges = order_edges(graph_def, item.paths, device_of, order)
    graph_def, specialised = rewrite_devices(
      graph_def, item.paths, device_of, edges.after
    )
    divided = ()
    data = graph_file_bytes(graph_def, output.path)
    outputs.write_bytes(output.path, [data], output.check_replaced)
  notes = []
  if planned.placement.order is not None:
    notes.append(_order_note(len(order), edges))
  if specialised:
    notes.append(
      f"{len(specialised)} functions are new, because calls of one body have"
      f" different devices or orders: {', '.join(specialised)}"
    )
  if divided:
    notes.append(
      "after baechi_tf.load, signatures that were not planned cannot call"
      f" {', '.join(divided)}: XLA compiles it, and its variables are on"
      " several devices; place that signature, or use tf.saved_model.load"
    )
  return notes


def _known_costs(item, cluster: Cluster, source: CostSource, progress):
  """Returns costs that were measured, before or now, and the inputs' shapes."""
  if source.profile is not None:
    return _profiled(item, source.profile), source.input_shapes
  types = source.measured_types(cluster)
  if not types and source.inputs is None:
    return {}, source.input_shapes
  values = input_values(item, source)
  measured = {
    name: measure_here(
      item, values, name, inputs=source.inputs, progress=progress
    )
    for name in types
  }
  return measured, {name: value.shape for name, value in values.items()}


def _profiled(item: GraphItem, profile) -> Profile:
  """Returns a profile's costs, and those of the ops that a rewrite made."""
  if isinstance(profile, Mapping):
    return carried_over(profile, item)  # `complete` checks it
  read = read_profile(profile)
  try:
    check_profile(read, item)
  except ValueError as error:
    raise ValueError(f"{os.fspath(profile)}: {error}") from None
  return carried_over(read, item)


def _rewrite_notes(item: GraphItem) -> tuple[str, ...]:
  notes = []
  if count := item.num_rewritten.get("split_pass_through"):
    ops = "1 op that passes" if count == 1 else f"{count:,} ops that pass"
    notes.append(f"rewritten: {ops} several tensors on became one op a tensor")
  if count := item.num_rewritten.get("share_equal"):
    ops = "1 op that equals" if count == 1 else f"{count:,} ops that equal"
    notes.append(f"rewritten: {ops} another gave way to it")
  if count := item.num_rewritten.get("replicate_constant"):
    ops = "1 small constant" if count == 1 else f"{count:,} small constants"
    notes.append(
      f"rewritten: {ops} became one constant for each op that takes it"
    )
  return tuple(notes)


def _order_note(num_ordered: int, edges: OrderEdges) -> str:
  """Returns a sentence on the control edges that were written."""
  skipped = ""
  if edges.num_skipped:
    skipped = (
      f"; {edges.num_skipped:,} neighbours have none, because they are in"
      " different functions or among switches"
    )
  return (
    f"{len(edges.after):,} control edges keep the {num_ordered:,} ops that take"
    f" long in the planned order{skipped}; run each process with at least two"
    " inter-op threads"
  )
