"""The tables of methods that send less: their rows, reports and command."""

import dataclasses
import json

import numpy as np
import pytest

from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf  # noqa: F401  sets up the devices first
from tests.tiers import first_fast
from tools import compression_pictures
from tools import compression_report
from tools import markdown
from tools.compression_report import Results
from tools.compression_runs import Outcome
from tools.compression_runs import Part
from tools.compression_runs import run_part
from tools.compression_tables import TABLES
from tools.compression_training import Point
from tools.language_text import CONTEXT
from tools.language_text import language_model
from tools.language_text import load_text

RUN = """
import runpy, sys
sys.argv[0] = "compression_table"
runpy.run_module('tools.compression_table', run_name='__main__')
"""


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda x: x.name)
def test_table_names_each_row_once(table):
  rows = [(row.name, row.ratio) for row in table.rows]
  assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
  "row",
  [row for row in TABLES["ratios"].rows if row.name != "cser_code"],
  ids=lambda row: f"{row.name}_{row.ratio}",
)
def test_settings_give_the_ratio_in_name(row):
  # 1024 blocks allow R_2 = 1024, and so half of what is in the name.
  halved = (row.name, row.ratio) == ("cser", 1024)
  expected = 512 if halved else row.ratio
  assert row.method.compression_ratio == pytest.approx(expected, rel=1e-12)


def test_released_code_sends_on_one_block_at_a_time():
  (row,) = (
    x for x in TABLES["ratios"].rows if (x.name, x.ratio) == ("cser_code", 16)
  )
  # 3 of 4 steps a 32nd part, 1 of 4 an 8th.
  expected = 1 / (3 / 4 / 32 + 1 / 4 / 8)
  assert row.method.compression_ratio == pytest.approx(expected, rel=1e-12)


def point(step, value):
  return Point(step, 100.0 * step, 2 * value, 3 * value, value)


def results_of(table, num_points=4, value=0.5):
  """Returns results whose last test accuracies are `value` and 0.25."""
  table = dataclasses.replace(table, seeds=2)
  outcomes = [
    Outcome(
      table.name,
      row.name,
      row.ratio,
      rate,
      partition,
      seed,
      vector_bytes=200,
      curve=[
        point(k + 1, (value, 0.25)[seed] * (k + 1) / num_points)
        for k in range(num_points)
      ],
    )
    for row in table.rows
    for rate in table.rates
    for partition in table.partitions
    for seed in range(2)
  ]
  return Results(table, outcomes)


def cells_of(text):
  return [
    [x.strip() for x in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]


def test_text_has_means_by_learning_rate():
  rows = cells_of(compression_report.as_text(results_of(TABLES["ratios"])))
  assert rows[0] == ["method", "settings", "R_C", "counted"] + (
    ["0.05", "0.1", "0.5", "1"]
  )
  assert len(rows) == 2 + len(TABLES["ratios"].rows)
  assert rows[2] == ["synchronous SGD", "H=1", "1", "2"] + ["0.375 (0.750)"] * 4
  assert "H=64, R₁=8, R₂=512" in {row[1] for row in rows}


def test_text_has_losses_at_each_quarter():
  rows = cells_of(compression_report.as_text(results_of(TABLES["adaalter"])))
  assert rows[2] == ["AdaGrad", "iid", "1", "2"] + (
    ["0.188", "0.375", "0.562", "0.750", "0.375"]
  )
  assert len(rows) == 2 + 2 * len(TABLES["adaalter"].rows)


def test_text_has_perplexity():
  rows = cells_of(compression_report.as_text(results_of(TABLES["text"])))
  assert rows[0][-2:] == ["perplexity", "accuracy"]
  assert rows[2][-2] == f"{np.exp(3 * 0.375):.3f}"


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.1234, "0.123"),
    (12345.0, "1e04"),
    (float("inf"), "inf"),
    (float("nan"), "nan"),
  ],
)
def test_number_stays_short(value, text):
  assert compression_report.number(value) == text


def test_json_has_curves_and_no_nan():
  content = compression_report.as_json(
    results_of(TABLES["text"], value=float("nan"))
  )
  text = json.dumps(content, allow_nan=False)
  first, second = json.loads(text)["trainings"][:2]
  assert first["curve"]["test_accuracy"] == [None] * 4
  assert second["curve"]["bytes_sent"] == [100, 200, 300, 400]
  assert second["counted_ratio"] == 2


def test_best_rate_is_that_of_the_best_accuracy():
  table = TABLES["ratios"]
  results = results_of(table)
  better = [
    dataclasses.replace(x, curve=[point(4, 0.9)]) if x.rate == 0.5 else x
    for x in results.outcomes
  ]
  assert Results(table, better).best_rate(table.rows[0], "iid") == 0.5
  assert results.best_rate(table.rows[0], "iid") == table.rates[0]


