"""`baechi simulate`: what a given plan of a model would do."""

import argparse
import json
import os

from baechi_tf.bounds import lower_bound
from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.report_output import add_report_alone
from baechi_tf.cli.report_output import publish_report
from baechi_tf.cli.report_output import report_output
from baechi_tf.peak_memory import overflow
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import read_placement
from baechi_tf.reports.summary import summarize
from baechi_tf.reports.text import report
from baechi_tf.simulator import follow

_DESCRIPTION = """\
Predicts the step of a model with a given plan: a JSON file with
{"placement": {op: device}}, as `place --emit plan` writes it or made by hand.
If the file has an "order", a list of all ops, each device runs its ops in it;
else in the order in which TensorFlow's executor would.
If a device's memory does not suffice, says so, after the prediction and the
report, and ends with exit code 3.
"""
_EXAMPLE = """\
baechi place costs.json plan.json --cluster cluster.toml
baechi simulate costs.json plan.json --cluster other_cluster.toml
"""


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "simulate",
    run,
    summary="predict the step of a model with a given plan",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "model", type=path, metavar="MODEL", help="a model or cost graph"
  )
  parser.add_argument(
    "placement", type=path, metavar="PLACEMENT", help="the plan"
  )
  model_input.add_cluster_arguments(parser)
  add_report_alone(parser)
  add_json(parser)
  model_input.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = model_input.read_devices(args)
  os.stat(args.placement)  # complains, if so, before the work
  output = report_output(args, args.model, args.placement, args.cluster)
  with Progress() as progress:
    model = model_input.read_model(args, cluster, progress)
    placement = read_placement(args.placement, model.graph, cluster)
    progress("simulating")
    simulation = follow(model.graph, cluster, placement)
    progress("bounding")
    summary = summarize(
      model.graph,
      cluster,
      simulation,
      lower_bound(model.graph, cluster, simulation.makespan_us),
      model=args.model,
      coverage=model.coverage,
      notes=model.notes,
    )
  text = report(summary).rstrip("\n")
  if args.json:
    text = json.dumps(summary.fields())
  if output:
    publish_report(output, summary, model.graph, cluster, simulation, placement)
  print(text)
  problem = overflow(model.graph, cluster, simulation)
  if problem:
    raise InfeasiblePlacementError(problem)
