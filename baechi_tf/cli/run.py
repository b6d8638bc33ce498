"""`baechi run`: runs a placed model, and shows the step beside the plan's."""

import argparse
import json
import os
from collections.abc import Mapping
from collections.abc import Sequence

from baechi_tf import atomic
from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_network
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.help import warn_of_open_server
from baechi_tf.cli.progress import Progress
from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostSource
from baechi_tf.output_path import file_output
from baechi_tf.placement import placement_for
from baechi_tf.placement import read_names
from baechi_tf.reports.run_report import measured_devices
from baechi_tf.reports.run_report import run_fields
from baechi_tf.reports.run_report import run_text
from baechi_tf.reports.run_trace import run_trace_lines
from baechi_tf.runner import start
from baechi_tf.simulator import follow

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

on b, then on a:
baechi run placed/ --cluster two.toml --host a:2222 --host b:2222 \\
    --task 1 --serve
baechi run placed/ --cluster two.toml --host a:2222 --host b:2222
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
    help="steps to run before and drop; default: 100, or what takes 10 s",
  )
  parser.add_argument(
    "--limit-memory",
    action="store_true",
    help="have the system kill a process that needs more than the memory of"
    " its devices, beyond what it takes without a model",
  )
  add_network(parser)
  parser.add_argument(
    "--trace",
    metavar="FILE",
    type=path,
    help="write one step, predicted and measured, for Perfetto or"
    " chrome://tracing",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace FILE if it exists"
  )
  add_json(parser)
  group = parser.add_argument_group(
    "hosts", "With these, a process runs on each host instead of all here."
  )
  group.add_argument(
    "--host",
    metavar="ADDRESS:PORT",
    action="append",
    default=[],
    help="the address of one process; give it once for each process that the"
    " device names mention, in their order and the same on every host. The"
    " first runs the steps, and each of the others --serve",
  )
  group.add_argument(
    "--task",
    metavar="N",
    type=int,
    help="with --serve, which of the hosts this one is, counted from 0",
  )
  group.add_argument(
    "--serve",
    action="store_true",
    help="wait for the first host to run steps here; ends with Ctrl-C",
  )
  model_input.add_step_arguments(parser)
  parser.set_defaults(rewrite=False)  # it runs as it is written
  model_input.add_input_arguments(parser)
  model_input.add_cost_arguments(
    parser, without_either="Without either, no step is predicted."
  )


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = model_input.read_devices(args)
  _check(args)
  if args.host:
    tasks = start.tasks_of(cluster.device_names)
    if args.serve:
      start.check_server(tasks, args.host, args.task or 0)
    else:
      start.check_hosts(tasks, args.host)
    warn_of_open_server()
  if args.serve:
    start.serve(cluster, args.host, args.task or 0)
  planned, order = read_names(args.plan) if args.plan else (None, None)
  inputs, costs = model_input.input_source(args), None
  if args.profile or args.estimate:
    costs = model_input.cost_source(args, cluster, CostSource())
  with Progress() as progress:
    item = model_input.read_step(args, progress)
    # These import TensorFlow.
    from baechi_tf.pipeline import input_values
    from baechi_tf.runner import written_plan

    values = input_values(item, inputs)
    device_of, notes = written_plan.plan_to_run(
      item,
      written_plan.written_devices(item),
      planned,
      cluster.device_names,
    )
    graph, simulation = None, None
    if costs and device_of is not None:
      graph, simulation = _predict(
        item,
        cluster,
        costs.for_values(values),
        device_of,
        order,
        progress,
      )
    progress("starting the processes")
    with _processes(args, cluster) as running:
      progress("loading the model")
      executed = running.load(
        "model", args.model, args.signature, values, tags=args.tags
      )
      progress("running steps")
      if args.warmup is None:
        running.warm_up("model")
      elif args.warmup:
        running.run("model", args.warmup)
      measured = running.run("model", args.steps)
      trace = running.trace("model")
    bytes_of = None
    if graph is not None:
      bytes_of = written_plan.output_bytes(item, graph)
    fields = run_fields(
      running,
      cluster,
      measured,
      measured_devices(
        running, trace, executed, cluster.device_names, bytes_of
      ),
      model=args.model,
      traced_us=trace.time_us,
      prediction=None if graph is None else (graph, simulation),
    )
    fields["notes"] += notes
    note = None if args.host else start.core_note(len(running.tasks))
    fields["notes"] += [note] if note else []
    if args.trace:
      lines = run_trace_lines(
        cluster, trace, executed, None if graph is None else (graph, simulation)
      )
      with atomic.publishing() as outputs:
        output = file_output(args.trace, args.overwrite)
        outputs.write_text(output.path, lines, output.check_replaced)
  print(json.dumps(fields) if args.json else run_text(fields))


def _processes(args: argparse.Namespace, cluster: Cluster):
  if args.host:
    return start.remote_run(cluster, args.host)
  return start.local_run(
    cluster, private=not args.listen_on_network, limit_memory=args.limit_memory
  )


def _check(args: argparse.Namespace) -> None:
  if not os.path.isdir(args.model):
    os.stat(args.model)
    raise ValueError(f"{args.model} is no SavedModel directory")
  if args.trace:
    file_output(args.trace, args.overwrite).check(apart_from=(args.model,))
  if args.steps < 1:
    raise ValueError(f"--steps {args.steps} must be at least 1")
  if args.warmup is not None and args.warmup < 0:
    raise ValueError(f"--warmup {args.warmup} must be at least 0")


def _predict(
  item,
  cluster: Cluster,
  costs: CostSource,
  device_of: Mapping[str, str],
  order: Sequence[str] | None,
  progress: Progress,
):
  """Returns the graph with costs and its step, in the order if there is one."""
  from baechi_tf.pipeline import cost_item  # imports TensorFlow

  graph = cost_item(item, cluster, costs, progress).graph
  placement = placement_for(graph, cluster, device_of, order)
  progress("simulating")
  return graph, follow(graph, cluster, placement)
