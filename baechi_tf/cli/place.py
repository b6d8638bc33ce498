"""`baechi place`: plans a model and writes it with the planned devices."""

import argparse
import contextlib
import json
import os
from collections.abc import Iterator

from baechi_tf import atomic
from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_report
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.output_path import check_output
from baechi_tf.cli.output_path import check_report
from baechi_tf.cli.progress import Progress
from baechi_tf.cluster import Cluster
from baechi_tf.placers import PLACERS
from baechi_tf.planner import BEST
from baechi_tf.planner import Plan
from baechi_tf.planner import plan
from baechi_tf.reports.directory import write_files
from baechi_tf.reports.summary import Fields
from baechi_tf.reports.summary import summarize
from baechi_tf.reports.text import report

_DESCRIPTION = """\
Plans on which device each op of a model runs, so that a step is short and every
device's memory suffices, and writes the model with these devices.

IN is a SavedModel directory, a GraphDef or MetaGraphDef file (.pb, .pbtxt), or
a cost graph (.json, see docs/cost_graph.md), of which only a plan is written.
"""
_EXAMPLE = """\
baechi place model/ placed/ --cluster configs/clusters/2_cpus.toml \\
    --signature train --batch-size 32 --report report/
baechi place costs.json plan.json --cluster cluster.toml
"""
_MODEL, _PLAN = "model", "plan"


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "place",
    run,
    summary="plan a model's devices and write it with them",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument("model", metavar="IN", help="the model, or a cost graph")
  parser.add_argument("output", metavar="OUT", help="where the result goes")
  model_input.add_cluster_arguments(parser)
  add_planner_arguments(parser)
  parser.add_argument(
    "--placer",
    choices=[BEST, *PLACERS],
    default=BEST,
    metavar="PLACER",
    help=f"{', '.join(PLACERS)}, or best (the default), which tries them all"
    " and keeps the best plan that fits",
  )
  parser.add_argument(
    "--emit",
    choices=[_MODEL, _PLAN],
    help="what OUT is: the model with its devices, or the plan alone, as JSON;"
    " default: the model, for a cost graph the plan",
  )
  add_report(parser)
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace OUT and DIR if they exist",
  )
  add_json(parser)
  model_input.add_step_arguments(parser)
  model_input.add_shape_arguments(parser)
  model_input.add_cost_arguments(parser)


def add_planner_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what changes how any placer plans."""
  parser.add_argument(
    "--no-coplacement",
    dest="coplacement",
    action="store_false",
    help="do not try to keep an op with the only op that takes its output",
  )
  parser.add_argument(
    "--no-fusion",
    dest="fusion",
    action="store_false",
    help="do not merge ops that stay together before placing them (slower)",
  )


def plan_and_summarize(
  args: argparse.Namespace,
  model: model_input.ModelInput,
  cluster: Cluster,
  placer: str,
  progress: Progress,
) -> tuple[Plan, Fields]:
  """Returns the plan that the arguments ask for, and its figures.

  Args:
    args: with `model` and what `add_planner_arguments` adds.
    model: the model and its costs.
    cluster: the devices.
    placer: its name, or "best".
    progress: is told what is being done.

  Raises:
    InfeasiblePlacementError: no plan was found that fits the memory.
  """
  planned = plan(
    model.graph,
    cluster,
    placer=placer,
    coplacement=args.coplacement,
    fusion=args.fusion,
    progress=progress,
  )
  summary = summarize(
    model.graph,
    cluster,
    planned.simulation,
    planned.bound,
    model=args.model,
    chosen=planned.chosen,
    candidates=planned.candidates,
    coverage=model.coverage,
  )
  summary["notes"] += [*model.notes, *planned.notes]
  return planned, summary


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  cluster = model_input.read_devices(args)
  is_cost_graph = model_input.is_cost_graph(args.model)
  emit = args.emit or (_PLAN if is_cost_graph else _MODEL)
  if is_cost_graph and emit == _MODEL:
    raise ValueError(
      f"{args.model} is a cost graph, of which there is no model to write; use"
      " --emit plan"
    )
  _check_outputs(args, emit)
  with Progress() as progress:
    model = model_input.read_model(args, cluster, progress)
    planned, summary = plan_and_summarize(
      args, model, cluster, args.placer, progress
    )
    summary["notes"] += _memory_notes(args)
    progress("writing")
    with _report_directory(args) as directory:
      if emit == _PLAN:
        atomic.write_text(args.output, [planned.placement.to_json()])
      else:
        device_of = planned.placement.as_dict()
        summary["notes"] += _write_model(args, model.item, device_of)
      if directory:
        write_files(
          directory,
          summary,
          model.graph,
          cluster,
          planned.simulation,
          planned.placement,
        )
  _print(args, summary, sum(planned.timings_s.values()))


def _check_outputs(args: argparse.Namespace, emit: str) -> None:
  others = [args.model]
  inputs = [args.cluster, args.profile]
  others += [x for x in inputs if x and not os.path.isdir(x)]
  is_directory = emit == _MODEL and os.path.isdir(args.model)
  check_output(
    args.output,
    apart_from=tuple(others),
    overwrite=args.overwrite,
    is_ours=_is_saved_model if is_directory else os.path.isfile,
    kind="a SavedModel" if is_directory else "a file",
  )
  if emit == _MODEL and not is_directory and os.path.isfile(args.model):
    if not args.output.endswith((".pb", ".pbtxt")):
      raise ValueError(
        f"the placed graph of {args.model} needs a name that ends in .pb or"
        f" .pbtxt, not {args.output}"
      )
  if args.report:
    check_report(args.report, (*others, args.output), args.overwrite)


def _is_saved_model(path: str) -> bool:
  return os.path.isfile(os.path.join(path, "saved_model.pb"))


@contextlib.contextmanager
def _report_directory(args: argparse.Namespace) -> Iterator[str | None]:
  if not args.report:
    yield None
    return
  with atomic.replacing_directory(args.report) as directory:
    yield directory


def _write_model(args, item, device_of: dict[str, str]) -> list[str]:
  """Writes the model with its devices; returns notes on how."""
  # These import TensorFlow.
  from baechi_tf.device_rewrite import rewrite_devices
  from baechi_tf.graph_files import read_graph_file
  from baechi_tf.graph_files import write_graph
  from baechi_tf.saved_model import write_saved_model

  if os.path.isdir(args.model):
    written = write_saved_model(
      args.model,
      args.output,
      item,
      device_of,
      overwrite=args.overwrite,
      tags=args.tags,
    )
    specialised = written.specialised
  else:
    graph_def = read_graph_file(args.model).graph_def
    graph_def, specialised = rewrite_devices(graph_def, item.paths, device_of)
    write_graph(graph_def, args.output)
  if not specialised:
    return []
  return [
    f"{len(specialised)} functions are new, because calls of one body have"
    f" different devices: {', '.join(specialised)}"
  ]


def _memory_notes(args: argparse.Namespace) -> list[str]:
  if args.memory_fraction == 1.0:
    return []
  return [f"limits are {args.memory_fraction:g} of the devices' memory"]


def _print(args, summary: Fields, seconds: float) -> None:
  if args.json:
    written = {"output": args.output, "report": args.report}
    print(json.dumps({**summary, **written, "planning_seconds": seconds}))
    return
  print(report(summary), end="")
  print(f"planned in {seconds:.2f} s")
  print(f"wrote {args.output}")
  if args.report:
    print(f"wrote {args.report}")
