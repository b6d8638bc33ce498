r"""Checks that a placed model computes what the model does, where planned.

Runs some steps of both, from the same variables on the same inputs; compares
outputs and variables; and looks up, in the graphs that TensorFlow executed, on
which device each planned op ran and what became of the ops that are not there.
All that twice: as TensorFlow runs it, and with its graph optimizer off, where
every planned op must be found.

    python -m tools.check_placed MODEL PLACED --placement=REPORT/placement.json

Without `--placement` the plan is what PLACED says. Fails if a number differs
by more than its tolerance, if an op is not on its planned device for no good
reason, or if all ops ran on one device. Float inputs are drawn at random and
whole numbers are 0 or 1, which every model with two labels or tokens accepts.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping

import tensorflow as tf
from absl import app
from absl import flags

from baechi_tf.graph_files import choose_meta_graph
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.saved_model import load
from tools import placed_report
from tools import step_run
from tools.op_fates import Account
from tools.op_fates import account
from tools.step_run import compare
from tools.step_run import Difference
from tools.step_run import Run

_NUM_CPUS = flags.DEFINE_integer("num_cpus", 2, "CPU devices to make.")
_SIGNATURE = flags.DEFINE_string("signature", "train", "What to run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 3, "How many steps to run.")
_PLACEMENT = flags.DEFINE_string(
  "placement", None, "The plan, as baechi place --report writes it."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
  """A placed model beside the model, with the graph optimizer on or off."""

  model: Run
  placed: Run
  difference: Difference
  account: Account

  @property
  def passes(self) -> bool:
    """Whether the placed model does what it should."""
    return (
      self.difference.is_same
      and self.placed.executed.num_devices > 1
      and not self.account.unexplained
    )


class PlacedModel:
  """A placed SavedModel and its plan, ready to be run and judged."""

  def __init__(
    self, path: str, signature: str, placement: str | os.PathLike | None = None
  ):
    """Reads the placed model.

    Args:
      path: the placed SavedModel.
      signature: the step that was planned.
      placement: the plan's JSON; else the devices in the model are the plan.

    Raises:
      ValueError: a file is not what it should be.
      OSError: a file cannot be read.
    """
    self.path = path
    self.signature = signature
    self.item = read_item(path, signature=signature)
    self.graph_def = choose_meta_graph(read_saved_model(path), None).graph_def
    if placement is None:
      self.device_of = _written_devices(self.item)
    else:
      with open(placement, encoding="utf-8") as file:
        self.device_of = json.load(file)["placement"]

  def check(self, model: Run, *, optimized: bool) -> Check:
    """Runs as many steps as `model` has, and compares.

    Args:
      model: the model's own run, with the graph optimizer likewise on or off.
      optimized: whether it is on.
    """
    step_run.set_optimizer(optimized)
    steps = len(model.outputs)
    placed = step_run.run_steps(load(self.path), self.signature, steps)
    return Check(
      model,
      placed,
      compare(model, placed, exactly=not optimized),
      account(
        self.item,
        self.graph_def,
        self.device_of,
        placed.executed,
        optimized=optimized,
      ),
    )


def run_model(
  path: str, signature: str, num_steps: int, *, optimized: bool
) -> Run:
  """Returns what a model that is not placed does."""
  step_run.set_optimizer(optimized)
  return step_run.run_steps(tf.saved_model.load(path), signature, num_steps)


def _written_devices(item: GraphItem) -> Mapping[str, str]:
  device_of = {node.name: node.device for node in item.graph_def.node}
  return {name: device_of[name] for name in item.op_names}


def main(argv: list[str]) -> int:
  """Returns 1 if the placed model does not do what the model does."""
  if len(argv) != 3:
    raise app.UsageError("two arguments: the model, and it as placed")
  step_run.make_cpus(_NUM_CPUS.value)
  signature = _SIGNATURE.value
  try:
    placed = PlacedModel(argv[2], signature, _PLACEMENT.value)
    checks = []
    for optimized in (True, False):
      model = run_model(
        argv[1], signature, _NUM_STEPS.value, optimized=optimized
      )
      checks.append(placed.check(model, optimized=optimized))
  except (OSError, ValueError) as error:
    raise app.UsageError(str(error)) from error
  for check in checks:
    lines = placed_report.describe(
      check.model, check.placed, check.difference, check.account
    )
    print("\n".join(lines))
  return int(not all(check.passes for check in checks))


if __name__ == "__main__":
  sys.exit(app.run(main))
