"""The Byzantine tables: their bars, their report, and cells that must hold."""

import functools
import json

import pytest

from robust_tf.training.data import load
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf  # noqa: F401  sets up the devices first
from tests.tiers import first_fast
from tools import byzantine_report
from tools.byzantine_bars import Bar
from tools.byzantine_bars import missed
from tools.byzantine_cells import TABLES
from tools.byzantine_report import Results
from tools.byzantine_training import train_and_test

RUN = """
import runpy, sys
sys.argv[0] = "byzantine_table"
runpy.run_module('tools.byzantine_table', run_name='__main__')
"""

BARS = (
  Bar("x", ("a", "b"), ("krum",), at_least=0.5),
  Bar("y", ("b",), ("mean", "krum"), at_most=0.75),
  Bar("z", ("a", "b"), ("median",), falls=True),
)


def named(items, name):
  (item,) = (x for x in items if x.name == name)
  return item


@pytest.mark.parametrize(
  ("accuracies", "lines"),
  [
    ({("a", "krum"): 0.5, ("b", "krum"): 0.75}, []),
    ({("a", "krum"): 0.4}, ["(x) krum, a: 0.400 is below 0.50"]),
    ({("a", "krum"): float("nan")}, ["(x) krum, a: nan is below 0.50"]),
    ({("b", "mean"): 0.8}, ["(y) mean, b: 0.800 is above 0.75"]),
    ({("b", "krum"): 0.8}, ["(y) krum, b: 0.800 is above 0.75"]),
    ({("a", "median"): 0.9, ("b", "median"): 0.3}, []),
    ({("a", "median"): 0.30, ("b", "median"): 0.31}, []),  # the slack is 0.03
    (
      {("a", "median"): 0.3, ("b", "median"): 0.4},
      ["(z) median: 0.300 under a rises to 0.400 under b"],
    ),
    ({("c", "median"): 0.3, ("c", "mean"): 0.0}, []),
  ],
)
def test_missed_says_which_cells_miss_which_bars(accuracies, lines):
  assert missed(BARS, accuracies) == lines


@pytest.mark.parametrize("table", TABLES, ids=lambda x: x.name)
def test_table_names_each_cell_once(table):
  for items in (table.threats, table.rules):
    names = [x.name for x in items]
    assert len(set(names)) == len(names)
    assert len({x.title for x in items}) == len(names)


@pytest.mark.parametrize("table", TABLES, ids=lambda x: x.name)
def test_bars_are_about_cells_of_their_table(table):
  for bar in table.bars:
    for name in bar.threats:
      assert named(table.threats, name)
    for name in bar.rules:
      assert named(table.rules, name)


@pytest.mark.parametrize("table", TABLES, ids=lambda x: x.name)
def test_byzantine_workers_are_spread_over_the_range(table):
  for threat in table.threats:
    if 0 < len(threat.workers) < table.num_workers:
      first = tuple(range(len(threat.workers)))
      assert threat.workers != first
      assert set(threat.workers) < set(range(table.num_workers))


def results_of(table, value=0.5):
  return Results(
    table,
    table.num_steps,
    {
      (t.name, r.name): [value, 0.25]
      for t in table.threats
      for r in table.rules
    },
  )


def test_text_has_the_mean_over_seeds():
  table = TABLES[0]
  lines = byzantine_report.as_text(results_of(table)).splitlines()
  assert lines[0] == "20 workers, attacked from the start (300 steps)"
  rows = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[2:]]
  assert rows[0] == ["threat", *(rule.title for rule in table.rules)]
  assert [row[0] for row in rows[2:]] == [x.title for x in table.threats]
  assert {x for row in rows[2:] for x in row[1:]} == {"0.375"}


def test_json_has_each_seed():
  table = TABLES[1]
  content = byzantine_report.as_json(results_of(table))
  assert content == json.loads(json.dumps(content))
  assert content["accuracy"]["none"]["krum"] == [0.5, 0.25]
  assert content["num_workers"] == 25


