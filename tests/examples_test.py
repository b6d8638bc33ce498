"""Every example of docs/examples runs, and prints what it promises.

The Python examples share one process, in which TensorFlow is imported once and
has the four devices that they ask for.
"""

import os
import pathlib
import re
import runpy
import stat
import subprocess
import sys

import pytest

from tests import tensorflow_setup

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
MOST_LINES = 60


@pytest.fixture(name="lines_of")
def run_example(capsys, monkeypatch):
  """Returns a function that runs an example and returns what it prints."""
  assert tensorflow_setup.NUM_DEVICES == 4

  def run(name: str) -> list[str]:
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()

  return run


def numbers(line: str) -> list[float]:
  return [float(x) for x in re.findall(r"-?\d+\.?\d*", line)]


def test_place_keras_model_fits_and_learns(lines_of):
  *devices, loss = lines_of("place_keras_model.py")
  limit_mib = 0.0006 * 4 * 2**10
  peaks = [numbers(line)[-1] for line in devices]
  assert len(peaks) == 4
  assert max(peaks) < limit_mib < sum(peaks)
  first, last = re.findall(r"\d+\.\d+", loss)
  assert float(last) < float(first)


def test_pipeline_micro_batches_gives_the_loss_of_the_whole_batch(lines_of):
  step, losses = lines_of("pipeline_micro_batches.py")
  assert numbers(step)[0] > 0
  whole, sliced = numbers(losses)
  assert sliced == pytest.approx(whole, rel=1e-5)  # sums in another order


def test_export_and_place_trains_as_the_model_does(lines_of):
  *steps, unplaced = lines_of("export_and_place.py")
  losses = [numbers(line)[-1] for line in steps]
  assert losses == sorted(losses, reverse=True)
  assert losses[0] == numbers(unplaced)[-1]


def test_cost_graph_sends_one_tensor_after_the_other(lines_of):
  *placement, step, bound = lines_of("cost_graph.py")
  assert len({line.split()[1] for line in placement}) == 4
  by_hand = 10 + 3 * (10 + 1000 / 12000) + 100 + 10
  assert numbers(step)[0] == pytest.approx(by_hand, abs=0.06)  # one decimal
  assert numbers(bound)[0] <= numbers(step)[0]


def test_cluster_with_links_keeps_to_the_fast_link(lines_of):
  *links, step = lines_of("cluster_with_links.py")
  assert links == [
    "0 - 1: 5 us, then 10000 bytes/us",
    "2 - 3: 5 us, then 10000 bytes/us",
  ]
  assert step == f"step {100 + 5 + 10_000 // 10_000 + 10} us on 1 host"


def test_compare_placers_chooses_the_fastest(lines_of):
  *candidates, chosen, gap = lines_of("compare_placers.py")
  fastest = min(numbers(line)[0] for line in candidates)
  assert numbers(chosen)[-1] == fastest
  assert numbers(gap)[0] >= 0


def test_simulate_by_hand_counts_transfers(lines_of):
  lines = lines_of("simulate_by_hand.py")
  there = 30 + 10 + 120_000 / 12_000  # when c may start on the other device
  back = there + 50 + 10
  assert "one device: 150 us" in lines
  assert f"c on the other: {back + 20:.0f} us" in lines
  assert f"  c from {there:.0f} to {there + 50:.0f} us" in lines


def test_robust_optimizer_withstands_what_the_mean_does_not(lines_of):
  mean, trimmed = lines_of("robust_optimizer.py")
  assert numbers(mean)[0] < 0.3
  assert numbers(trimmed)[0] > 0.8


def test_custom_rule_shortens_the_long_row(lines_of):
  mean, clipped, loss = lines_of("custom_rule.py")
  assert numbers(mean) == pytest.approx([1001, 4009 / 3])
  # The row of length 5000 counts as (3, 4), of the median length 5.
  assert numbers(clipped) == pytest.approx([2, 13 / 3], abs=1e-3)
  first, last = re.findall(r"\d+\.\d+", loss)
  assert float(last) < float(first) / 10


def test_local_models_send_an_eighth(lines_of):
  ratio, accuracy = lines_of("local_models.py")
  # R_C = 1 / (1/R2 + 1/(R1 H)), of whole blocks.
  assert numbers(ratio)[0] == pytest.approx(1 / (1 / 16 + 1 / 16), rel=0.05)
  assert numbers(accuracy)[0] > 0.9


def test_federated_servers_learn(lines_of):
  for line in lines_of("federated.py"):
    assert numbers(line)[-1] > 0.6  # one of ten classes by chance


def test_command_line_predicts_the_plan_that_it_wrote(tmp_path):
  command = tmp_path / "bin" / "baechi"
  command.parent.mkdir()
  command.write_text(
    f"#!{sys.executable}\nfrom baechi_tf.cli.main import run\nrun()\n"
  )
  command.chmod(command.stat().st_mode | stat.S_IXUSR)
  found = subprocess.run(
    [str(EXAMPLES / "command_line.sh"), str(tmp_path)],
    cwd=ROOT,
    env={
      **os.environ,
      "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  # One tower beside load, the other beside join: the transfers overlap them.
  by_hand = 10 + (10 + 1000 / 12000) + 100 + 10
  steps = re.findall(r"predicted step +(\S+) us", found.stdout)
  assert steps == [f"{by_hand:.2f}"] * 2  # of place, and of simulate
  assert (tmp_path / "report" / "report.txt").exists()


def test_every_example_is_short_listed_and_tested():
  examples = {x.name for x in EXAMPLES.iterdir() if x.suffix in (".py", ".sh")}
  listed = (EXAMPLES / "README.md").read_text()
  tested = pathlib.Path(__file__).read_text()
  for name in sorted(examples):
    assert f"| [{name}]({name}) |" in listed, name
    assert f'"{name}"' in tested, name
    lines = (EXAMPLES / name).read_text().splitlines()
    assert len(lines) < MOST_LINES, name
