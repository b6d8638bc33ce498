"""The arguments that say which model, at what costs, on which cluster."""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf.cli.help import path
from baechi_tf.cli.measurement import measure_here
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.tensorflow_import import load_tensorflow
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import read_cluster
from baechi_tf.cost_graph import read_cost_graph
from baechi_tf.op_graph import OpGraph

if TYPE_CHECKING:  # they import TensorFlow
  from baechi_tf.costs.profile import Coverage
  from baechi_tf.graph_item import GraphItem

# What `costs.measured` can measure here. A "GPU" of which the cluster file says
# what it is need not be here.
_CPU = "CPU"
_GPU = "GPU"


@dataclasses.dataclass(frozen=True, eq=False)
class ModelInput:
  """A model with its costs.

  Attributes:
    graph: what is planned.
    item: the TensorFlow model, None for a cost graph.
    coverage: where the costs come from; empty for a cost graph.
    notes: what a reader of the costs should know, in words.
    num_rewritten: how many nodes each of the `REWRITES` replaced.
  """

  graph: OpGraph
  item: "GraphItem | None" = None
  coverage: "tuple[Coverage, ...]" = ()
  notes: tuple[str, ...] = ()
  num_rewritten: Mapping[str, int] = dataclasses.field(default_factory=dict)


def is_cost_graph(path: str) -> bool:
  """Whether a model's path is a cost graph's."""
  return path.endswith(".json")


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says which step of a TensorFlow model is meant."""
  group = parser.add_argument_group("the step (not for cost graphs)")
  group.add_argument(
    "--signature",
    metavar="S",
    help="the SavedModel's signature that is the step; default: the only one,"
    " else serving_default",
  )
  group.add_argument(
    "--fetch",
    metavar="F",
    action="append",
    default=[],
    help="a tensor or op that the step is run for, in place of a signature;"
    " may be given several times",
  )
  group.add_argument(
    "--tags",
    metavar="T,T,...",
    type=lambda text: text.split(","),
    help="which of several graphs in a SavedModel; default: the only one, else"
    " serve",
  )


def add_rewrite_argument(parser: argparse.ArgumentParser) -> None:
  """Adds what says whether the step is rewritten before it is planned."""
  parser.add_argument(
    "--no-rewrite",
    dest="rewrite",
    action="store_false",
    help="leave every node as it is; default: split ops that only pass tensors"
    " on (IdentityN, ShapeN) and give each op that takes a small constant a"
    " constant of its own, which changes no number",
  )


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says what the inputs of a step that runs are."""
  add_shape_arguments(parser).add_argument(
    "--inputs",
    metavar="NPZ",
    type=path,
    help="a NumPy archive with an array for every input, in place of made-up"
    " ones; their shapes are the inputs' shapes",
  )


def add_shape_arguments(
  parser: argparse.ArgumentParser,
) -> argparse._ArgumentGroup:
  """Adds what says how large the inputs are, in the group it returns."""
  group = parser.add_argument_group("inputs (not for cost graphs)")
  group.add_argument(
    "--batch-size",
    metavar="N",
    type=int,
    help="the first dimension of inputs whose first dimension is unknown",
  )
  group.add_argument(
    "--input-shape",
    metavar="NAME=D,D,...",
    type=_input_shape,
    action="append",
    default=[],
    help="the whole shape of an input, such as x=32,784; may be given for"
    " several inputs",
  )
  return group


_MEASURED = """\
Without either, ops are measured here for devices of type CPU, and estimated
for others from their [device_type] table in the cluster file."""


