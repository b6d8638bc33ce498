"""A local cluster's processes find each other, and none is left behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from robust_tf.training import child_processes
from tools import local_cluster

ROOT = pathlib.Path(__file__).parents[2]
INDEX = "import json, os; i = json.loads(os.environ['TF_CONFIG'])['task']"


def run(script, directory, num_workers=2, **kwargs):
  command = [sys.executable, "-u", "-c", script]
  return local_cluster.run(
    command, num_workers, log_directory=str(directory), **kwargs
  )


def start(*arguments):
  """Starts the program itself."""
  return subprocess.Popen(
    [sys.executable, "-m", "tools.local_cluster", *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def is_alive(pid):
  """Whether a process runs; one that nobody has waited for does not."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, timeout_s=30):
  deadline = time.monotonic() + timeout_s
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_workers_get_one_cluster_and_their_own_index():
  environments = local_cluster.worker_environments(
    child_processes.free_addresses(3), {"HOME": "/h"}
  )
  configs = [json.loads(x["TF_CONFIG"]) for x in environments]
  hosts = configs[0]["cluster"]["worker"]
  assert len(set(hosts)) == 3
  assert [x["cluster"] for x in configs] == [{"worker": hosts}] * 3
  assert [x["task"] for x in configs] == [
    {"type": "worker", "index": i} for i in range(3)
  ]
  assert {x["HOME"] for x in environments} == {"/h"}


def test_no_proxy_stands_between_workers():
  proxies = {"https_proxy": "a", "HTTP_PROXY": "b", "ALL_PROXY": "c"}
  for environment in local_cluster.worker_environments(["a:1"], proxies):
    assert not proxies.keys() & environment.keys()
    assert environment["GRPC_FAIL_FAST"] == "use_caller"


def test_each_host_has_its_address_and_its_own_way_to_start(tmp_path):
  hosts = [
    local_cluster.Host("10.0.0.1:5000", ("env", "WHERE=here")),
    local_cluster.Host("10.0.0.2:5000", ("env", "WHERE=there")),
  ]
  outcome = run(
    "import os; print(os.environ['WHERE'], os.environ['TF_CONFIG'])",
    tmp_path,
    hosts=hosts,
  )
  for index, where in enumerate(("here", "there")):
    found, _, config = outcome.output(index).partition(" ")
    assert found == where
    assert json.loads(config) == {
      "cluster": {"worker": ["10.0.0.1:5000", "10.0.0.2:5000"]},
      "task": {"type": "worker", "index": index},
    }


def test_hosts_must_be_as_many_as_workers(tmp_path):
  hosts = [local_cluster.Host("10.0.0.1:5000")]
  with pytest.raises(ValueError, match="workers=2 needs as many hosts, not 1"):
    run("", tmp_path, hosts=hosts)


def test_output_is_kept_apart_and_shown_together(tmp_path):
  shown = []
  outcome = run(
    f"{INDEX}; print(i['index'])", tmp_path / "logs", 3, show=shown.append
  )
  assert outcome == local_cluster.Outcome(
    0, None, tuple(str(tmp_path / f"logs/worker_{i}.log") for i in range(3))
  )
  assert [outcome.output(i) for i in range(3)] == ["0\n", "1\n", "2\n"]
  assert sorted(shown) == ["[0] 0", "[1] 1", "[2] 2"]


def test_failure_ends_the_others_and_gives_its_code(tmp_path):
  script = f"""
{INDEX}
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
print(os.getpid(), child.pid)
if i["index"] == 1:
  print("out of luck")
  sys.exit(7)
time.sleep(600)
"""
  outcome = run(script, tmp_path, 2, timeout_s=60)
  assert (outcome.exit_code, outcome.failed) == (7, 1)
  assert outcome.tail(1).endswith("out of luck")
  pids = [p for i in range(2) for p in outcome.output(i).split()[:2]]
  wait_for(lambda: not any(is_alive(int(p)) for p in pids if p.isdigit()))


def test_worker_killed_by_a_signal_gives_128_plus_its_number(tmp_path):
  outcome = run("import os; os.kill(os.getpid(), 9)", tmp_path, 1)
  assert (outcome.exit_code, outcome.failed) == (137, 0)


def test_workers_that_take_too_long_are_ended_though_they_resist(tmp_path):
  script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid())
time.sleep(600)
"""
  outcome = run(script, tmp_path, 2, timeout_s=3)
  assert outcome.exit_code == local_cluster.TIMED_OUT
  assert outcome.failed is None
  assert not any(is_alive(int(outcome.output(i))) for i in range(2))


def test_tail_is_the_last_lines(tmp_path):
  outcome = run("for i in range(100): print(i)", tmp_path, 1)
  assert outcome.tail(0).splitlines() == [str(i) for i in range(80, 100)]


@pytest.mark.parametrize(
  ("command", "num_workers", "match"),
  [([], 2, "no command"), (["true"], 0, "workers=0 must be at least 1")],
)
def test_bad_arguments_are_refused(command, num_workers, match, tmp_path):
  with pytest.raises(ValueError, match=match):
    local_cluster.run(command, num_workers, log_directory=str(tmp_path))


def test_unknown_program_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="no_such_program"):
    local_cluster.run(["no_such_program"], 2, log_directory=str(tmp_path))


def test_program_shows_the_end_of_the_failing_log(tmp_path):
  process = start(
    "--workers=2",
    f"--logs={tmp_path}",
    "--",
    sys.executable,
    "-c",
    f"{INDEX}; import time; i['index'] or exit('no luck'); time.sleep(600)",
  )
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "[0] no luck" in output
  assert f"worker 0 failed with exit code 1; the end of {tmp_path}" in errors
  assert "no luck" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_program_leaves_nothing(number, tmp_path):
  process = start(
    "--workers=2",
    f"--logs={tmp_path}",
    "--",
    sys.executable,
    "-u",
    "-c",
    "import os, time; print(os.getpid()); time.sleep(600)",
  )
  logs = [tmp_path / f"worker_{i}.log" for i in range(2)]
  wait_for(lambda: all(x.exists() and x.read_text() for x in logs))
  process.send_signal(number)
  process.communicate(timeout=60)
  assert process.returncode == 128 + number
  for log in logs:
    pid = int(log.read_text())
    assert not is_alive(pid), os.fspath(log)
