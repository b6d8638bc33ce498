"""`baechi place`: plans a model and writes it with the planned devices."""

import argparse
import json
import os
from collections.abc import Sequence

from baechi_tf import atomic
from baechi_tf.cli import model_input
from baechi_tf.cli import steering
from baechi_tf.cli import verification
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_network
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.report_output import add_report
from baechi_tf.cli.report_output import report_output
from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostedModel
from baechi_tf.given_plan import GIVEN
from baechi_tf.given_plan import read_plan
from baechi_tf.output_path import file_output
from baechi_tf.output_path import placed_output
from baechi_tf.placers import PLACERS
from baechi_tf.planner import BEST
from baechi_tf.planner import NO_SEARCH
from baechi_tf.planner import Plan
from baechi_tf.planner import plan
from baechi_tf.printable import printable
from baechi_tf.reports.directory import stage_report
from baechi_tf.reports.summary import summarize
from baechi_tf.reports.summary import Summary
from baechi_tf.reports.summary import Verification
from baechi_tf.reports.text import report
from baechi_tf.runner.tasks import tasks_of
from baechi_tf.search.budget import Budget
from baechi_tf.search.budget import DEFAULT_BUDGET

_DESCRIPTION = """\
Plans on which device each op of a model runs, so that a step is short and every
device's memory suffices, and writes the model with these devices.

IN is a SavedModel directory, a GraphDef or MetaGraphDef file (.pb, .pbtxt,
.meta), of which a GraphDef is written, or a cost graph (.json, see
docs/cost_graph.md), of which only a plan is written.
"""
_EXAMPLE = """\
baechi place model/ placed/ --cluster configs/clusters/2_cpus.toml \\
    --signature train --batch-size 32 --report report/
baechi place costs.json plan.json --cluster cluster.toml
baechi place model/ placed/ --cluster two.toml --plan edited_plan.json
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
  parser.add_argument(
    "model", type=path, metavar="IN", help="the model, or a cost graph"
  )
  parser.add_argument(
    "output", type=path, metavar="OUT", help="where the result goes"
  )
  model_input.add_cluster_arguments(parser)
  add_planner_arguments(parser)
  parser.add_argument(
    "--placer",
    choices=[BEST, *PLACERS],
    default=BEST,
    metavar="PLACER",
    help=f"{', '.join(PLACERS)}, or best (the default), which tries them all,"
    " searches on from their plans and keeps the best plan that fits",
  )
  _add_search_arguments(parser)
  parser.add_argument(
    "--plan",
    metavar="PLAN",
    type=path,
    help="a plan's JSON, perhaps edited by hand: check it, predict its step and"
    " write the model with its devices, instead of planning",
  )
  steering.add_steering_arguments(parser)
  parser.add_argument(
    "--emit",
    choices=[_MODEL, _PLAN],
    help="what OUT is: the model with its devices, or the plan alone, as JSON;"
    " default: the model, for a cost graph the plan",
  )
  add_report(parser)
  parser.add_argument(
    "--verify",
    action="store_true",
    help="run the placed model beside the model on one device, in processes of"
    " this machine; if it is slower, correct the costs and plan again",
  )
  add_network(parser)
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="replace OUT and DIR if they exist",
  )
  parser.add_argument(
    "--follow-links",
    action="store_true",
    help="copy what symbolic links out of the model lead to",
  )
  add_json(parser)
  model_input.add_model_arguments(parser)


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the budget of the search."""
  parser.add_argument(
    "--search-seconds",
    type=float,
    metavar="S",
    help=f"how long best searches, by default {DEFAULT_BUDGET.seconds:g};"
    " 0 keeps to the placers' plans."
    " Ctrl-C ends the search with the best plan so far",
  )
  parser.add_argument(
    "--search-evaluations",
    type=int,
    metavar="N",
    help="how many placements the search tries, instead of a time: the same"
    " number and seed give the same plan",
  )
  parser.add_argument(
    "--search-seed",
    type=int,
    metavar="N",
    help="seed of the search's random moves, by default 0",
  )


def _budget(args: argparse.Namespace) -> Budget:
  """Returns what the search of "best" may take.

  Raises:
    ValueError: a number is negative, not finite or too large.
  """
  seconds = args.search_seconds
  return Budget(
    DEFAULT_BUDGET.seconds if seconds is None else seconds,
    args.search_evaluations,
    args.search_seed or 0,
  )


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
  parser.add_argument(
    "--order",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="keep the ops that take long in the planned order, with control edges"
    " in the written model (default); else TensorFlow runs what is ready. See"
    " docs/order.md: each process needs at least two inter-op threads",
  )


def make_plan(
  args: argparse.Namespace,
  model: CostedModel,
  cluster: Cluster,
  placer: str,
  progress: Progress,
  budget: Budget = NO_SEARCH,
) -> Plan:
  """Returns the plan that the arguments ask for.

  Args:
    args: with what `add_planner_arguments` and `add_steering_arguments` add.
    model: the model and its costs.
    cluster: the devices.
    placer: its name, or "best".
    progress: is told what is being done.
    budget: the time or the placements that the search may take, if the placer
      is "best".

  Raises:
    InfeasiblePlacementError: no plan was found that fits the memory.
  """
  return plan(
    model.graph,
    cluster,
    placer=placer,
    coplacement=args.coplacement,
    fusion=args.fusion,
    order=args.order,
    pins=steering.pins_of(args),
    budget=budget if placer == BEST else NO_SEARCH,
    progress=progress,
  )


