"""A parameter server that is lost, or hangs, ends a process, not the run."""

import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from robust_tf.federated.sampling import permutation
from robust_tf.training import child_processes
from tests.robust_tf import federated_replay as replay
from tests.robust_tf import federated_rounds
from tests.robust_tf.server_network import server_network
from tools import federated_servers

ROUNDS, LOST_AT = 12, 5
TIMEOUT_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.process]


def run(prefix, cluster, state, versions, on_line=lambda line: None):
  """Runs a coordinator; returns its exit code and all that it wrote."""
  command = [*prefix, sys.executable, "-m", federated_rounds.__name__]
  output = []
  with subprocess.Popen(
    [*command, json.dumps(cluster), str(state), str(versions)],
    env={
      **child_processes.peer_environment(os.environ),
      "TF_CPP_MIN_LOG_LEVEL": "3",
      "CUDA_VISIBLE_DEVICES": "-1",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    timer = threading.Timer(TIMEOUT_S, process.kill)
    timer.start()
    try:
      for line in process.stdout:
        output.append(line)
        on_line(line)
      process.wait(timeout=TIMEOUT_S)
    finally:
      timer.cancel()
      process.kill()
  return process.wait(), "".join(output)


def uninterrupted(versions):
  """Returns the model after so many rounds without a fault."""
  tasks = federated_rounds.device_tasks()
  x = replay.flat(replay.INITIAL)
  size = federated_rounds.DEVICES_PER_ROUND
  for t in range(versions):
    devices = permutation(tasks.num_devices, size, t, tasks.seed)
    models = [
      replay.local_model(x, tasks.task(size * t + i, device, t))
      for i, device in enumerate(devices)
    ]
    x = np.mean(models, axis=0)
  return x


@pytest.mark.parametrize(
  ("loss", "told"),
  [
    ("kill", "parameter server 0 cannot be reached any more"),
    ("stop", "a parameter server has not answered for 15 s"),
  ],
)
def test_run_goes_on_in_a_new_process_as_if_nothing_had_happened(
  tmp_path, loss, told
):
  state = tmp_path / "state"
  with (
    server_network() as prefix,
    federated_servers.run(2, 1, prefix) as servers,
  ):

    def lose(line):
      if line == f"round {LOST_AT}\n":
        getattr(servers, loss)("ps", 0)

    code, output = run(prefix, servers.cluster, state, 10**6, lose)
    assert code == federated_rounds.LOST, output[-4000:]
    assert f"lost: {told}" in output
    done = pickle.loads(state.read_bytes())[0]["version"]
    assert done >= LOST_AT
    if loss == "stop":
      servers.kill("ps", 0)
    servers.start("ps", 0)
    code, output = run(prefix, servers.cluster, state, done + ROUNDS)
    assert code == 0, output[-4000:]
    assert f"round {done + 1}\n" in output
    assert "round 1\n" not in output
  server_state, weights = pickle.loads(state.read_bytes())
  assert server_state["version"] == done + ROUNDS
  np.testing.assert_allclose(
    replay.flat(weights),
    uninterrupted(done + ROUNDS),
    rtol=0,
    atol=replay.TOLERANCE,
  )
