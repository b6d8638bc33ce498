"""Tables of cases that are made up."""

from tests.tools.benchmarks.plan_cases import make_case
from tools.benchmarks.plan_accuracy import Verdict
from tools.benchmarks.plan_tables import cases_table
from tools.benchmarks.plan_tables import report


def cells(line):
  return [x.strip() for x in line.strip("|").split("|")]


def test_cases_table_shows_errors_with_their_sign_and_speedups():
  table = cases_table(
    [
      make_case("single_device", 100e3, (80e3, 80e3, 80e3), moved=0),
      make_case("best", 50e3, (100e3, 32e3, 40e3), moved=3 << 19),
    ]
  )
  _, _, one, best = (cells(line) for line in table.splitlines())
  assert one == ["single_device", "100.0", "80.0", "80.0", "+25%"] + [
    "2.0 + 1.0", "0.0", "1.00", "1.00"
  ]  # fmt: skip
  assert best[:7] == ["best", "50.0", "40.0", "32.0", "+25%"] + [
    "2.0 + 1.0", "1.5"
  ]  # fmt: skip
  assert best[7] == "2.00"


def test_cases_table_without_one_device_has_no_speedups():
  table = cases_table([make_case("best", 50e3, 40e3)])
  assert cells(table.splitlines()[2])[7:] == ["-", "-"]


def test_report_has_a_table_for_each_network_and_the_goals_last():
  cases = [
    make_case("best", 1.0, 1.0),
    make_case("best", 1.0, 1.0, network="1_gbit"),
  ]
  text = "\n".join(report(cases, [Verdict("be fast", "fast", True)]))
  assert [x for x in text.splitlines() if x.startswith("#")] == [
    "### towers, loopback",
    "### towers, 1_gbit",
    "### Goals",
  ]
  assert cells(text.splitlines()[-1]) == ["be fast", "fast", "yes"]
