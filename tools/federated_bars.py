"""What must hold in the federated tables.

A bar is a claim of the papers in numbers for the digits, with slack for other
random numbers than those that it was set with. Cells that were not run miss
no bar.
"""

import itertools
from collections.abc import Mapping

from tools.claims import not_below
from tools.federated_cells import Cell
from tools.federated_cells import FedAsyncCell
from tools.federated_cells import SLSGDCell
from tools.federated_results import Summary

_MONOTONE_SLACK = 0.01


def missed(summaries: Mapping[Cell, Summary]) -> list[str]:
  """Returns a line for each claim that does not hold.

  Args:
    summaries: of the cells that were run.
  """

  def constant(k: int) -> Summary:
    return summaries[FedAsyncCell(k, 0.9, "constant")]

  def polynomial(k: int) -> Summary:
    return summaries[FedAsyncCell(k, 0.9, "polynomial(0.5)")]

  def rounds(q: int, trim: int, late: float = 1.0) -> Summary:
    return summaries[SLSGDCell(q, trim, 1.0, late)]

  return not_below(
    (
      "K=64, middle: polynomial against constant",
      lambda: polynomial(64).middle,
      lambda: constant(64).middle + 0.10,
    ),
    (
      "K=16, middle: polynomial against constant",
      lambda: polynomial(16).middle,
      lambda: constant(16).middle + 0.02,
    ),
    (
      "K=16, middle: deviation of constant against that of polynomial",
      lambda: constant(16).middle_std,
      lambda: polynomial(16).middle_std,
    ),
    *(
      (
        f"K={k}, middle: 0.02 against what polynomial and constant differ by",
        lambda: 0.02,
        lambda k=k: abs(polynomial(k).middle - constant(k).middle),
      )
      for k in (0, 4)
    ),
    *(
      (
        f"constant, middle: K={less} against K={more}",
        lambda less=less: constant(less).middle,
        lambda more=more: constant(more).middle - _MONOTONE_SLACK,
      )
      for less, more in itertools.pairwise((0, 4, 16, 64))
    ),
    (
      "q=2, end: trimmed mean, b=2",
      lambda: rounds(2, 2).end,
      lambda: 0.85,
    ),
    (
      "q=2, end: trimmed mean, b=2, against mean",
      lambda: rounds(2, 2).end,
      lambda: rounds(2, 0).end + 0.40,
    ),
    (
      "q=0, end: trimmed mean, b=2, against mean",
      lambda: rounds(0, 2).end,
      lambda: rounds(0, 0).end - 0.05,
    ),
    (
      "q=0, b=4, end: deviation with alpha 1 against that with 1, then 0.6",
      lambda: rounds(0, 4).end_std,
      lambda: rounds(0, 4, 0.6).end_std,
    ),
  )