def summarize_plan(
  args: argparse.Namespace,
  model: CostedModel,
  cluster: Cluster,
  planned: Plan,
  *,
  notes: Sequence[str] = (),
  verification: Verification | None = None,
) -> Summary:
  """Returns the figures of a plan, made by `make_plan` or given.

  Args:
    args: with `model`, what the user calls it.
    model: the model and its costs.
    cluster: the devices.
    planned: the plan.
    notes: sentences for the reader, beside the notes of the model and the plan.
    verification: the plans that were run, if any was to be.
  """
  is_given = planned.chosen.placer == GIVEN
  return summarize(
    model.graph,
    cluster,
    planned.simulation,
    planned.bound,
    model=args.model,
    chosen=None if is_given else planned.chosen,
    candidates=() if is_given else planned.candidates,
    coverage=model.coverage,
    pins=planned.pins,
    notes=(*model.notes, *planned.notes, *notes),
    num_rewritten=model.num_rewritten,
    verification=verification,
  )


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  budget = _budget(args)
  cluster = steering.chosen_devices(args, model_input.read_devices(args))
  if args.plan:
    os.stat(args.plan)  # complains, if so, before the work
  if args.emit == _MODEL and model_input.is_cost_graph(args.model):
    raise ValueError(
      f"{args.model} is a cost graph, of which there is no model to write; use"
      " --emit plan"
    )
  if emits_plan(args):
    output = file_output(args.output, args.overwrite)
  else:
    tasks_of(cluster.device_names)  # complains of names not TensorFlow's
    output = placed_output(args.model, args.output, args.overwrite)
  output.check(apart_from=_inputs(args))
  report_to = report_output(args, *_inputs(args), args.output)
  with Progress() as progress:
    model = model_input.read_model(args, cluster, progress)
    model = steering.with_devices(args, model, cluster)
    planned = _planned(args, model, cluster, progress, budget)
    ran = None
    if args.verify:
      model, cluster, planned, ran = verification.verified(
        args,
        model,
        cluster,
        planned,
        lambda *x: make_plan(args, *x, progress, budget),
        progress,
      )
    progress("writing")
    with atomic.publishing() as outputs:
      notes = [
        *_memory_notes(args),
        *_stage(args, outputs, output, model, planned),
      ]
      summary = summarize_plan(
        args, model, cluster, planned, notes=notes, verification=ran
      )
      if report_to:
        stage_report(
          outputs,
          report_to,
          summary,
          model.graph,
          cluster,
          planned.simulation,
          planned.placement,
        )
      text = _text(args, summary, sum(planned.timings_s.values()))
  print(text)


def _stage(args, outputs, output, model: CostedModel, planned: Plan):
  """Adds the plan or the placed model; returns notes on what was written."""
  if emits_plan(args):
    plan_text = planned.placement.to_json()
    outputs.write_text(output.path, [plan_text], output.check_replaced)
    return ()
  from baechi_tf.pipeline import stage_placed  # imports TensorFlow

  return stage_placed(
    outputs,
    args.model,
    output,
    model.item,
    planned,
    tags=args.tags,
    follow_links=args.follow_links,
  )


def _planned(args, model, cluster, progress, budget) -> Plan:
  """Returns the plan that is asked for, or the given one."""
  if not args.plan:
    return make_plan(args, model, cluster, args.placer, progress, budget)
  return read_plan(
    args.plan,
    model.graph,
    cluster,
    order=args.order,
    pins=steering.pins_of(args),
    progress=progress,
  )


def emits_plan(args: argparse.Namespace) -> bool:
  """Whether OUT is a plan alone, not a model."""
  if args.emit is None:
    return model_input.is_cost_graph(args.model)
  return args.emit == _PLAN


def _inputs(args: argparse.Namespace) -> tuple[str, ...]:
  """Returns the paths that output must not replace."""
  files = [args.cluster, args.profile, args.inputs, args.plan]
  return (args.model, *(x for x in files if x and not os.path.isdir(x)))


def _memory_notes(args: argparse.Namespace) -> list[str]:
  if args.memory_fraction == 1.0:
    return []
  return [f"limits are {args.memory_fraction:g} of the devices' memory"]


def _text(args, summary: Summary, seconds: float) -> str:
  """Returns what is printed."""
  if args.json:
    written = {"output": args.output, "report": args.report}
    return json.dumps(
      {**summary.fields(), **written, "planning_seconds": seconds}
    )
  written = [args.output, *([args.report] if args.report else [])]
  lines = [f"planned in {seconds:.2f} s"]
  if summary.verification:
    is_pinned = bool(summary.pins) or args.keep_devices
    lines = [verification.story(summary.verification, is_pinned), *lines]
  lines += [f"wrote {x}" for x in printable(written)]
  return report(summary) + "\n".join(lines)
