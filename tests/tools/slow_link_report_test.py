"""What is said about measurements that are made up."""

import json

import pytest

from tools import slow_link_report
from tools.slow_link_experiment import Experiment
from tools.slow_link_experiment import Measurement
from tools.slow_link_experiment import rate_title

LINK = {"namespace": "a", "bridge": "b", "index": 0}


def make_measurement(method, rate, curve, accuracy=0.75, counted=None):
  return Measurement(
    method=method,
    rate=rate,
    num_parameters=1234,
    compute_s=0.25,
    step_s=1.5,
    sent_bytes=4000.0,
    counted_bytes=counted,
    curve=curve,
    test_accuracy=accuracy,
  )


def make_results(cser_s=5.0, cser_accuracy=0.8725):
  """Returns results: CSER takes so long, and gets so good."""
  experiment = Experiment(
    data="somewhere/mnist.npz",
    hidden=[8],
    batch_size=32,
    learning_rate=0.1,
    target_loss=0.5,
    num_steps=9,
    evaluate_every=2,
    seed=0,
    methods=["sync_sgd", "cser", "ef_sgd"],
    rates=[None, 2e7],
    links=[LINK, LINK],
  )
  slow = [
    make_measurement("sync_sgd", 2e7, [(1, 0.0, 2.0), (4, 40.0, 0.4)]),
    make_measurement(
      "cser",
      2e7,
      [(1, 0.0, 2.0), (4, 3.0, 0.6), (6, cser_s, 0.5)],
      counted=3000.0,
    ),
    make_measurement("ef_sgd", 2e7, [(1, 0.0, 2.0), (9, 7.0, float("nan"))]),
  ]
  fast = [
    make_measurement("sync_sgd", None, [(1, 0.0, 2.0), (9, 1.0, 0.3)], 0.875),
    make_measurement("cser", None, [(9, 1.0, 0.3)], cser_accuracy),
    make_measurement("ef_sgd", None, [(1, 0.0, 2.0), (9, 1.0, 0.9)], 0.5),
  ]
  return slow_link_report.Results(experiment, [3e9, 19.1e6], [*fast, *slow])


def rows_of(text, heading):
  """Returns the cells of the table that follows a line."""
  lines = text.splitlines()
  begin = next(i for i, x in enumerate(lines) if x.startswith(heading))
  rows = []
  for line in lines[begin + 1 :]:
    if line.startswith("| ") and not set(line) <= set("|-: "):
      rows.append([x.strip() for x in line.split("|")[1:-1]])
    elif rows and not line:
      break
  return rows


def test_rates_are_in_mbit():
  assert rate_title(None) == "no limit"
  assert rate_title(2.5e6) == "2.5 Mbit/s"


def test_speed_up_is_the_ratio_of_times_to_the_target():
  results = make_results()
  assert results.speed_up("cser", 2e7) == 8.0
  assert results.speed_up("sync_sgd", 2e7) == 1.0
  assert results.speed_up("ef_sgd", 2e7) is None  # never there
  assert results.speed_up("local_sgd", 2e7) is None  # not run
  assert results.time_to_target("cser", 2e7) == (6, 5.0)


def test_text_has_times_ratios_and_bytes():
  text = slow_link_report.as_text(make_results())
  assert "2 workers, 1234 parameters" in text
  rows = rows_of(text, "links: 20 Mbit/s (plain TCP: 19.1 Mbit/s)")
  cells = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
  assert cells["method"] == ("synchronous SGD", "CSER", "EF-SGD")
  assert cells["steps"] == ("4", "6", "> 9")
  assert cells["time s"] == ("40.00", "5.00", "> 7.00")
  assert cells["x sync"] == ("1.0", "8.0", "-")
  assert set(cells["step s"]) == {"1.500"}
  assert set(cells["compute s"]) == {"0.250"}
  assert set(cells["rest s"]) == {"1.250"}
  assert set(cells["sent kB"]) == {"4"}
  assert cells["counted kB"] == ("-", "3", "-")


def test_text_has_final_accuracies_on_links_without_limit():
  rows = rows_of(slow_link_report.as_text(make_results()), "2 workers")
  assert [row[-2:] for row in rows[1:]] == [
    ["87.50 %", "+0.00 %"],
    ["87.25 %", "-0.25 %"],
    ["50.00 %", "-37.50 %"],
  ]


@pytest.mark.parametrize(
  ("cser_s", "cser_accuracy", "end"),
  [
    (4.0, 0.875, "10.0 x, +0.00 %: met"),
    (4.0, 0.8725, "10.0 x, -0.25 %: met"),
    (4.0, 0.865, "10.0 x, -1.00 %: missed"),
    (5.0, 0.9, "8.0 x, +2.50 %: missed"),
  ],
)
def test_text_says_whether_the_goal_is_met(cser_s, cser_accuracy, end):
  text = slow_link_report.as_text(make_results(cser_s, cser_accuracy))
  *_, line = text.splitlines()
  assert line.startswith("goal: CSER at least 10 x as fast")
  assert line.endswith(end)


def test_json_has_all_and_no_nan(tmp_path):
  path = tmp_path / "a" / "results.json"
  slow_link_report.write_json(make_results(), str(path))

  def refuse(constant):
    raise AssertionError(constant)

  content = json.loads(path.read_text(), parse_constant=refuse)
  assert content["num_workers"] == 2
  assert content["data"] == "mnist.npz"
  assert "links" not in content
  cser = content["measurements"][4]
  assert (cser["method"], cser["rate"]) == ("cser", 2e7)
  assert cser["seconds_to_target"] == 5.0
  assert cser["steps_to_target"] == 6
  assert cser["speed_up"] == 8.0
  assert content["measurements"][5]["curve"][-1] == [9, 7.0, None]


def test_picture_has_a_panel_for_each_rate(tmp_path):
  path = tmp_path / "a" / "picture.svg"
  slow_link_report.draw(make_results(), str(path))
  content = path.read_text()
  for text in ("no limit", "20 Mbit/s", "CSER", "synchronous SGD"):
    assert text in content
