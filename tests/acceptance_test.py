"""Real training steps, placed by the command line, run on their devices.

Everything here runs on the models of `tools.acceptance`, each exported and
profiled once.
"""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from baechi_tf import planner
from baechi_tf.cli import main as baechi
from baechi_tf.cluster import read_cluster
from baechi_tf.costs.profile import complete
from baechi_tf.costs.profile import read_profile
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.graph_item import read_item
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import PLACERS
from baechi_tf.simulator import simulate
from tests.tensorflow_setup import DEVICES
from tools import acceptance
from tools import step_run

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A model on disk, and as a graph with its measured costs."""

  subject: acceptance.Subject
  directory: str
  graph: OpGraph


@pytest.fixture(scope="module", params=acceptance.MODELS)
def case(request, tmp_path_factory):
  directory = str(tmp_path_factory.mktemp(request.param))
  subject = acceptance.prepare(request.param, directory)
  item = read_item(subject.path, signature=acceptance.SIGNATURE)
  costs, _ = complete(read_profile(subject.profile), item, ("CPU",), {})
  graph = op_graph_from_item(item, costs, ("CPU",))
  return Case(subject, directory, graph)


@pytest.fixture(scope="module")
def checks(case):
  results = acceptance.check_model(case.subject, case.directory)
  yield {(x.num_devices, x.check.account.rewritten): x.check for x in results}
  step_run.set_rewriting(True)


@pytest.fixture(params=acceptance.MEMORY_FRACTIONS)
def num_devices(request):
  return request.param


def cluster_of(case, directory, num_devices, memory_bytes):
  path = os.path.join(directory, "cluster.toml")
  return acceptance.write_cluster(path, num_devices, memory_bytes)


@pytest.mark.parametrize("rewritten", [True, False])
def test_three_steps_give_the_same_numbers(
  case, checks, num_devices, rewritten
):
  check = checks[num_devices, rewritten]
  assert len(check.model.outputs) == 3
  assert check.difference.is_same
  # No comparison of what stayed as it was.
  constant = case.subject.name == "keras_adam"  # its learning rate
  assert check.difference.num_changed == len(check.model.final) - constant > 90
  losses = [float(x["loss"]) for x in check.model.outputs]
  assert len(set(losses)) == 3


def test_as_written_every_op_is_on_its_device(checks, num_devices):
  account = checks[num_devices, False].account
  assert len(account.judged) == len(account.fates) > 2000
  assert account.unexplained == []
  assert account.agreement >= 0.99


def test_as_rewritten_survivors_are_on_their_devices(checks, num_devices):
  account = checks[num_devices, True].account
  assert account.unexplained == []
  # The runtime makes small constants where they are used; a plan that has them
  # elsewhere does not come true, and nothing is lost.
  assert account.agreement >= 0.97
  assert 0.3 < len(account.judged) / len(account.fates) < 1.0


def test_all_devices_are_used(checks, num_devices):
  placed = checks[num_devices, False].placed
  used = {x for x, count in placed.executed.num_ops.items() if count > 200}
  assert used == set(DEVICES[:num_devices])
  assert {x.device for x in placed.variables} == used
  assert set(placed.executed.num_sent) >= used


@pytest.mark.usefixtures("checks")  # they have placed it once
def test_two_processes_write_the_same_bytes(case):
  """The other one iterates sets in another order."""
  first, second = (os.path.join(case.directory, x) for x in ("4", "again"))
  os.mkdir(second)
  script = "from baechi_tf.cli.main import run; run()"
  subprocess.run(
    [
      sys.executable, "-c", script, "place", *case.subject.arguments(),
      os.path.join(second, "placed"),
      f"--cluster={os.path.join(first, 'cluster.toml')}",
      f"--report={os.path.join(second, 'report')}",
      acceptance.SEARCH,
    ],
    env={**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.getcwd()},
    stdout=subprocess.DEVNULL,
    check=True,
    timeout=120,
  )  # fmt: skip
  written = files_of(os.path.join(first, "report"))
  assert written.keys() == {
    "placement.json",
    "report.html",
    "report.txt",
    "trace.json",
  }
  assert files_of(os.path.join(second, "report")) == written
  written = files_of(os.path.join(first, "placed"))
  assert written.keys() >= {"saved_model.pb", "fingerprint.pb"}
  assert files_of(os.path.join(second, "placed")) == written


def files_of(directory):
  """Returns the bytes of all files in a directory."""
  found = {}
  for parent, _, names in os.walk(directory):
    for name in names:
      path = os.path.join(parent, name)
      with open(path, "rb") as file:
        found[os.path.relpath(path, directory)] = file.read()
  return found


@pytest.mark.parametrize("placer", [*PLACERS, planner.BEST])
@pytest.mark.parametrize("fraction", [0.95, 0.75, 0.5, 0.35, 0.2])
def test_plans_stay_within_memory_or_are_refused(
  case, num_devices, placer, fraction, tmp_path
):
  memory_bytes = int(case.subject.peak_memory_bytes * fraction)
  path = cluster_of(case, tmp_path, num_devices, memory_bytes)
  cluster = read_cluster(path)
  try:
    placement = planner.plan(case.graph, cluster, placer=placer).placement
  except InfeasiblePlacementError as error:
    assert "would help" in str(error)
    # What the models were placed with, above, is enough.
    enough = acceptance.MEMORY_FRACTIONS[num_devices]
    assert placer != planner.BEST or fraction < enough
    return
  assert placer != "single_device"
  peak = simulate(case.graph, cluster, placement.device).peak_memory_bytes
  assert (peak <= memory_bytes).all()


def test_one_byte_too_few_names_the_culprit(case, tmp_path, capsys):
  """The persistent state fits, and all of the step but one activation."""
  too_few = case.subject.peak_memory_bytes - 1
  assert too_few > case.graph.persistent_bytes.sum()
  line = refusal(case, too_few, tmp_path, capsys)
  assert f" need {too_few + 1:,} bytes" in line
  assert f" has {too_few:,}." in line
  # While the op that it names runs, the step's memory is at its peak.
  enough = read_cluster(cluster_of(case, tmp_path, 1, too_few + 1))
  device = np.zeros(case.graph.num_ops, np.int64)
  step = simulate(case.graph, enough, device, policy="executor")
  culprit = case.graph.index[line.split("'")[1]]
  times, memory = step.memory_time_us[0], step.memory_bytes[0]
  first = np.searchsorted(times, step.start_time_us[culprit], "right") - 1
  last = np.searchsorted(times, step.finish_time_us[culprit], "left")
  assert memory[first : last + 1].max() == too_few + 1


def test_no_room_for_activations_names_the_culprit(case, tmp_path, capsys):
  """The persistent state fits, and nothing else."""
  too_few = int(case.graph.persistent_bytes.sum())
  line = refusal(case, too_few, tmp_path, capsys)
  assert line.split("'")[1] in case.graph.index


def refusal(case, memory_bytes, directory, capsys):
  """Places on one device with too little memory; returns the complaint."""
  cluster = cluster_of(case, directory, 1, memory_bytes)
  out = os.path.join(directory, "out")
  argv = ["place", *case.subject.arguments(), out, f"--cluster={cluster}"]
  assert baechi.main(argv) == baechi.INFEASIBLE
  captured = capsys.readouterr()
  assert captured.out == ""
  (line,) = [x for x in captured.err.splitlines() if x.startswith("baechi:")]
  assert captured.err.endswith(f"{line}\n")
  assert os.listdir(directory) == ["cluster.toml"]
  return line