def test_pictures_are_written(tmp_path):
  compression_pictures.draw_ratios(
    results_of(TABLES["ratios"]), "title", str(tmp_path / "a" / "ratios.svg")
  )
  compression_pictures.draw_perplexity(
    results_of(TABLES["text"]), "title", str(tmp_path / "text.svg")
  )
  for path in (tmp_path / "a" / "ratios.svg", tmp_path / "text.svg"):
    assert "<svg" in path.read_text()


def test_markdown_table_is_aligned():
  text = markdown.table(["a", "bb"], [["long", "1"], ["x", "22"]])
  assert text.splitlines() == [
    "| a    | bb |",
    "| ---- | -: |",
    "| long |  1 |",
    "| x    | 22 |",
  ]


def test_text_of_the_language_model_is_what_python_ships():
  data = load_text()
  assert data.x_train.shape[1] == CONTEXT
  # The next context ends with what followed this one.
  np.testing.assert_array_equal(data.x_train[1:200, -1], data.y_train[:199])
  np.testing.assert_array_equal(data.x_train[1, :-1], data.x_train[0, 1:])
  assert max(data.y_train.max(), data.y_test.max()) < data.num_classes
  model = language_model(data.num_classes, seed=0)
  assert model(data.x_test[:3]).shape == (3, data.num_classes)


def run_row(table_name, row_name, **changes):
  table = dataclasses.replace(TABLES[table_name], **changes)
  (row,) = (
    x
    for x in table.rows
    if (x.name, x.ratio) in ((row_name, 16), (row_name, 1))
  )
  return run_part(Part(table, row, "digits"))


def test_naive_adagrad_trains_on_each_partition():
  outcomes = run_row("adaalter", "naive_adagrad_16", num_steps=80, seeds=1)
  assert [x.partition for x in outcomes] == ["iid", "by_label"]
  for outcome in outcomes:
    assert outcome.counted_ratio == 16
    assert outcome.curve[-1].train_loss < outcome.curve[0].train_loss
  assert outcomes[0].curve != outcomes[1].curve


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["sgd", "ef_sgd", "qsparse", "csea", "cser", "cser_code", "cser_pl"]
)
def test_methods_learn_and_send_what_the_formula_says(name):
  (outcome,) = run_row("ratios", name, num_steps=400, rates=(0.1,))
  (row,) = (
    x
    for x in TABLES["ratios"].rows
    if (x.name, x.ratio) == (name, outcome.ratio)
  )
  # Sizes of blocks differ by one, so that draws matter a little.
  assert outcome.counted_ratio == pytest.approx(
    row.method.compression_ratio, rel=0.02
  )
  assert outcome.curve[-1].test_accuracy > 0.9


@pytest.mark.slow
def test_command_writes_all_it_has_measured(tmp_path):
  result = run_script(
    RUN,
    "--tables=ratios",
    "--tables=text",
    "--methods=csea",
    "--methods=adagrad",
    "--ratios=16",
    "--rates=0.1",
    "--steps=20",
    "--jobs=1",
    f"--json={tmp_path / 'results.json'}",
    f"--pictures={tmp_path / 'picture'}",
    timeout_s=300,
  )
  assert result.returncode == 0, result.stderr
  content = json.loads((tmp_path / "results.json").read_text())
  assert content["missed_bars"] == []
  for table, name in zip(content["tables"], ("ratios", "text"), strict=True):
    assert table["table"] == name
    (training,) = table["trainings"]
    accuracy = training["curve"]["test_accuracy"][-1]
    assert f"{accuracy:.3f}" in result.stdout
  assert sorted(x.name for x in tmp_path.iterdir()) == [
    "picture_digits.svg",
    "picture_text.svg",
    "results.json",
  ]


@pytest.mark.slow
def test_command_fails_where_a_bar_is_missed():
  result = run_script(
    RUN,
    "--tables=ratios",
    "--methods=cser_pl",
    "--ratios=1024",
    "--rates=0.1",
    "--steps=60",  # 60 steps hold one synchronisation: too few for the formula
    "--jobs=1",
    timeout_s=300,
  )
  assert result.returncode == 1
  (line,) = (x for x in result.stderr.splitlines() if "bar" in x)
  assert line.startswith("ratios: bar (bytes) cser_pl, 1024: R_C ")
  assert line.endswith(" is not within 2% of 1024.0")


@pytest.mark.parametrize(
  ("flag", "message"),
  first_fast(
    ("--methods=csar", "flag --methods=csar: value should be one of"),
    ("--data=mnist.npz", "no such data: 'mnist.npz' is neither a file nor"),
    ("--steps=30", "--steps=30 must be a multiple of 20"),
    ("--rates=0", "--rates=0.0 must be above 0"),
  ),
)
def test_bad_flag_is_one_line(flag, message):
  result = run_script(RUN, flag)
  assert result.returncode == 1
  assert message in result.stderr
  assert "Traceback" not in result.stderr
