r"""Checks that a placed model computes what the model does, where planned.

Runs some steps of both, from the same variables on the same inputs; compares
outputs and variables; and looks up, in the graphs that TensorFlow executed, on
which device each planned op ran and what became of the ops that are not there.
All that twice: as TensorFlow rewrites it before it runs, and as it is written,
where every planned op must be found.

    python -m tools.check_placed MODEL PLACED --placement=REPORT/placement.json

Without `--placement` the plan is what PLACED says. Fails if a number differs
by more than its tolerance, if an op is not on its planned device for no good
reason, or if all ops ran on one device. Float inputs are drawn at random and
whole numbers are 0 or 1, which every model with two labels or tokens accepts.
"""

import sys

from absl import app
from absl import flags

from tools import placed_report
from tools import step_run
from tools.placed_model import PlacedModel
from tools.placed_model import run_model

_NUM_CPUS = flags.DEFINE_integer("num_cpus", 2, "CPU devices to make.")
_SIGNATURE = flags.DEFINE_string("signature", "train", "What to run.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 3, "How many steps to run.")
_PLACEMENT = flags.DEFINE_string(
  "placement", None, "The plan, as baechi place --report writes it."
)


def main(argv: list[str]) -> int:
  """Returns 1 if the placed model does not do what the model does."""
  if len(argv) != 3:
    raise app.UsageError("two arguments: the model, and it as placed")
  step_run.make_cpus(_NUM_CPUS.value)
  signature = _SIGNATURE.value
  try:
    placed = PlacedModel(argv[2], signature, _PLACEMENT.value)
    checks = []
    for rewritten in (True, False):
      model = run_model(
        argv[1], signature, _NUM_STEPS.value, rewritten=rewritten
      )
      checks.append(placed.check(model, rewritten=rewritten))
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
