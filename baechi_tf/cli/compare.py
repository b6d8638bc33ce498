"""`baechi compare`: all placers side by side."""

import argparse
import json

from baechi_tf.cli import model_input
from baechi_tf.cli import steering
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.place import add_planner_arguments
from baechi_tf.cli.place import make_plan
from baechi_tf.cli.place import summarize_plan
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.report_output import add_report_alone
from baechi_tf.cli.report_output import publish_report
from baechi_tf.cli.report_output import report_output
from baechi_tf.planner import BEST
from baechi_tf.planner import Plan
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.text import candidates
from baechi_tf.simulator import Simulation

_DESCRIPTION = """\
Plans with every placer, with and without keeping co-placed ops together, and
shows for each plan the step it predicts, its speed-up against one device, its
gap to a lower bound that no plan can beat, what it moves between devices, and
each device's peak memory. The plan that `place` would choose has a star.
"""
_EXAMPLE = """\
baechi compare model/ --cluster configs/clusters/2_cpus.toml --batch-size 32
baechi compare costs.json --cluster cluster.toml --json
"""


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "compare",
    run,
    summary="show all placers' plans of a model side by side",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "model", type=path, metavar="MODEL", help="a model or cost graph"
  )
  model_input.add_cluster_arguments(parser)
  add_planner_arguments(parser)
  add_report_alone(parser)
  steering.add_steering_arguments(parser)
  add_json(parser)
  model_input.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = steering.chosen_devices(args, model_input.read_devices(args))
  output = report_output(args, args.model, args.cluster)
  with Progress() as progress:
    model = model_input.read_model(args, cluster, progress)
    model = steering.with_devices(args, model, cluster)
    planned = make_plan(args, model, cluster, BEST, progress)
  summary = summarize_plan(args, model, cluster, planned)
  if output:
    publish_report(
      output,
      summary,
      model.graph,
      cluster,
      planned.simulation,
      planned.placement,
      _others(planned),
    )
  seconds = {
    x.placer: planned.timings_s[f"placing with {x.placer}"]
    for x in planned.candidates
  }
  if args.json:
    print(json.dumps({**summary.fields(), "placing_seconds": seconds}))
    return
  summary = printable(summary)
  one = summary.one_device
  print(
    f"{summary.model}: {summary.num_ops:,} ops; on one device"
    f" {duration(one.makespan_us)}{'' if one.fits else ' (does not fit)'}"
    f"; lower bound {duration(summary.lower_bound_us)}"
    f" ({summary.lower_bound})\n"
  )
  print(candidates(summary, seconds), end="")
  for note in summary.notes:
    print(f"note: {note}")


def _others(planned: Plan) -> dict[str, Simulation]:
  """Returns each other placer's best plan, the fastest first."""
  best = {}
  for x in sorted(planned.candidates, key=lambda x: x.makespan_us):
    if x.simulation and x.placer != planned.chosen.placer:
      best.setdefault(x.placer, x.simulation)
  return best
