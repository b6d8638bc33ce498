"""Processes that die are started again, and none is left behind."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from robust_tf.training.federated_flags import ClusterSize
from robust_tf.training.supervisor import Supervisor
from robust_tf.training.supervisor import TRY_AGAIN
from tests.robust_tf.server_network import local_cluster_flags

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_S = 60

# What every process does first: it tells who it is, in a file of its own, as
# often as it is started. They wait by waiting for the end of standard input.
PREAMBLE = """
import json, os, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
name = "{type}_{index}".format(**config["task"])
with open(name, "a") as file:
  file.write(f"{os.getpid()}\\n")
starts = len(open(name).readlines())
def wait_for(path):
  while not os.path.exists(path):
    time.sleep(0.01)
def serve():
  sys.stdin.read()
if name == "chief_0":
  for other in ("ps_0", "worker_0", "worker_1"):
    wait_for(other)
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def supervise(script, size=ClusterSize(2, 1), max_restarts=3):  # noqa: B008
  return Supervisor(
    [sys.executable, "-u", "-c", PREAMBLE + script],
    size,
    max_restarts=max_restarts,
    log_directory="logs",
  ).run()


def pids(directory):
  """Returns the processes of each member, in the order of their starts."""
  return {
    path.name: [int(x) for x in path.read_text().split()]
    for path in directory.iterdir()
    if path.name.partition("_")[0] in ("chief", "ps", "worker")
    and not path.suffix
  }


def is_alive(pid):
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"


def check_none_is_left(directory):
  assert not any(is_alive(x) for some in pids(directory).values() for x in some)


def test_every_process_knows_the_cluster_and_itself(directory):
  script = """
open(name + ".json", "w").write(os.environ["TF_CONFIG"])
if name == "chief_0":
  for other in ("ps_0", "worker_0", "worker_1"):
    wait_for(other + ".json")
else:
  serve()
"""
  assert supervise(script) == 0
  configs = {
    path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")
  }
  assert configs.keys() == {"chief_0", "ps_0", "worker_0", "worker_1"}
  cluster = configs["chief_0"]["cluster"]
  assert {job: len(x) for job, x in cluster.items()} == {
    "chief": 1,
    "ps": 1,
    "worker": 2,
  }
  assert len({x for addresses in cluster.values() for x in addresses}) == 4
  assert all(x["cluster"] == cluster for x in configs.values())
  check_none_is_left(directory)


def test_worker_that_was_killed_is_started_again(directory, capfd):
  script = """
if name == "chief_0":
  wait_for("again")
elif name == "worker_1" and starts == 1:
  os.kill(os.getpid(), signal.SIGKILL)
elif name == "worker_1":
  open("again", "w")
  serve()
else:
  serve()
"""
  assert supervise(script) == 0
  counts = {name: len(x) for name, x in pids(directory).items()}
  assert counts == {"chief_0": 1, "ps_0": 1, "worker_0": 1, "worker_1": 2}
  error = capfd.readouterr().err
  assert "worker 1 was killed by SIGKILL, and is started again (1 of" in error
  check_none_is_left(directory)


@pytest.mark.parametrize(
  ("loss", "told"),
  [
    ("SIGKILL", "parameter server 0 was killed by SIGKILL, and is started"),
    ("SIGSTOP", "a parameter server does not answer: they are ended"),
  ],
)
def test_coordinator_is_started_again_after_its_parameter_server(
  directory, capfd, loss, told
):
  script = f"""
if name == "chief_0" and starts == 1:
  wait_for("lost")
  sys.exit({TRY_AGAIN})
elif name == "chief_0":
  wait_for("is_back")
elif name == "ps_0" and starts == 1:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  wait_for("chief_0")
  open("lost", "w")
  os.kill(os.getpid(), signal.{loss})
elif name == "ps_0":
  open("is_back", "w")
  serve()
else:
  serve()
"""
  assert supervise(script) == 0
  counts = {name: len(x) for name, x in pids(directory).items()}
  assert counts == {"chief_0": 2, "ps_0": 2, "worker_0": 1, "worker_1": 1}
  assert told in capfd.readouterr().err
  check_none_is_left(directory)