def add_cost_arguments(
  parser: argparse.ArgumentParser, without_either: str = _MEASURED
) -> None:
  """Adds what says where the ops' costs come from.

  Args:
    parser: the subcommand's.
    without_either: the help's sentence on neither --profile nor --estimate.
  """
  group = parser.add_argument_group(
    "costs (not for cost graphs)", without_either
  )
  either = group.add_mutually_exclusive_group()
  either.add_argument(
    "--profile",
    metavar="P",
    type=path,
    help="a profile file, as baechi profile writes it; what it lacks is"
    " estimated",
  )
  either.add_argument(
    "--estimate",
    action="store_true",
    help="estimate every op from the devices' [device_type] tables",
  )


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says which devices there are."""
  group = parser.add_argument_group("devices")
  group.add_argument(
    "--cluster",
    metavar="FILE",
    type=path,
    required=True,
    help="the devices and links, in TOML",
  )
  group.add_argument(
    "--memory-fraction",
    metavar="F",
    type=float,
    default=1.0,
    help="plan with this part of every device's memory; default: 1",
  )


def read_devices(args: argparse.Namespace) -> Cluster:
  """Returns the cluster that `add_cluster_arguments` asks for.

  Raises:
    ValueError: the file or the fraction is not right.
    OSError: the file cannot be read.
  """
  cluster = read_cluster(args.cluster)
  return cluster.with_memory_fraction(args.memory_fraction)


def read_model(
  args: argparse.Namespace, cluster: Cluster, progress: Progress
) -> ModelInput:
  """Returns the model and costs that the arguments ask for.

  Args:
    args: with `model` and what the `add_` functions add.
    cluster: whose types costs are needed for.
    progress: is told what is being done.

  Raises:
    ValueError: the model, the profile or an argument is not right.
    OSError: a file cannot be read.
  """
  if is_cost_graph(args.model):
    check_no_tensorflow_arguments(args)
    progress("reading the cost graph")
    return ModelInput(read_cost_graph(args.model))
  check_inputs(args)
  _check_types(args, cluster)
  item = read_step(args, progress)
  # These import TensorFlow, which `read_step` has loaded.
  from baechi_tf.costs import runnable
  from baechi_tf.costs.analytical import estimate_missing
  from baechi_tf.costs.profile import complete
  from baechi_tf.graph_import import op_graph_from_item

  types = tuple(dict.fromkeys(cluster.types))
  known, shapes = _known_costs(args, item, types, cluster, progress)
  estimates, notes = estimate_missing(
    item, cluster, known, args.batch_size, shapes, progress
  )
  kinds = [
    cluster.device_types[x].kind if x in cluster.device_types else x
    for x in types
  ]
  notes += runnable.notes(item, kinds)
  costs, coverage = complete(known, item, types, estimates)
  progress("importing the graph")
  graph = op_graph_from_item(item, costs, types)
  notes += _rewrite_notes(item)
  return ModelInput(graph, item, coverage, notes, item.num_rewritten)


def read_step(args: argparse.Namespace, progress: Progress) -> "GraphItem":
  """Returns the step that `add_step_arguments` asks for.

  Raises:
    ValueError: the model or an argument is not right.
    OSError: a file cannot be read.
  """
  os.stat(args.model)  # complains, if so, before TensorFlow is loaded
  load_tensorflow()
  # Imports TensorFlow.
  from baechi_tf.graph_item import read_item

  progress("reading the model")
  return read_item(
    args.model,
    signature=args.signature,
    fetches=args.fetch,
    tags=args.tags,
    rewrite=args.rewrite,
  )


def check_inputs(args: argparse.Namespace) -> None:
  """Refuses an input file that is not there or of no use.

  Raises:
    ValueError: the costs or the shapes come from elsewhere.
    OSError: the file cannot be read.
  """
  if args.inputs is None:
    return
  for name, reason in (
    ("estimate", "estimates take shapes: give --batch-size or --input-shape"),
    ("profile", "the profile has the costs"),
    ("batch_size", "the arrays have their shapes"),
    ("input_shape", "the arrays have their shapes"),
  ):
    if vars(args).get(name):
      raise ValueError(
        f"--inputs is of no use with --{name.replace('_', '-')}: {reason}"
      )
  os.stat(args.inputs)


def input_values(
  args: argparse.Namespace, item: "GraphItem"
) -> dict[str, np.ndarray]:
  """Returns the inputs that `add_input_arguments` asks for.

  Raises:
    ValueError: a shape is not known, or the file does not suit the model.
    OSError: the file cannot be read.
  """
  from baechi_tf.costs.inputs import synthesize_inputs  # imports TensorFlow

  return synthesize_inputs(
    item, args.batch_size, input_shapes(args), args.inputs
  )


def input_shapes(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
  """Returns the shapes that `--input-shape` gives."""
  return dict(args.input_shape)


def check_no_tensorflow_arguments(args: argparse.Namespace) -> None:
  """Refuses what a cost graph has no use for.

  Raises:
    ValueError: such an argument is given.
  """
  for name in (
    "signature", "fetch", "tags", "profile", "estimate", "batch_size",
    "input_shape", "inputs",
  ):  # fmt: skip
    if vars(args).get(name):
      raise ValueError(
        f"--{name.replace('_', '-')} is for TensorFlow models; {args.model} is"
        " a cost graph, which has its costs in it"
      )


def _input_shape(text: str) -> tuple[str, tuple[int, ...]]:
  name, separator, shape = text.rpartition("=")
  try:
    if not (separator and name):
      raise ValueError
    return name, tuple(int(x) for x in shape.split(",") if shape)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not NAME=D,D,..., such as x=32,784"
    ) from None


def _rewrite_notes(item: "GraphItem") -> tuple[str, ...]:
  notes = []
  if count := item.num_rewritten.get("split_pass_through"):
    ops = "1 op that passes" if count == 1 else f"{count:,} ops that pass"
    notes.append(f"rewritten: {ops} several tensors on became one op a tensor")
  if count := item.num_rewritten.get("replicate_constant"):
    ops = "1 small constant" if count == 1 else f"{count:,} small constants"
    notes.append(
      f"rewritten: {ops} became one constant for each op that takes it"
    )
  return tuple(notes)


def _is_measured(device_type: str, cluster: Cluster) -> bool:
  return device_type == _CPU or (
    device_type == _GPU and device_type not in cluster.device_types
  )


def _check_types(args: argparse.Namespace, cluster: Cluster) -> None:
  """Finds out before any work that a type's costs cannot be had."""
  if args.profile:
    os.stat(args.profile)
    return  # it may have them all
  for name in cluster.types:
    if name in cluster.device_types:
      continue
    if args.estimate or not _is_measured(name, cluster):
      raise ValueError(
        f"{args.cluster}: there is no [device_type.{name}] table to estimate"
        f" ops on device type {name!r} from; add one, or give a profile that"
        " was measured on such a device with --profile"
      )


def _known_costs(args, item, types: Sequence[str], cluster, progress):
  """Returns costs that were measured, before or now, and the inputs' shapes."""
  # These import TensorFlow.
  from baechi_tf.costs.carried import carried_over
  from baechi_tf.costs.profile import check_profile
  from baechi_tf.costs.profile import read_profile

  if args.estimate:
    return {}, input_shapes(args)
  if args.profile:
    profile = read_profile(args.profile)
    try:
      check_profile(profile, item)
    except ValueError as error:
      raise ValueError(f"{args.profile}: {error}") from None
    return carried_over(profile, item), input_shapes(args)
  here = [name for name in types if _is_measured(name, cluster)]
  if not here and args.inputs is None:
    return {}, input_shapes(args)
  values = input_values(args, item)
  measured = {
    name: measure_here(item, values, name, progress, args.inputs)
    for name in here
  }
  return measured, {name: value.shape for name, value in values.items()}
