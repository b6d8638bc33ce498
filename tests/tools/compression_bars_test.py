"""What the bars of methods that send less let pass."""

import pytest

from tools import compression_bars as bars

RATES = (0.05, 0.1, 0.5)


def accuracies(**changes):
  """Returns cells at which every bar is met, but for changes."""
  cells = {}
  for rate in RATES:
    cells["sgd", 1, rate] = 0.98
    for ratio in (16, 64, 256):
      cells["cser", ratio, rate] = 0.97
    cells["ef_sgd", 256, rate] = 0.6
  return cells | changes


@pytest.mark.parametrize(
  ("changed", "value", "number"),
  [
    (("cser", 256, 0.5), 0.961, 0),
    (("cser", 256, 0.5), 0.959, 1),
    (("ef_sgd", 256, 0.5), 0.67, 0),
    (("ef_sgd", 256, 0.5), 0.68, 1),
    (("ef_sgd", 256, 0.1), 0.92, 0),
    (("ef_sgd", 256, 0.1), 0.94, 1),
  ],
)
def test_claims_about_cser_are_checked(changed, value, number):
  cells = accuracies()
  cells[changed] = value
  assert len(bars.missed_ratios(cells)) == number


@pytest.mark.parametrize("ratio", [16, 64, 256])
def test_best_rate_of_cser_is_checked_at_each_ratio(ratio):
  cells = accuracies()
  for rate in RATES:
    cells["cser", ratio, rate] = 0.964
  lines = bars.missed_ratios(cells)
  assert f"CSER, R_C {ratio}, best rate, against SGD: 0.964 is below 0.965" in (
    lines
  )
  cells["cser", ratio, 0.1] = 0.966
  assert not [line for line in bars.missed_ratios(cells) if "best" in line]


def test_cells_that_were_not_run_miss_nothing():
  assert bars.missed_ratios({("cser", 256, 0.5): 0.1}) == []
  assert bars.missed_adaalter({}, {}) == []
  assert bars.missed_adaalter_small({}) == []


@pytest.mark.parametrize(
  ("counted", "number"), [(101.9, 0), (98.1, 0), (102.1, 1), (97.9, 1)]
)
def test_bytes_may_be_two_percent_off(counted, number):
  assert len(bars.missed_bytes(counted, 100, "here")) == number


def test_line_says_which_bytes_are_off():
  assert bars.missed_bytes(50, 100, "cser, 256") == [
    "(bytes) cser, 256: R_C 50.0 is not within 2% of 100.0"
  ]


@pytest.mark.parametrize(
  ("loss", "h4", "h16", "number"),
  [
    (1.04, 0.88, 0.87, 0),
    (0.96, 0.90, 0.90, 0),
    (1.06, 0.90, 0.90, 1),
    (0.94, 0.90, 0.90, 1),
    (1.00, 0.87, 0.90, 1),
    (1.00, 0.90, 0.86, 1),
  ],
)
def test_claims_about_adaalter_are_checked(loss, h4, h16, number):
  losses = {("adagrad", "iid"): 1.0, ("adaalter", "iid"): loss}
  accuracy = {
    ("adaalter", "iid"): 0.9,
    ("local_adaalter_4", "iid"): h4 + 1e-9,
    ("local_adaalter_16", "iid"): h16 + 1e-9,
  }
  assert len(bars.missed_adaalter(losses, accuracy)) == number


@pytest.mark.parametrize(("loss", "number"), [(0.69, 0), (0.71, 1)])
def test_common_denominators_must_pay(loss, number):
  losses = {
    ("naive_adagrad_16", "by_label"): 1.0,
    ("local_adaalter_16", "by_label"): loss,
  }
  assert len(bars.missed_adaalter_small(losses)) == number


@pytest.mark.parametrize(
  ("spread", "number"), [(9e-6, 0), (2e-5, 1), (float("inf"), 1)]
)
def test_models_without_errors_must_be_one(spread, number):
  assert len(bars.missed_spread(spread)) == number
