"""robust-train over real processes, which are killed."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import pytest

from robust_tf.training import child_processes
from robust_tf.training import output
from robust_tf.training.cluster_task import CHIEF
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import PS
from robust_tf.training.cluster_task import WORKER
from tests.robust_tf.server_network import local_cluster_flags
from tests.robust_tf.server_network import server_network
from tests.tensorflow_setup import tf  # noqa: F401  sets TensorFlow up

# Each run is several processes, with TensorFlow to load.
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (
  sys.executable,
  "-c",
  "from robust_tf.training.main import run; run()",
)
TIMEOUT_S = 300
STEPS = 160  # long enough to kill a process after the checkpoint at step 50
SLSGD = (
  "--algorithm=slsgd",
  "--workers=12",
  "--batch_size=8",
  "--devices_per_round=6",
  "--local_steps=3-6",
  "--aggregator=trimmed_mean",
  "--trim=1",
  "--mixing_weight=0.9",
  "--attack=sign_flip",
  "--byzantine=2,7",
  "--evaluate_every=10",
  f"--steps={STEPS}",
)
LISTENING = local_cluster_flags()
CLUSTER = (
  "--strategy=parameter_server",
  "--local_cluster=workers:2,ps:1",
  *LISTENING,
)


# How much TensorFlow logs is the command's own choice here.
OWN_CHOICE = ("TF_CONFIG", "TF_CPP_MIN_LOG_LEVEL")


def environment(**changes):
  kept = {k: v for k, v in os.environ.items() if k not in OWN_CHOICE}
  return {**kept, "PYTHONPATH": str(ROOT), **changes}


def start(*argv, prefix=(), **changes):
  return subprocess.Popen(
    [*prefix, *COMMAND, *argv],
    env=environment(**changes),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*argv):
  """Runs the command in a process of its own, to its end."""
  with start(*argv) as process:
    return finish(process)


def finish(process):
  try:
    _, error = process.communicate(timeout=TIMEOUT_S)
  finally:
    process.kill()
  assert process.returncode == 0, error
  return error


def without_warning(error):
  """Returns what a process of TF_CONFIG complains of."""
  first, newline, rest = error.partition("\n")
  return rest if first.startswith("robust-train: warning: ") else error


def wait_until(condition, process):
  """Waits for something that a process does; ends it if that goes wrong."""
  deadline = time.monotonic() + TIMEOUT_S
  try:
    while not condition():
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.01)
  except BaseException:
    process.kill()
    raise


def members(supervisor):
  """Returns the processes of a supervisor, by job and index."""
  return {
    (config["task"]["type"], config["task"]["index"]): pid
    for pid, config in configs(supervisor).items()
  }


def configs(supervisor):
  """Returns the TF_CONFIG of each process of a supervisor, by its number."""
  path = pathlib.Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
  found = {}
  for pid in map(int, path.read_text().split()):
    try:
      variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
      continue  # it has just ended
    for variable in variables.split(b"\0"):
      if variable.startswith(b"TF_CONFIG="):
        found[pid] = json.loads(variable.partition(b"=")[2])
  return found


def connections(supervisor):
  """Returns where processes of a cluster answer, of all this host's addresses.

  Where not even loopback connects, no other host's connection arrives.
  """
  (config, *_) = configs(supervisor).values()
  addresses = [x for job in config["cluster"].values() for x in job]
  assert len(addresses) == 4
  ports = [int(x.partition(":")[2]) for x in addresses]
  hosts = {"localhost", *socket.gethostbyname_ex(socket.gethostname())[2]}
  found = []
  for peer in ((host, port) for host in hosts for port in ports):
    with contextlib.suppress(ConnectionRefusedError):
      socket.create_connection(peer, timeout=5).close()
      found.append(peer)
  return found


def weights(folder):
  return keras.models.load_model(folder / output.MODEL).get_weights()


def assert_equal(folder, other):
  for mine, its in zip(weights(folder), weights(other), strict=True):
    # The same operations on the same machine, but in other processes.
    assert abs(mine - its).max() < 1e-5


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
  """A run of one process, which was not interrupted."""
  folder = tmp_path_factory.mktemp("in_process") / "run"
  run(*SLSGD, f"--output={folder}")
  return folder


@pytest.mark.process
def test_local_cluster_equals_one_process(in_process, tmp_path):
  with start(*SLSGD, *CLUSTER, f"--output={tmp_path}") as process:
    saved = tmp_path / output.CHECKPOINTS / "ckpt-50.index"
    wait_until(saved.exists, process)
    answered = connections(process)
    error = finish(process)
  if not LISTENING:
    assert answered == []
    assert error == ""
  assert_equal(tmp_path, in_process)
  result, expected = (
    json.loads((folder / output.RESULT).read_text())
    for folder in (tmp_path, in_process)
  )
  for name in ("accepted", "refused", "staleness", "pushes_per_device"):
    assert result["federated"][name] == expected["federated"][name]
  logs = tmp_path / output.PROCESSES
  assert {x.name for x in logs.iterdir()} == {
    "ps_0.log",
    "worker_0.log",
    "worker_1.log",
  }


@pytest.mark.parametrize(
  ("member", "told"),
  [
    ((WORKER, 0), "worker 0 was killed by SIGKILL, and is started again"),
    ((PS, 0), "parameter server 0 was killed by SIGKILL, and is started again"),
    pytest.param(
      (CHIEF, 0),
      "the coordinator was killed by SIGKILL, and is started again",
      marks=pytest.mark.process,
    ),
  ],
  ids=["worker", "parameter_server", "coordinator"],
)
def test_run_whose_process_was_killed_ends_as_one_that_was_left_alone(
  in_process, tmp_path, member, told
):
  with start(*SLSGD, *CLUSTER, f"--output={tmp_path}") as process:
    saved = tmp_path / output.CHECKPOINTS / "ckpt-50.index"
    wait_until(saved.exists, process)
    victim = members(process)[member]
    os.kill(victim, signal.SIGKILL)
    # Another one takes its place.
    wait_until(lambda: members(process).get(member, victim) != victim, process)
    error = finish(process)
  assert told in error
  assert "Traceback" not in error
  assert_equal(tmp_path, in_process)
  events = (tmp_path / output.EVENTS).read_text().splitlines()
  accepted = [
    x["serial"] for x in map(json.loads, events) if x["kind"] == "accepted"
  ]
  assert len(accepted) == len(set(accepted)) == STEPS * 6  # each once


@pytest.mark.process
def test_fed_async_on_a_cluster_learns_though_a_worker_dies(tmp_path):
  argv = (
    "--algorithm=fed_async",
    "--workers=12",
    "--batch_size=8",
    "--steps=400",
    "--staleness=polynomial",
    "--concurrency=4",
    "--deadline_s=30",
  )
  with start(*argv, *CLUSTER, f"--output={tmp_path}") as process:
    saved = tmp_path / output.CHECKPOINTS / "ckpt-50.index"
    wait_until(saved.exists, process)
    os.kill(members(process)[WORKER, 1], signal.SIGKILL)
    finish(process)
  result = json.loads((tmp_path / output.RESULT).read_text())
  assert result["federated"]["accepted"] == 400
  # Four devices at a time: what comes has seen three others go before it.
  assert result["federated"]["staleness"].keys() & {"1", "2", "3"}
  assert result["final"]["test_accuracy"] > 0.9


@pytest.mark.process
def test_processes_of_tf_config_train_together(in_process, tmp_path):
  addresses = child_processes.free_addresses(3)
  cluster = {CHIEF: addresses[:1], PS: addresses[1:2], WORKER: addresses[2:]}
  argv = (*SLSGD, "--strategy=parameter_server", f"--output={tmp_path}")
  processes = []
  try:
    with server_network() as prefix:
      for job in (PS, WORKER, CHIEF):
        config = ClusterTask(cluster, job, 0).to_json()
        processes.append(start(*argv, prefix=prefix, TF_CONFIG=config))
      finish(processes[-1])
    for process in processes[:-1]:
      assert process.poll() is None  # until it is ended
      process.terminate()
      out, error = process.communicate(timeout=TIMEOUT_S)
      assert " 0 is up at localhost:" in out
      assert without_warning(error) == ""
  finally:
    for process in processes:
      process.kill()
      process.communicate(timeout=TIMEOUT_S)
  assert_equal(tmp_path, in_process)


@pytest.mark.process
def test_address_that_does_not_answer_is_named_in_time(tmp_path):
  addresses = child_processes.free_addresses(3)
  cluster = {CHIEF: addresses[:1], PS: addresses[1:2], WORKER: addresses[2:]}
  task = ClusterTask(cluster, CHIEF, 0)
  argv = (*SLSGD, "--strategy=parameter_server", "--cluster_timeout_s=2")
  with start(*argv, TF_CONFIG=task.to_json()) as process:
    try:
      _, error = process.communicate(timeout=TIMEOUT_S)
    finally:
      process.kill()
  assert process.returncode == 2
  error = without_warning(error)
  assert error.startswith("robust-train: no answer within 2 s from ps 0 at")
  assert f"worker 0 at {addresses[2]}" in error
  assert error.count("\n") == 1


@pytest.mark.process
def test_port_that_is_taken_is_named():
  with socket.create_server(("localhost", 0)) as listening:
    address = f"localhost:{listening.getsockname()[1]}"
    cluster = {CHIEF: ["localhost:1"], PS: ["localhost:2"], WORKER: [address]}
    task = ClusterTask(cluster, WORKER, 0)
    argv = (*SLSGD, "--strategy=parameter_server")
    with start(*argv, TF_CONFIG=task.to_json()) as process:
      try:
        _, error = process.communicate(timeout=TIMEOUT_S)
      finally:
        process.kill()
  assert process.returncode == 2
  assert f"worker 0 cannot listen at {address}" in error
