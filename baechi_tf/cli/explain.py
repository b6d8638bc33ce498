"""`baechi explain`: why a plan has an op where it is."""

import argparse
import dataclasses
import difflib
import json
import os

from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.explanation import explain
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import read_placement
from baechi_tf.reports.explanation_text import explanation_text
from baechi_tf.simulator import follow

_DESCRIPTION = """\
Says why a plan has an op where it is: which ops must share its device, what it
takes from where, and what the step would be with it, and the ops that must be
with it, on each other device: how long, or which device would lack memory.
PLAN is a file as `place --emit plan` writes it, or the placement.json of a
report.
"""
_EXAMPLE = """\
baechi place costs.json plan.json --cluster cluster.toml
baechi explain costs.json plan.json dense_1/MatMul --cluster cluster.toml
"""


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "explain",
    run,
    summary="say why a plan has an op where it is",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "model", type=path, metavar="MODEL", help="the model or cost graph"
  )
  parser.add_argument(
    "placement", type=path, metavar="PLAN", help="the plan of it"
  )
  parser.add_argument(
    "ops",
    nargs="+",
    metavar="OP",
    help="the names of the ops, or their last parts where no other op ends so",
  )
  model_input.add_cluster_arguments(parser)
  add_json(parser)
  model_input.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = model_input.read_devices(args)
  os.stat(args.placement)  # complains, if so, before the work
  with Progress() as progress:
    model = model_input.read_model(args, cluster, progress)
    ops = [_index(model.graph, name) for name in args.ops]
    placement = read_placement(args.placement, model.graph, cluster)
    progress("simulating")
    simulation = follow(model.graph, cluster, placement)
    found = [explain(model.graph, cluster, simulation, op) for op in ops]
  if args.json:
    print(json.dumps({"ops": [dataclasses.asdict(x) for x in found]}))
  else:
    print("\n".join(map(explanation_text, found)), end="")


def _index(graph: OpGraph, name: str) -> int:
  """Returns the index of an op that is named in full, or by the end of it.

  Raises:
    ValueError: there is no such op, or several end so.
  """
  if name in graph.index:
    return graph.index[name]
  ending = [x for x in graph.names if name and x.endswith(f"/{name}")]
  if len(ending) == 1:
    return graph.index[ending[0]]
  near = [x for x in graph.names if name and name in x][:3]
  near = near or difflib.get_close_matches(name, graph.names, 3)
  hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
  raise ValueError(f"the model has no op {name!r}{hint}")
