"""The federated tables: their cells, reports, training and command."""

import dataclasses
import json

import numpy as np
import pytest

from robust_tf.federated.tasks import DeviceTasks
from robust_tf.training.data import load
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf  # noqa: F401  sets up the devices first
from tests.tiers import first_fast
from tools import federated_report
from tools.federated_bars import missed
from tools.federated_cells import DIGITS
from tools.federated_cells import digits_cells
from tools.federated_cells import FedAsyncCell
from tools.federated_cells import FedAvgCell
from tools.federated_cells import image_cells
from tools.federated_cells import SLSGDCell
from tools.federated_results import Result
from tools.federated_training import MaliciousTasks
from tools.federated_training import train

RUN = """
import runpy, sys
sys.argv[0] = "federated_table"
runpy.run_module('tools.federated_table', run_name='__main__')
"""


@pytest.mark.parametrize("cells", [digits_cells(), image_cells()])
def test_cells_are_different(cells):
  assert len(set(cells)) == len(cells)


def test_cells_of_images_are_among_those_of_digits():
  assert set(image_cells()) < set(digits_cells())


def test_summary_is_of_the_middle_and_the_end_of_each_run():
  pushes = np.arange(10, 1001, 10)
  curves = []
  for offset in (0.0, 0.1):
    accuracies = np.zeros(100)
    accuracies[18:40] = [0.5 + offset, 0.7 + offset] * 11  # 190, ..., 400
    accuracies[75:] = 0.6 + offset  # 760, ..., 1000
    accuracies[80] = 0.1
    curves.append(list(zip(pushes.tolist(), accuracies, strict=True)))
  summary = Result(FedAvgCell(), curves).summary
  assert summary.middle == pytest.approx(0.65)
  assert summary.middle_std == pytest.approx(0.1)
  assert summary.end == pytest.approx((0.65 * 24 + 0.1) / 25)
  assert summary.end_min == pytest.approx(0.1)


def results_of(cells):
  curve = [(10 * k, 0.004 * k) for k in range(1, 101)]
  return [Result(cell, [curve, curve]) for cell in cells]


def rows_of(text):
  return [
    [x.strip() for x in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]


def test_text_has_a_row_for_each_method():
  rows = rows_of(federated_report.as_text(results_of(digits_cells())))
  fed_async, slsgd = rows[:9], rows[9:]
  assert fed_async[0][1:3] == ["K=0 middle", "K=0 end"]
  assert fed_async[2][0] == "FedAvg" and fed_async[2][-1] == "–"
  # Of 0.076, 0.08, ..., 0.16, and 0.304, ..., 0.4.
  assert fed_async[3][1:3] == ["0.118 ± 0.025", "0.352"]
  assert len(slsgd) == 2 + 3 * 4
  assert slsgd[2][:2] == ["mean", "1"]
  assert slsgd[-1][:2] == ["trimmed mean, b=4", "0.2"]
  assert slsgd[2][2:4] == ["0.352 ± 0.029", "0.304"]


def test_json_has_every_curve():
  content = federated_report.as_json(results_of(image_cells()))
  assert content == json.loads(json.dumps(content, allow_nan=False))
  assert {x["cell"]["method"] for x in content} == {
    "FedAsync",
    "FedAvg",
    "SLSGD",
  }
  assert content[0]["curves"][1][2] == [30, 0.012]


def test_pictures_are_written(tmp_path):
  results = results_of(digits_cells())
  for name in ("fed_async", "slsgd"):
    path = tmp_path / "new" / f"{name}.svg"
    getattr(federated_report, f"draw_{name}")(results, "title", str(path))
    assert "<svg" in path.read_text()


def test_nothing_is_drawn_of_a_table_that_was_not_run(tmp_path):
  federated_report.draw_slsgd([], "title", str(tmp_path / "no.svg"))
  assert not list(tmp_path.iterdir())


def test_as_many_devices_of_each_round_are_malicious():
  honest = DeviceTasks([np.arange(3)] * 20, 1, 1, seed=0)
  tasks = MaliciousTasks(honest, 3)
  places = set()
  for version in range(20):
    flipped = [
      tasks.task(10 * version + place, place, version).flipped
      for place in range(10)
    ]
    assert sum(flipped) == 3
    places |= set(np.flatnonzero(flipped).tolist())
  assert places == set(range(10))


def short(cell, pushes=100):
  experiment = dataclasses.replace(DIGITS, pushes=pushes, rounds=pushes // 10)
  return train(cell, experiment, load("digits", 0), 0)


def test_curve_is_over_pushes():
  assert [x for x, _ in short(FedAsyncCell(4, 0.9, "constant"))] == [
    *range(1, 101)
  ]
  assert [x for x, _ in short(FedAvgCell())] == [*range(10, 101, 10)]
  assert [x for x, _ in short(SLSGDCell(2, 2))] == [*range(10, 101, 10)]


def test_fed_avg_is_slsgd_without_malicious_devices():
  assert short(FedAvgCell()) == short(SLSGDCell(0, 0))


def test_constant_staleness_is_polynomial_without_staleness():
  constant = short(FedAsyncCell(0, 0.9, "constant"))
  assert constant == short(FedAsyncCell(0, 0.9, "polynomial(0.5)"))


@pytest.mark.slow
def test_cells_of_slsgd_meet_their_bars():
  cells = [SLSGDCell(2, 0), SLSGDCell(2, 2), SLSGDCell(0, 0), SLSGDCell(0, 2)]
  data = load("digits", 0)
  results = [Result(x, [train(x, DIGITS, data, 0)]) for x in cells]
  assert missed({x.cell: x.summary for x in results}) == []


@pytest.mark.slow
def test_cells_of_fed_async_meet_their_bars():
  data = load("digits", 0)
  cells = [
    FedAsyncCell(k, 0.9, name)
    for k in (4, 64)
    for name in ("constant", "polynomial(0.5)")
  ]
  results = [Result(x, [train(x, DIGITS, data, 0)]) for x in cells]
  assert missed({x.cell: x.summary for x in results}) == []


@pytest.mark.slow
def test_command_writes_all_it_has_measured(tmp_path):
  result = run_script(
    RUN,
    "--tables=slsgd",
    "--seeds=0",
    "--pushes=100",
    "--jobs=1",
    f"--json={tmp_path / 'results.json'}",
    f"--pictures={tmp_path / 'picture'}",
    timeout_s=300,
  )
  assert result.returncode == 0, result.stderr
  content = json.loads((tmp_path / "results.json").read_text())
  assert len(content["cells"]) == 36
  for cell in content["cells"]:
    assert f"{cell['summary']['end_min']:.3f}" in result.stdout
  assert sorted(x.name for x in tmp_path.iterdir()) == [
    "picture_digits_slsgd.svg",
    "results.json",
  ]


@pytest.mark.parametrize(
  ("flag", "message"),
  first_fast(
    ("--pushes=105", "--pushes=105 must be a multiple of 10"),
    ("--data=mnist.npz", "no such data: 'mnist.npz' is neither a file nor"),
  ),
)
def test_bad_flag_is_one_line(flag, message):
  result = run_script(RUN, flag)
  assert result.returncode == 1
  assert message in result.stderr
  assert "Traceback" not in result.stderr
