"""Claims that a number is not below a bound."""

from collections.abc import Callable


def not_below(
  *claims: tuple[str, Callable[[], float], Callable[[], float]],
) -> list[str]:
  """Returns a line for each claim that does not hold.

  Args:
    *claims: each with what it is about, and what gives the number and the
      bound; a claim of which one raises a KeyError was not tried.
  """
  lines = []
  for title, of_value, of_bound in claims:
    try:
      value, bound = of_value(), of_bound()
    except KeyError:
      continue
    if not value >= bound:
      lines.append(f"{title}: {value:.4g} is below {bound:.4g}")
  return lines
