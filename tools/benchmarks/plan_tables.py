"""The tables of docs/real_clusters.md."""

from collections.abc import Iterator
from collections.abc import Sequence

from tools import markdown
from tools.benchmarks import plan_accuracy
from tools.benchmarks.plan_accuracy import Case
from tools.benchmarks.plan_accuracy import Verdict

_MIB = 2**20
_HOLDS = {True: "yes", False: "no", None: "-"}


def cases_table(cases: Sequence[Case]) -> str:
  """Returns the cases of one model on one network, a plan a row.

  The speed-ups are against one device, the measured one in the same rounds;
  they are missing where one device was not measured.
  """
  one_device = next(
    (x for x in cases if x.plan == plan_accuracy.ONE_DEVICE), None
  )
  header = (
    "plan", "predicted ms", "measured ms", "least ms", "error",
    "processors ms", "MiB moved", "speed-up predicted", "speed-up measured",
  )  # fmt: skip
  return markdown.table(header, [_row(x, one_device) for x in cases])


def _row(case: Case, one_device: Case | None) -> tuple[str, ...]:
  if one_device is None:
    speedups = "-", "-"
  else:
    speedups = (
      f"{one_device.predicted_us / case.predicted_us:.2f}",
      f"{1 / plan_accuracy.ratio(case, one_device):.2f}",
    )
  signed = case.predicted_us / case.measured_us - 1
  return (
    case.plan,
    f"{case.predicted_us / 1e3:.1f}",
    f"{case.measured_us / 1e3:.1f}",
    f"{case.least_us / 1e3:.1f}",
    f"{signed:+.0%}",
    " + ".join(f"{x / 1e3:.1f}" for x in case.cpu_us),
    f"{case.bytes_moved / _MIB:.1f}",
    *speedups,
  )


def verdicts_table(verdicts: Sequence[Verdict]) -> str:
  """Returns each goal beside its figure."""
  rows = [(x.goal, x.measured, _HOLDS[x.holds]) for x in verdicts]
  return markdown.table(("goal", "measured", "reached"), rows, num_left=3)


def report(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> Iterator[str]:
  """Yields all tables, each under a heading, and the goals last."""
  for (model, network), group in plan_accuracy.groups(cases).items():
    yield f"### {model}, {network}\n\n{cases_table(group)}\n"
  yield f"### Goals\n\n{verdicts_table(verdicts)}"