def test_coordinator_that_was_killed_is_started_again(directory):
  script = """
if name != "chief_0":
  serve()
elif starts == 1:
  os.kill(os.getpid(), signal.SIGKILL)
"""
  assert supervise(script) == 0
  counts = {name: len(x) for name, x in pids(directory).items()}
  assert counts == {"chief_0": 2, "ps_0": 1, "worker_0": 1, "worker_1": 1}


def test_coordinator_that_complains_ends_the_run(directory):
  script = """
if name == "chief_0":
  sys.exit(2)
serve()
"""
  assert supervise(script) == 2
  assert len(pids(directory)["chief_0"]) == 1
  check_none_is_left(directory)


def test_what_dies_too_often_is_named_with_its_last_words(directory, capfd):
  script = """
if name == "worker_0":
  print("out of luck", starts)
  sys.exit(7)
serve()
"""
  assert supervise(script, max_restarts=2) == 7
  assert len(pids(directory)["worker_0"]) == 3
  error = capfd.readouterr().err
  assert "worker 0 ended with exit code 7, after --max_restarts=2" in error
  assert error.endswith("out of luck 3\n")
  check_none_is_left(directory)


def test_unknown_program_leaves_nothing_behind(directory):
  supervisor = Supervisor(
    ["no_such_program"],
    ClusterSize(1, 1),
    max_restarts=0,
    log_directory="logs",
  )
  with pytest.raises(FileNotFoundError, match="no_such_program"):
    supervisor.run()


# The program itself: signals, and its own end.


@contextlib.contextmanager
def program(tmp_path, *argv):
  """Starts robust-train, of which only the supervisor gets to work."""
  with subprocess.Popen(
    [
      *(sys.executable, "-c"),
      "from robust_tf.training.main import run; run()",
      *("--algorithm=fed_avg", "--devices_per_round=2", "--workers=4"),
      *("--strategy=parameter_server", "--local_cluster=workers:1,ps:1"),
      *local_cluster_flags(),
      *(f"--output={tmp_path / 'out'}", "--data=synthetic", *argv),
    ],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "TF_CONFIG"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      yield process
    finally:
      process.kill()


def children(pid):
  """Returns the processes that a process has started."""
  path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  return [int(x) for x in path.read_text().split()]


def wait_until(condition):
  deadline = time.monotonic() + TIMEOUT_S
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_all_processes(tmp_path, number):
  with program(tmp_path) as process:
    wait_until(lambda: len(children(process.pid)) == 3)
    started = children(process.pid)
    process.send_signal(number)
    _, error = process.communicate(timeout=TIMEOUT_S)
  assert process.returncode == 128 + number
  assert error.splitlines()[-1] == "robust-train: interrupted"
  assert "Traceback" not in error
  assert not any(map(is_alive, started))


def test_processes_end_with_a_supervisor_that_was_killed(tmp_path):
  with program(tmp_path) as process:
    wait_until(lambda: len(children(process.pid)) == 3)
    started = children(process.pid)
    process.kill()
    process.wait(timeout=TIMEOUT_S)
    wait_until(lambda: not any(map(is_alive, started)))


def test_bad_input_is_found_before_any_process_is_started(tmp_path):
  with program(tmp_path, "--workers=9999") as process:
    _, error = process.communicate(timeout=TIMEOUT_S)
  assert process.returncode == 2
  assert "num_workers=9999 needs at least as many examples" in error
  assert not (tmp_path / "out").exists()


def test_tf_config_and_local_cluster_are_one_too_many(tmp_path, monkeypatch):
  from robust_tf.training.main import main

  monkeypatch.setenv("TF_CONFIG", "{}")
  assert (
    main(
      [
        "--algorithm=fed_async",
        "--strategy=parameter_server",
        "--local_cluster=workers:1,ps:1",
        f"--output={tmp_path / 'out'}",
      ]
    )
    == 2
  )
