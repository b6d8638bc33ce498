"""Errors, orders and verdicts, on cases that are made up."""

import pytest

from tests.tools.benchmarks.plan_cases import make_case
from tools.benchmarks.plan_accuracy import pair_order
from tools.benchmarks.plan_accuracy import ratio
from tools.benchmarks.plan_accuracy import speedup_errors
from tools.benchmarks.plan_accuracy import verdicts


def test_error_is_relative_to_the_measured_step():
  assert make_case("a", 80.0, 100.0).error == pytest.approx(0.2)
  assert make_case("a", 120.0, 100.0).error == pytest.approx(0.2)


def test_measured_step_is_the_median_of_the_rounds():
  assert make_case("a", 1.0, (9.0, 1.0, 4.0)).measured_us == 4.0


def test_ratio_is_the_median_of_the_rounds_own_ratios():
  # The machine is three times slower in round 2, and stutters in round 3.
  one = make_case("a", 1.0, (10.0, 30.0, 10.0))
  other = make_case("b", 1.0, (12.0, 36.0, 90.0))
  assert ratio(other, one) == pytest.approx(1.2)


def test_ratio_of_other_rounds_raises():
  with pytest.raises(ValueError, match="argument 2 is"):
    ratio(make_case("a", 1.0, (1.0, 2.0)), make_case("b", 1.0, (1.0,)))


def test_pair_order_counts_pairs_that_differ():
  cases = [
    make_case("a", 10.0, 100.0),
    make_case("b", 20.0, 104.0),  # as fast as a: that pair does not count
    make_case("c", 15.0, 200.0),  # right beside a, wrong beside b
  ]
  assert pair_order(cases) == (1, 2)


def test_pair_order_counts_a_tie_of_predictions_as_wrong():
  cases = [make_case("a", 10.0, 100.0), make_case("b", 10.0, 200.0)]
  assert pair_order(cases) == (0, 1)


def test_pair_order_compares_no_plans_of_two_models_or_networks():
  cases = [
    make_case("a", 10.0, 100.0),
    make_case("a", 5.0, 300.0, model="chain"),
    make_case("a", 5.0, 300.0, network="1_gbit"),
  ]
  assert pair_order(cases) == (0, 0)


def test_speedup_errors_leave_out_the_machines_drift():
  # Everything runs at half of the profile's speed; the speed-up of 2 is right.
  cases = [
    make_case("single_device", 100.0, 200.0, moved=0),
    make_case("a", 50.0, 100.0),
    make_case("b", 50.0, 80.0),  # 2.5 x as fast, 2 x was predicted
    make_case("c", 90.0, 200.0, moved=0),
  ]
  assert speedup_errors(cases) == pytest.approx([0.0, 0.2])


def test_speedup_errors_without_one_device_are_none():
  assert speedup_errors([make_case("a", 50.0, 100.0)]) == []


def by_goal(cases):
  return {x.goal: x for x in verdicts(cases)}


def test_verdicts_without_cases_hold_nothing():
  assert {x.holds for x in verdicts([])} == {None}


def test_verdicts_on_errors_are_at_the_limits():
  cases = [
    make_case("a", 110.0, 100.0),
    make_case("b", 110.0, 100.0),
    make_case("c", 126.0, 100.0),
  ]
  found = by_goal(cases)
  median = found["error of the step, all cases: median at most 10%"]
  worst = found["error of the step, all cases: worst at most 25%"]
  assert (median.measured, median.holds) == ("10.0%", True)
  assert (worst.measured, worst.holds) == ("26.0%", False)


@pytest.mark.parametrize(
  ("measured", "holds"), [(102.0, True), (103.5, False), (80.0, True)]
)
def test_verdict_on_best_is_by_its_slowest_model(measured, holds):
  cases = [
    make_case("single_device", 100.0, 100.0, moved=0),
    make_case("best", 60.0, 60.0),
    make_case("single_device", 100.0, 100.0, model="chain", moved=0),
    make_case("best", 90.0, measured, model="chain"),
  ]
  verdict = by_goal(cases)["best: never more than 3% slower than one device"]
  assert verdict.holds is holds
  assert "chain, loopback" in verdict.measured


@pytest.mark.parametrize(("measured", "holds"), [(62.0, True), (63.0, False)])
def test_verdict_on_the_towers(measured, holds):
  cases = [
    make_case("single_device", 100.0, 100.0, moved=0),
    make_case("best", 60.0, measured),
  ]
  (verdict,) = (x for x in verdicts(cases) if "loopback: best" in x.goal)
  assert verdict.holds is holds
