"""A report on a placed model's run that a person can read."""

import collections
from collections.abc import Iterator

from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table
from tools import step_run
from tools.op_fates import Account
from tools.op_fates import EXPLANATIONS
from tools.op_fates import FATES
from tools.step_run import Difference
from tools.step_run import Run

_SHOWN = 3  # op types of a fate, names of an exception


def describe(
  model: Run, placed: Run, difference: Difference, found: Account
) -> Iterator[str]:
  """Yields the lines of a report.

  Args:
    model: what the model did.
    placed: what it did when it was placed.
    difference: between the two.
    found: what became of the planned ops.
  """
  how = "as TensorFlow rewrites it" if found.rewritten else "as it is written"
  yield f"== {how} ==\n"
  yield _outputs(model, placed)
  yield _devices(placed)
  yield _fates(found)
  yield from _exceptions(found)
  allowed = (
    f"{step_run.RELATIVE_TOLERANCE:g} of a number +"
    f" {step_run.ABSOLUTE_TOLERANCE:g}"
    if found.rewritten
    else "none, bit for bit"
  )
  yield (
    f"{len(model.outputs)} steps: outputs and variables"
    f" {'agree' if difference.is_same else 'DIFFER'}: outputs by"
    f" {difference.output:.1e} (relative), variables by"
    f" {difference.variable:.1e}; allowed: {allowed}; the steps changed"
    f" {difference.num_changed:,} of {len(model.initial):,} variables; ops ran"
    f" on {placed.executed.num_devices} devices\n"
  )


def _outputs(model: Run, placed: Run) -> str:
  rows = [
    [f"{key}, step {step}", f"{value:.7g}", f"{placed.outputs[step][key]:.7g}"]
    for step, outputs in enumerate(model.outputs)
    for key, value in outputs.items()
    if value.ndim == 0
  ]
  return table(["output", "of the model", "as placed"], rows)


def _devices(run: Run) -> str:
  held, held_bytes = collections.Counter(), collections.Counter()
  for variable in run.variables:
    held[variable.device] += 1
    held_bytes[variable.device] += (
      variable.dtype.size * variable.shape.num_elements()
    )
  executed = run.executed
  rows = [
    [
      device.rpartition("/")[2],
      f"{executed.num_ops.get(device, 0):,}",
      f"{executed.num_sent.get(device, 0):,}",
      f"{held[device]:,}",
      size(held_bytes[device]),
    ]
    for device in sorted({*executed.num_ops, *held})
  ]
  header = ["ran and held", "ops", "tensors sent", "variables", "bytes"]
  return table(header, rows)


def _fates(found: Account) -> str:
  rows = []
  for name in FATES:
    fates = [x for x in found.fates if x.fate == name]
    if not fates:
      continue
    types = collections.Counter(
      f"{x.op_type} -> {x.became}"
      if x.became not in ("", x.op_type)
      else x.op_type
      for x in fates
    )
    most = [f"{count:,} {name}" for name, count in types.most_common(_SHOWN)]
    there = "-"
    if any(x.found for x in fates):
      there = f"{sum(x.agrees for x in fates):,}"
    rows.append([name, f"{len(fates):,}", there, ", ".join(most)])
  return table(["planned op", "ops", "where planned"], rows)


def _exceptions(found: Account) -> Iterator[str]:
  judged = "surviving" if found.rewritten else "planned"
  yield (
    f"{len(found.judged) - len(found.exceptions):,} of"
    f" {len(found.judged):,} {judged} ops are on their planned device:"
    f" {100 * found.agreement:.2f} %"
  )
  groups = collections.defaultdict(list)
  for x in found.exceptions:
    groups[EXPLANATIONS.get(x.fate, f"NOT EXPLAINED ({x.fate})")].append(x.name)
  for reason, names in groups.items():
    more = ", ..." if len(names) > _SHOWN else ""
    yield f"  {len(names):,}: {reason}: {', '.join(names[:_SHOWN])}{more}"