def test_pictures_are_written(tmp_path):
  draw_heat_map = byzantine_report.draw_heat_map
  draw_heat_map(
    results_of(TABLES[0]), "title", str(tmp_path / "a" / "heat.svg")
  )
  curves = [results_of(table) for table in TABLES[1:]]
  byzantine_report.draw_strengths(curves, "title", str(tmp_path / "curves.svg"))
  for path in (tmp_path / "a" / "heat.svg", tmp_path / "curves.svg"):
    assert "<svg" in path.read_text()


@functools.cache
def accuracies(table_name, rule_name, num_steps, *threat_names, seed=0):
  table = named(TABLES, table_name)
  return train_and_test(
    table,
    named(table.rules, rule_name),
    [named(table.threats, x) for x in threat_names],
    load("digits", seed),
    seed,
    num_steps,
  )


def test_cells_do_not_depend_on_what_else_is_run():
  names = ("none", "gaussian", "label_flip_8")
  together = accuracies("attacks", "mean", 10, *names)
  alone = {
    name: accuracies("attacks", "mean", 10, name)[name] for name in names
  }
  assert together == alone
  assert len(set(together.values())) == 3


def test_zeno_sees_the_same_batches_in_every_run():
  together = accuracies("empires", "zeno", 5, "inner_product_1", "none")
  alone = accuracies("empires", "zeno", 5, "none")
  assert together["none"] == alone["none"]


def test_attack_waits_for_its_step():
  late = accuracies("empires_late", "mean", 6, "none", "inner_product_100")
  assert late["none"] == late["inner_product_100"]
  early = accuracies("empires", "mean", 6, "none", "inner_product_100")
  assert early["none"] == late["none"] != early["inner_product_100"]


@pytest.mark.slow
def test_command_writes_all_it_has_measured(tmp_path):
  result = run_script(
    RUN,
    "--rules=median",
    "--attacks=none",
    "--attacks=inner_product_10",
    "--seeds=0",
    "--steps=5",
    "--jobs=1",
    f"--json={tmp_path / 'results.json'}",
    f"--pictures={tmp_path / 'picture'}",
  )
  assert result.returncode == 0, result.stderr
  content = json.loads((tmp_path / "results.json").read_text())
  assert [x["table"] for x in content["tables"]] == [x.name for x in TABLES]
  for table in content["tables"]:
    assert table["num_steps"] == 5
    for cells in table["accuracy"].values():
      ((accuracy,),) = cells.values()
      assert 0 < accuracy < 1
      assert f"{accuracy:.3f}" in result.stdout
  assert sorted(x.name for x in tmp_path.iterdir()) == [
    "picture_attacks.svg",
    "picture_empires.svg",
    "results.json",
  ]


@pytest.mark.parametrize(
  ("flag", "message"),
  first_fast(
    ("--rules=krumm", "flag --rules=krumm: value should be one of"),
    ("--data=mnist.npz", "no such data: 'mnist.npz' is neither a file nor"),
  ),
)
def test_bad_flag_is_one_line(flag, message):
  result = run_script(RUN, flag)
  assert result.returncode == 1
  assert message in result.stderr
  assert "Traceback" not in result.stderr


# Some cells that bars are about, with one seed of the two.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("rule", "threats"),
  [
    ("mean", ("none", "omniscient", "bit_flip", "gambler")),
    ("median", ("none", "bit_flip", "gambler", "inner_product_0.5")),
    ("phocas", ("none", "gaussian", "omniscient", "bit_flip", "gambler")),
    ("krum", ("none", "omniscient", "sign_flip_8", "inner_product_0.5")),
    ("zeno", ("none", "sign_flip_8", "label_flip_12", "inner_product_0.5")),
  ],
)
def test_cells_meet_their_bars(rule, threats):
  measured = accuracies("attacks", rule, 300, *threats)
  cells = {(threat, rule): accuracy for threat, accuracy in measured.items()}
  assert missed(TABLES[0].bars, cells) == []


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mean", "krum", "zeno"])
def test_cells_of_fall_of_empires_meet_their_bars(rule):
  threats = ("inner_product_0.1", "inner_product_1", "inner_product_10")
  measured = accuracies("empires", rule, 400, *threats)
  cells = {(threat, rule): accuracy for threat, accuracy in measured.items()}
  assert missed(TABLES[1].bars, cells) == []
