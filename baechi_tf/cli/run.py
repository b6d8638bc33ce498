"""`baechi run`: runs a placed model, and shows the step beside the plan's."""

import argparse
import json
import os

from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_network
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.cluster import Cluster
from baechi_tf.json_file import read_json
from baechi_tf.placement import placement_for
from baechi_tf.reports.run_report import measured_devices
from baechi_tf.reports.run_report import predicted_devices
from baechi_tf.reports.run_report import run_fields
from baechi_tf.reports.run_report import run_text
from baechi_tf.runner.cluster_run import local_run
from baechi_tf.simulator import simulate

_DESCRIPTION = """\
Runs the step of a placed SavedModel and shows how long it takes, and what each
device does meanwhile. It starts a process on this machine for each job and task
that the cluster's device names mention, each on cores of its own; the process
of the first device is the client. With costs (--profile or --estimate), what
the plan predicts is shown beside it.
"""
_EXAMPLE = """\
baechi place model/ placed/ --cluster two.toml --profile model.profile
baechi run placed/ --cluster two.toml --profile model.profile
"""


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "run",
    run,
    summary="run a placed model, and compare its step with the plan",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "model", type=path, metavar="PLACED", help="the placed SavedModel"
  )
  model_input.add_cluster_arguments(parser)
  parser.add_argument(
    "--plan",
    metavar="PLAN",
    type=path,
    help="the plan's JSON: refuse a model that has other devices",
  )
  parser.add_argument(
    "--steps",
    metavar="N",
    type=int,
    default=20,
    help="steps to measure; default: 20",
  )
  parser.add_argument(
    "--warmup",
    metavar="N",
    type=int,
    default=5,
    help="steps to run before and drop; default: 5",
  )
  parser.add_argument(
    "--limit-memory",
    action="store_true",
    help="have the system kill a process that needs more than the memory of"
    " its devices, beyond what it takes without a model",
  )
  add_network(parser)
  add_json(parser)
  model_input.add_step_arguments(parser)
  model_input.add_input_arguments(parser)
  model_input.add_cost_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = model_input.read_devices(args)
  _check(args)
  planned = _read_plan(args.plan) if args.plan else None
  with Progress() as progress:
    item = model_input.read_step(args, progress)
    # Imports TensorFlow.
    from baechi_tf.runner import written_plan

    values = model_input.input_values(args, item)
    device_of, notes = written_plan.plan_to_run(
      item, written_plan.written_devices(item), planned, cluster.device_names
    )
    graph, simulation = _predict(args, cluster, device_of, progress)
    progress("starting the processes")
    with local_run(
      cluster,
      private=not args.listen_on_network,
      limit_memory=args.limit_memory,
    ) as running:
      progress("loading the model")
      executed = running.load(
        "model", args.model, args.signature, values, tags=args.tags
      )
      progress("running steps")
      running.run("model", max(args.warmup, 1))
      measured = running.run("model", args.steps)
      trace = running.trace("model")
    fields = run_fields(
      running,
      cluster,
      measured,
      measured_devices(
        running,
        trace,
        executed,
        cluster.device_names,
        None if graph is None else written_plan.output_bytes(item, graph),
      ),
      model=args.model,
      makespan_us=None if graph is None else simulation.makespan_us,
      predicted=None
      if graph is None
      else predicted_devices(graph, cluster, simulation),
    )
    fields["notes"] += notes
  print(json.dumps(fields) if args.json else run_text(fields))


def _check(args: argparse.Namespace) -> None:
  if not os.path.isdir(args.model):
    os.stat(args.model)
    raise ValueError(f"{args.model} is no SavedModel directory")
  if args.fetch:
    raise ValueError("--fetch is of no use here: run takes a --signature")
  if args.steps < 1:
    raise ValueError(f"--steps {args.steps} must be at least 1")
  if args.warmup < 0:
    raise ValueError(f"--warmup {args.warmup} must be at least 0")


def _read_plan(plan: str) -> dict[str, str]:
  fields = read_json(plan)
  device_of = fields.get("placement") if isinstance(fields, dict) else None
  if not isinstance(device_of, dict):
    raise ValueError(
      f'{plan}: not a placement file: needs {{"placement": {{op: device}}}}'
    )
  return device_of


def _predict(args, cluster: Cluster, device_of, progress: Progress):
  """Returns the graph with costs and its simulated step, or None twice."""
  if device_of is None or not (args.profile or args.estimate):
    return None, None
  model = model_input.read_model(args, cluster, progress)
  placement = placement_for(model.graph, cluster, device_of)
  progress("simulating")
  simulation = simulate(
    model.graph, cluster, placement.device, policy="executor"
  )
  return model.graph, simulation
