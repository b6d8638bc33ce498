"""Placed models in real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from baechi_tf.cli.main import main
from baechi_tf.cluster import read_cluster
from baechi_tf.graph_item import read_item
from baechi_tf.runner.start import local_run
from baechi_tf.saved_model import write_saved_model
from tests import models

pytestmark = [pytest.mark.slow, pytest.mark.process]

NAMES = [f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2)]
STEP = ("--signature=train", "--batch-size=5")
_CLUSTER = "".join(
  f'[[device]]\nname = "{x}"\nmemory = "1 GiB"\n' for x in NAMES
) + ("[link]\nlatency_us = 0\nbytes_per_us = 1e9\n")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A model, the model placed so that everything moves, its plan, a profile."""
  path = tmp_path_factory.mktemp("run")
  (path / "cluster.toml").write_text(_CLUSTER)
  models.save_mlp(path / "model")
  item = read_item(path / "model", signature="train")
  device_of = models.spread(item, NAMES)
  write_saved_model(path / "model", path / "placed", item, device_of)
  (path / "plan.json").write_text(json.dumps({"placement": device_of}))
  profile = ["profile", str(path / "model"), str(path / "profile")]
  assert main([*profile, *STEP, "--num-steps=3"]) == 0
  return path


def run_arguments(directory, *more: str) -> list[str]:
  return [
    "run", str(directory / "placed"), *STEP,
    f"--cluster={directory / 'cluster.toml'}", *more,
  ]  # fmt: skip


def is_running(pid: int) -> bool:
  try:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_run_shows_measured_beside_predicted(directory, capsys):
  trace = directory / "trace.json"
  arguments = (
    f"--plan={directory / 'plan.json'}",
    f"--profile={directory / 'profile'}",
    f"--trace={trace}",
    "--steps=4",
    "--json",
  )
  assert main(run_arguments(directory, *arguments)) == 0
  fields = json.loads(capsys.readouterr().out)
  times_us = sorted(fields["step_times_us"])
  assert len(times_us) == 4
  assert fields["measured_step_us"] == pytest.approx(sum(times_us[1:3]) / 2)
  assert fields["error"] == pytest.approx(
    fields["predicted_step_us"] / fields["measured_step_us"] - 1
  )
  assert [x["name"] for x in fields["devices"]] == NAMES
  first, second = (x["measured"] for x in fields["devices"])
  assert first["busy_time_us"] + first["idle_time_us"] == pytest.approx(
    fields["traced_step_us"]
  )
  assert first["busy_time_us"] > 0 < second["busy_time_us"]
  # What leaves one of two devices reaches the other.
  assert first["bytes_out"] == second["bytes_in"] > 0
  assert second["bytes_out"] == first["bytes_in"] > 0
  assert all(x["cpu_time_us"] > 0 for x in fields["processes"])
  events = json.loads(trace.read_text())["traceEvents"]
  shown = [x["args"]["name"] for x in events if x["name"] == "process_name"]
  assert shown == [
    f"{x}: {y}" for x in ("predicted", "measured") for y in NAMES
  ]


def test_run_refuses_other_plans_and_clusters(directory, capsys, tmp_path):
  plan = json.loads((directory / "plan.json").read_text())
  plan["placement"] = dict.fromkeys(plan["placement"], NAMES[0])
  (tmp_path / "plan.json").write_text(json.dumps(plan))
  (tmp_path / "cluster.toml").write_text(_CLUSTER.replace("worker", "other"))
  for argument, complaint in (
    (f"--plan={tmp_path / 'plan.json'}", "was placed by another plan"),
    (f"--cluster={tmp_path / 'cluster.toml'}", "none of the cluster's devices"),
    ("--signature=no", "there is no signature 'no'"),
  ):
    assert main(run_arguments(directory, argument)) == 2
    error = capsys.readouterr().err
    assert error.startswith("baechi: ")
    assert complaint in error
    assert error.count("\n") == 1


def test_lost_process_is_named_and_none_is_left(directory):
  cluster = read_cluster(directory / "cluster.toml")
  item = read_item(directory / "model", signature="train")
  from baechi_tf.costs.inputs import synthesize_inputs

  with pytest.raises(ChildProcessError, match=r"task:1 ended \(killed by SIG"):
    with local_run(cluster) as running:
      pids = [x.process.pid for x in running.children]
      with pytest.raises(ChildProcessError, match="task:0 fails"):
        running.load("x", str(directory / "none"), "train", {})
      values = synthesize_inputs(item, 5)
      running.load("x", str(directory / "placed"), "train", values)
      os.kill(pids[1], signal.SIGKILL)
      running.run("x", 1000)
  assert not any(map(is_running, pids))


def test_sigterm_ends_every_process(directory):
  arguments = run_arguments(directory, "--steps=10000000")
  command = "from baechi_tf.cli.main import run; run()"
  with subprocess.Popen(
    [sys.executable, "-c", command, *arguments],
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    deadline = time.monotonic() + 100
    pids = []
    while len(pids) < 2 and time.monotonic() < deadline:
      with open(children, encoding="ascii") as file:
        pids = [int(x) for x in file.read().split()]
      time.sleep(0.1)
    process.terminate()
    assert process.stderr.read().splitlines()[-1] == "baechi: interrupted"
    assert process.wait() == 143
  assert len(pids) == 2
  assert not any(map(is_running, pids))


def test_verify_never_takes_a_plan_that_is_slower(directory, capsys, tmp_path):
  # Links that cost nothing promise much; real ones take longer than the step.
  inputs = str(tmp_path / "in.npz")
  np.savez(inputs, **models.mlp_batch(0))
  arguments = (
    "--signature=train",
    f"--inputs={inputs}",
    f"--cluster={directory / 'cluster.toml'}",
    f"--profile={directory / 'profile'}",
    "--placer=m_etf",
    "--verify",
    "--json",
  )
  model, output = str(directory / "model"), str(tmp_path / "out")
  assert main(["place", model, output, *arguments]) == 0
  fields = json.loads(capsys.readouterr().out)
  story = fields["verification"]
  first = story["attempts"][0]
  assert first["measured_us"] > first["one_device_us"]
  assert first["link_factor"] > 1
  assert story["chosen"] is None
  assert sum(x["num_ops"] > 0 for x in fields["devices"]) == 1
