"""How well predicted steps agree with measured ones, and whether that will do.

A case is one plan of one model on one network. All plans of a model on a
network are measured side by side, in rounds: each round gives every plan one
time, so that two plans are compared round by round and the machine's drift
cancels out.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from collections.abc import Sequence

ONE_DEVICE = "single_device"
BEST = "best"

MEDIAN_ERROR = 0.10
WORST_ERROR = 0.25
DISTINCT = 0.05  # pairs that differ by less have no right order
RIGHT_ORDER = 0.90
SLOWDOWN = 0.03
TOWERS = "towers"
LOOPBACK = "loopback"
TOWERS_SPEEDUP = 1.6


@dataclasses.dataclass(frozen=True)
class Case:
  """One plan's predicted and measured figures.

  Attributes:
    model: the model's name.
    network: the network's name.
    plan: how the plan was made.
    predicted_us: the step's predicted time.
    rounds_us: the median step of each round, `[r]`; round k of all plans of a
      model on a network ran side by side.
    least_us: the fastest of all steps.
    cpu_us: processor time of each process in a step, `[num_processes]`.
    bytes_moved: what the plan sends between the devices in a step.
  """

  model: str
  network: str
  plan: str
  predicted_us: float
  rounds_us: tuple[float, ...]
  least_us: float
  cpu_us: tuple[float, ...]
  bytes_moved: int

  @property
  def measured_us(self) -> float:
    """The median of the rounds."""
    return statistics.median(self.rounds_us)

  @property
  def error(self) -> float:
    """|predicted - measured| / measured."""
    return abs(self.predicted_us - self.measured_us) / self.measured_us


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A goal and what was measured of it.

  Attributes:
    goal: the goal in words.
    measured: the figure in words.
    holds: whether the goal is reached; None where nothing was measured.
  """

  goal: str
  measured: str
  holds: bool | None


def ratio(case: Case, other: Case) -> float:
  """Returns by what factor `case` is slower: the median over the rounds.

  Raises:
    ValueError: the two were not measured in the same rounds.
  """
  pairs = zip(case.rounds_us, other.rounds_us, strict=True)
  return statistics.median(a / b for a, b in pairs)


def groups(cases: Iterable[Case]) -> dict[tuple[str, str], list[Case]]:
  """Returns the cases of each (model, network), in the order they came in."""
  found = {}
  for case in cases:
    found.setdefault((case.model, case.network), []).append(case)
  return found


def pair_order(cases: Iterable[Case]) -> tuple[int, int]:
  """Returns how many pairs are predicted in the right order, of how many.

  Only pairs of plans of one model on one network count whose measured steps
  differ by more than `DISTINCT` of the shorter one. A tie of the predictions is
  not the right order.
  """
  right = total = 0
  for group in groups(cases).values():
    for a, b in itertools.combinations(group, 2):
      slower, faster = sorted((a, b), key=lambda x: -x.measured_us)
      if ratio_of_medians(slower, faster) > 1 + DISTINCT:
        total += 1
        right += slower.predicted_us > faster.predicted_us
  return right, total


def ratio_of_medians(case: Case, other: Case) -> float:
  """Returns by what factor the measured step of `case` is longer."""
  return case.measured_us / other.measured_us


def speedup_errors(cases: Iterable[Case]) -> list[float]:
  """Returns |predicted - measured| / measured of speed-ups over one device.

  Only plans that move data count. Both steps of a measured speed-up ran side by
  side, so that it tells the plan's error from a change of the machine's speed
  between profile and run.
  """
  errors = []
  for group in groups(cases).values():
    one_device = next((x for x in group if x.plan == ONE_DEVICE), None)
    if one_device is None:
      continue
    for case in group:
      if case.bytes_moved:
        predicted = one_device.predicted_us / case.predicted_us
        errors.append(abs(predicted * ratio(case, one_device) - 1))
  return errors


def verdicts(cases: Sequence[Case]) -> list[Verdict]:
  """Returns the verdict on each goal that needs nothing but cases."""
  return [
    *_errors(cases),
    _order(cases),
    _never_slower(cases),
    _towers(cases),
  ]


def _errors(cases: Sequence[Case]) -> list[Verdict]:
  found = []
  for what, errors in (
    ("step, all cases", [x.error for x in cases]),
    ("step, plans that move data", [x.error for x in cases if x.bytes_moved]),
    ("speed-up, plans that move data", speedup_errors(cases)),
  ):
    for name, limit, reduce in (
      ("median", MEDIAN_ERROR, statistics.median),
      ("worst", WORST_ERROR, max),
    ):
      goal = f"error of the {what}: {name} at most {limit:.0%}"
      if errors:
        error = reduce(errors)
        found.append(Verdict(goal, f"{error:.1%}", error <= limit))
      else:
        found.append(Verdict(goal, "not measured", None))
  return found


def _order(cases: Sequence[Case]) -> Verdict:
  right, total = pair_order(cases)
  goal = (
    f"pairs of plans that differ by more than {DISTINCT:.0%}: at least"
    f" {RIGHT_ORDER:.0%} predicted in the right order"
  )
  if not total:
    return Verdict(goal, "no such pairs", None)
  return Verdict(
    goal,
    f"{right} of {total}, {right / total:.0%}",
    right >= RIGHT_ORDER * total,
  )


def _never_slower(cases: Sequence[Case]) -> Verdict:
  goal = f"{BEST}: never more than {SLOWDOWN:.0%} slower than one device"
  slowdowns = [
    (found - 1, f"{model}, {network}")
    for (model, network), group in groups(cases).items()
    if (found := _best_against_one_device(group))
  ]
  if not slowdowns:
    return Verdict(goal, "not measured", None)
  worst, where = max(slowdowns)
  return Verdict(goal, f"{worst:+.1%} at worst ({where})", worst <= SLOWDOWN)


def _towers(cases: Sequence[Case]) -> Verdict:
  goal = f"{TOWERS}, {LOOPBACK}: {BEST} at least {TOWERS_SPEEDUP} x as fast"
  group = groups(cases).get((TOWERS, LOOPBACK), [])
  found = _best_against_one_device(group)
  if not found:
    return Verdict(goal, "not measured", None)
  return Verdict(goal, f"{1 / found:.2f} x", 1 / found >= TOWERS_SPEEDUP)


def _best_against_one_device(group: Sequence[Case]) -> float | None:
  """Returns the best plan's time over one device's; None without both."""
  by_plan = {case.plan: case for case in group}
  if BEST not in by_plan or ONE_DEVICE not in by_plan:
    return None
  return ratio(by_plan[BEST], by_plan[ONE_DEVICE])
