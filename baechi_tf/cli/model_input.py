"""The arguments that say which model, at what costs, on which cluster."""

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.tensorflow_import import load_tensorflow
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import read_cluster
from baechi_tf.cost_graph import read_cost_graph
from baechi_tf.costed_model import CostedModel
from baechi_tf.costed_model import CostSource

if TYPE_CHECKING:  # it imports TensorFlow
  from baechi_tf.graph_item import GraphItem


def is_cost_graph(path: str) -> bool:
  """Whether a model's path is a cost graph's."""
  return path.endswith(".json")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says which step of a model is planned, and at what costs."""
  add_step_arguments(parser)
  add_rewrite_argument(parser)
  add_input_arguments(parser)
  add_cost_arguments(parser)


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
    " on (IdentityN, ShapeN), keep one of several equal reads or sums, and give"
    " each op that takes a small constant a constant of its own, which changes"
    " no number",
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
) -> CostedModel:
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
    progress("reading the cost graph")
    return CostedModel(read_cost_graph(args.model))
  inputs = input_source(args)
  # `place --verify` runs the step: it has a use for inputs that costs have not.
  is_run = getattr(args, "verify", False) and (args.profile or args.estimate)
  source = cost_source(args, cluster, CostSource() if is_run else inputs)
  item = read_step(args, progress)
  # These import TensorFlow, which `read_step` has loaded.
  from baechi_tf.pipeline import cost_item
  from baechi_tf.pipeline import input_values

  if is_run:
    source = source.for_values(input_values(item, inputs))
  return cost_item(item, cluster, source, progress)


def input_source(args: argparse.Namespace) -> CostSource:
  """Returns the inputs or shapes that `add_input_arguments` asks for.

  Raises:
    ValueError: one argument leaves another without use.
    OSError: the file of the inputs cannot be read.
  """
  source = CostSource(
    batch_size=args.batch_size,
    input_shapes=dict(args.input_shape) or None,
    inputs=args.inputs,
  )
  if args.inputs is not None:
    os.stat(args.inputs)  # complains, if so, before TensorFlow is loaded
  return source


def cost_source(
  args: argparse.Namespace, cluster: Cluster, inputs: CostSource
) -> CostSource:
  """Returns inputs with the costs that `add_cost_arguments` asks for.

  Args:
    args: with what the `add_` functions add.
    cluster: whose types costs are needed for.
    inputs: the inputs or their shapes.

  Raises:
    ValueError: one argument leaves another without use, or a device type's
      costs cannot be had.
    OSError: the profile cannot be read.
  """
  source = dataclasses.replace(
    inputs, profile=args.profile, estimate=args.estimate
  )
  if args.profile is not None:
    os.stat(args.profile)
  try:
    source.check_types(cluster)
  except ValueError as error:
    raise ValueError(f"{args.cluster}: {error}") from None
  return source


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
