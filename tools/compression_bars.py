"""What must hold in the tables of methods that send less.

A bar is a claim of the papers in numbers for the digits, with slack for other
random numbers than those that it was set with. Cells that were not run miss
no bar.
"""

from collections.abc import Callable
from collections.abc import Mapping

from tools.claims import not_below

_MOST_BYTES_OFF = 0.02
# Float32 sums of T = 1500 steps round to some 1e-6.
MOST_SPREAD = 1e-5

Missed = list[str]


def missed_bytes(counted: float, promised: float, where: str) -> Missed:
  """Returns a line if a byte counter does not agree with the formula.

  Args:
    counted: R_C, of the bytes that were sent.
    promised: R_C, by the formula.
    where: for the line.
  """
  if abs(counted / promised - 1) <= _MOST_BYTES_OFF:
    return []
  return [
    f"(bytes) {where}: R_C {counted:.1f} is not within"
    f" {_MOST_BYTES_OFF:.0%} of {promised:.1f}"
  ]


def missed_ratios(
  accuracies: Mapping[tuple[str, int, float], float],
) -> Missed:
  """Returns a line for each claim about CSER that does not hold.

  Args:
    accuracies: on test examples, by (method, R_C in name, learning rate).
  """

  def best(method: str, ratio: int) -> float:
    return max(accuracies[method, ratio, rate] for rate in (0.05, 0.1, 0.5))

  def at_half(method: str, ratio: int) -> float:
    return accuracies[method, ratio, 0.5]

  return not_below(
    (
      "CSER, R_C 256, at .5, against SGD",
      lambda: at_half("cser", 256),
      lambda: at_half("sgd", 1) - 0.02,
    ),
    (
      "CSER, R_C 256, at .5, against EF-SGD",
      lambda: at_half("cser", 256),
      lambda: at_half("ef_sgd", 256) + 0.30,
    ),
    *(
      (
        f"CSER, R_C {ratio}, best rate, against SGD",
        lambda ratio=ratio: best("cser", ratio),
        lambda: best("sgd", 1) - 0.015,
      )
      for ratio in (16, 64, 256)
    ),
    (
      "SGD, best rate, against EF-SGD at R_C 256",
      lambda: best("sgd", 1),
      lambda: best("ef_sgd", 256) + 0.05,
    ),
  )


def missed_adaalter(
  losses: Mapping[tuple[str, str], float],
  accuracies: Mapping[tuple[str, str], float],
) -> Missed:
  """Returns a line for each claim about AdaAlter that does not hold.

  Where eps^2 = b_0^2 = 1.

  Args:
    losses: on the training examples, by (method, partition).
    accuracies: on the test examples.
  """

  def loss_off() -> float:
    adagrad = losses["adagrad", "iid"]
    return abs(losses["adaalter", "iid"] / adagrad - 1)

  def against(slack: float) -> Callable[[], float]:
    return lambda: accuracies["adaalter", "iid"] - slack

  return not_below(
    ("AdaAlter's loss against AdaGrad's, off by", lambda: 0.05, loss_off),
    (
      "Local AdaAlter, H=4, against AdaAlter",
      lambda: accuracies["local_adaalter_4", "iid"],
      against(0.02),
    ),
    (
      "Local AdaAlter, H=16, against AdaAlter",
      lambda: accuracies["local_adaalter_16", "iid"],
      against(0.03),
    ),
  )


def missed_adaalter_small(losses: Mapping[tuple[str, str], float]) -> Missed:
  """Returns a line if what Local AdaAlter is for does not hold.

  Where eps^2 = b_0^2 = 0.01.

  Args:
    losses: on the training examples, by (method, partition).
  """
  return not_below(
    (
      "0.7 of naive local AdaGrad's loss, by label, against Local AdaAlter's",
      lambda: 0.7 * losses["naive_adagrad_16", "by_label"],
      lambda: losses["local_adaalter_16", "by_label"],
    )
  )


def missed_spread(spread: float) -> Missed:
  """Returns a line if models without their errors are not one model.

  Args:
    spread: the largest difference between two workers' x_i - e_i.
  """
  return not_below(
    ("the bound on the spread of x - e", lambda: MOST_SPREAD, lambda: spread)
  )
