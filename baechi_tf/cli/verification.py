"""`baechi place --verify`: runs the plan beside one device, and plans again."""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable

from baechi_tf.cli import model_input
from baechi_tf.cli.progress import Progress
from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostedModel
from baechi_tf.planner import Plan
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.summary import AttemptSummary
from baechi_tf.reports.summary import one_device
from baechi_tf.reports.summary import Verification
from baechi_tf.runner.start import local_run
from baechi_tf.runner.verification import Attempt
from baechi_tf.runner.verification import Model
from baechi_tf.runner.verification import TOLERANCE
from baechi_tf.runner.verification import verify

_ONE_DEVICE = "single_device"
Planner = Callable[[CostedModel, Cluster, str], Plan]


def verified(
  args: argparse.Namespace,
  model: CostedModel,
  cluster: Cluster,
  planned: Plan,
  plan: Planner,
  progress: Progress,
) -> tuple[CostedModel, Cluster, Plan, Verification]:
  """Returns model and cluster with corrected costs, the plan and what was run.

  Args:
    args: the command's arguments.
    model: the model and its costs.
    cluster: the devices.
    planned: the first plan.
    plan: makes a plan, given a model, a cluster and a placer.
    progress: is told what is being done.

  Raises:
    ChildProcessError: a process ended, or a step fails.
  """
  from baechi_tf.pipeline import input_values  # imports TensorFlow

  values = input_values(model.item, model_input.input_source(args))
  types = {node.name: node.op for node in model.item.graph_def.node}
  alone = one_device(model.graph, cluster)

  def replan(graph, corrected: Cluster, on_one_device: bool) -> Plan:
    placer = _ONE_DEVICE if on_one_device else args.placer
    return plan(dataclasses.replace(model, graph=graph), corrected, placer)

  with (
    tempfile.TemporaryDirectory(prefix="baechi_verify") as directory,
    local_run(cluster, private=not args.listen_on_network) as running,
  ):
    chosen, graph, cluster, attempts = verify(
      running,
      Model(
        load=lambda run, key, device: run.load(
          key, args.model, args.signature, values, tags=args.tags, device=device
        ),
        load_placed=lambda run, key, x: _load_placed(
          args, model.item, values, directory, run, key, x
        ),
        op_types=[types[name] for name in model.graph.names],
      ),
      model.graph,
      cluster,
      planned,
      replan,
      alone.name if alone.fits else None,
      progress,
    )
  model = dataclasses.replace(model, graph=graph)
  return model, cluster, chosen, _summary(attempts, chosen)


def _load_placed(args, item, values, directory, run, key, planned: Plan):
  """Writes and loads the placed model; returns the op of each executed name."""
  # These import TensorFlow.
  from baechi_tf.runner.written_plan import executed_names
  from baechi_tf.saved_model import write_saved_model

  path = os.path.join(directory, key)
  write_saved_model(
    args.model,
    path,
    item,
    planned.placement.as_dict(),
    order=planned.ordered_ops,
    tags=args.tags,
    follow_links=args.follow_links,
  )
  run.load(key, path, args.signature, values, tags=args.tags)
  return {executed: op for op, executed in executed_names(item).items()}


def _summary(attempts: tuple[Attempt, ...], chosen: Plan) -> Verification:
  last = attempts[-1].plan if attempts else None
  return Verification(
    tolerance=TOLERANCE,
    chosen=len(attempts) - 1 if chosen is last else None,
    attempts=tuple(
      AttemptSummary(
        placer=x.plan.chosen.placer,
        coplacement=x.plan.chosen.coplacement,
        predicted_us=x.plan.simulation.makespan_us,
        measured_us=x.measured_us,
        one_device_us=x.one_device_us,
        op_factors=dict(x.op_factors),
        link_factor=x.link_factor,
      )
      for x in attempts
    ),
  )


def story(verification: Verification, is_pinned: bool) -> str:
  """Returns what was run and decided, a line each.

  Args:
    verification: the plans that were run.
    is_pinned: whether pins hold ops, which then stay apart from the others.
  """
  lines = []
  attempts = verification.attempts
  if not attempts:
    lines.append("verified: all ops are on one device, nothing had to be run")
  for i, x in enumerate(attempts):
    line = (
      f"plan {i + 1}, by {x.placer}: predicted"
      f" {duration(x.predicted_us)}, measured {duration(x.measured_us)}"
    )
    if x.one_device_us is None:
      line += "; one device has too little memory: the plan stands"
    else:
      line += f", one device {duration(x.one_device_us)}"
      if i == verification.chosen:
        line += ": verified"
      else:
        line += (
          f": slower; the links cost {x.link_factor:.1f} x as much, and ops"
          " what they took"
        )
    lines.append(line)
  if attempts and verification.chosen is None:
    what = "all that is not pinned is" if is_pinned else "all ops are"
    lines.append(f"no plan was faster: {what} on one device")
  return "\n".join(lines)
