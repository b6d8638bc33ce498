"""What the bars of the federated tables let pass."""

import dataclasses

import pytest

from tools.federated_bars import missed
from tools.federated_cells import FedAsyncCell
from tools.federated_cells import SLSGDCell
from tools.federated_results import Summary

CONSTANT = {0: 0.96, 4: 0.94, 16: 0.86, 64: 0.59}
POLYNOMIAL = {0: 0.96, 4: 0.945, 16: 0.91, 64: 0.82}
END = {(0, 0): 0.96, (0, 2): 0.94, (0, 4): 0.91, (2, 0): 0.28, (2, 2): 0.92}


def constant(k):
  return FedAsyncCell(k, 0.9, "constant")


def polynomial(k):
  return FedAsyncCell(k, 0.9, "polynomial(0.5)")


def summary(value, std):
  return Summary(value, std, value, std, value)


def summaries():
  """Returns cells at which every bar is met."""
  cells = {}
  for k in (0, 4, 16, 64):
    cells[constant(k)] = summary(CONSTANT[k], 0.06)
    cells[polynomial(k)] = summary(POLYNOMIAL[k], 0.02)
  for (q, trim), value in END.items():
    cells[SLSGDCell(q, trim)] = summary(value, 0.02)
  cells[SLSGDCell(0, 4, 1.0, 0.6)] = summary(0.91, 0.01)
  return cells


def test_all_bars_are_met_where_the_claims_hold():
  assert missed(summaries()) == []


@pytest.mark.parametrize(
  ("cell", "field", "value", "lines"),
  [
    (polynomial(64), "middle", 0.70, 0),
    (polynomial(64), "middle", 0.68, 1),
    (polynomial(16), "middle", 0.87, 1),
    (polynomial(16), "middle_std", 0.07, 1),
    (polynomial(4), "middle", 0.97, 1),
    (polynomial(0), "middle", 0.93, 1),
    # No longer monotone, and as good as the polynomial.
    (constant(64), "middle", 0.88, 2),
    (constant(64), "middle", float("nan"), 2),
    (SLSGDCell(2, 2), "end", 0.84, 1),
    (SLSGDCell(2, 0), "end", 0.53, 1),
    (SLSGDCell(0, 2), "end", 0.90, 1),
    (SLSGDCell(0, 4), "end_std", 0.005, 1),
  ],
)
def test_claims_are_checked(cell, field, value, lines):
  cells = summaries()
  cells[cell] = dataclasses.replace(cells[cell], **{field: value})
  assert len(missed(cells)) == lines


def test_line_says_what_is_missed():
  cells = {
    SLSGDCell(2, 2): summary(0.8, 0.01),
    SLSGDCell(2, 0): summary(0.3, 0.01),
  }
  assert missed(cells) == ["q=2, end: trimmed mean, b=2: 0.8 is below 0.85"]


def test_cells_that_were_not_run_miss_nothing():
  assert missed({}) == []
