"""The whole tool, on a model whose step takes less than a millisecond."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.tools.benchmarks.plan_cases import make_case
from tools.benchmarks.plan_accuracy import verdicts
from tools.benchmarks.plan_results import read
from tools.benchmarks.plan_results import Results
from tools.benchmarks.plan_results import write
from tools.benchmarks.plan_runs import Placed
from tools.benchmarks.plan_runs import PLANS
from tools.benchmarks.plan_runs import same_model

ROOT = pathlib.Path(__file__).parents[3]


def test_same_model_names_the_first_plan_of_each_model():
  placed = {
    name: Placed(name, {"placement": {"op": device}}, 1.0, 0)
    for name, device in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")]
  }
  assert same_model(placed) == {"a": "a", "b": "b", "c": "a", "d": "b"}


def test_results_come_back_from_their_file(tmp_path):
  path = str(tmp_path / "results.json")
  results = Results("machine")
  results.add([make_case("best", 1.0, (2.0, 3.0))])
  results.notes["GPU"] = "skipped"
  results.memory = ["goal", "measured", True]
  write(path, results)
  assert read(path, "machine") == results


def test_results_of_a_group_replace_its_old_ones():
  results = Results("machine")
  results.add([make_case("best", 1.0, 2.0), make_case("m_etf", 1.0, 2.0)])
  results.add([make_case("best", 1.0, 2.0, model="chain")])
  results.add([make_case("best", 1.0, 4.0)])
  assert [(x.model, x.measured_us) for x in results.cases] == [
    ("chain", 2.0),
    ("towers", 4.0),
  ]
  assert results.has("towers", "loopback", ["best"])
  assert not results.has("towers", "loopback", ["best", "m_etf"])


@pytest.mark.parametrize("content", ["", "[]", '{"cases": [{}]}'])
def test_file_that_holds_no_results_raises(tmp_path, content):
  path = tmp_path / "results.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=r"results\.json holds no results"):
    read(str(path), "machine")


def test_results_of_another_machine_raise(tmp_path):
  path = str(tmp_path / "results.json")
  write(path, Results("machine"))
  with pytest.raises(ValueError, match="measured on machine, not on another"):
    read(path, "another")


@pytest.mark.slow
def test_tool_runs_every_plan_and_resumes(tmp_path):
  path = tmp_path / "results.json"
  command = [
    *(sys.executable, "-m", "tools.benchmarks.plans", "--only=tiny"),
    *("--networks=loopback", "--rounds=2", "--nomemory", f"--results={path}"),
  ]

  def run():
    return subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, check=False
    )

  first = run()
  if "allow" in first.stderr and first.returncode:
    pytest.skip(first.stderr.splitlines()[-1])
  assert first.returncode == 0, first.stderr
  assert "### tiny, loopback" in first.stdout
  content = json.loads(path.read_text())
  assert [x["plan"] for x in content["cases"]] == list(PLANS)
  assert all(len(x["rounds_us"]) == 2 for x in content["cases"])
  cases = read(str(path), content["machine"]).cases
  assert {x.goal for x in verdicts(cases)} <= set(
    cell.strip()
    for line in first.stdout.splitlines()
    for cell in line.split("|")
  )

  second = run()
  assert second.stdout == first.stdout
  assert "profiling" not in second.stderr
