"""The coordinator of rounds that can go on in another process.

    python -m tests.robust_tf.federated_rounds CLUSTER STATE VERSIONS

Begins where STATE, a file, says that the last one was, if it is there, and
writes it after each round. Says on its output which round that was.
"""

import json
import os
import pathlib
import pickle
import sys

from robust_tf import federated
from robust_tf.distribute import parameter_server
from robust_tf.federated.training_loop import ParameterServerLostError
from tests.robust_tf import federated_cluster as cluster
from tests.robust_tf import federated_replay as replay

DEVICES_PER_ROUND = 4
LOST = 3  # the exit code when a parameter server is
SERVER_TIMEOUT_S = 15


def device_tasks() -> federated.DeviceTasks:
  """Returns what devices do: enough that a server is lost meanwhile."""
  return replay.device_tasks(local_steps=100)


def main(addresses: str, path: str, versions: str) -> int:
  """Runs rounds; returns the exit code."""
  coordinator = parameter_server.connect(json.loads(addresses), timeout_s=60)
  training = cluster.local_training(cluster.make_model(), gives_update=True)
  devices = federated.RemoteDevices(
    coordinator, training, cluster.data(), server_timeout_s=SERVER_TIMEOUT_S
  )
  server = federated.SLSGD(
    replay.INITIAL, device_tasks(), devices_per_round=DEVICES_PER_ROUND
  )
  state = pathlib.Path(path)
  if state.exists():
    server.restore(*pickle.loads(state.read_bytes()))

  def save(version):
    written = state.with_suffix(".new")
    written.write_bytes(pickle.dumps((server.state(), server.weights)))
    written.rename(state)
    print(f"round {version}", flush=True)

  try:
    federated.run(server, devices, int(versions), on_version=save)
  except ParameterServerLostError as error:
    print(f"lost: {error}", file=sys.stderr)
    return LOST
  return 0


if __name__ == "__main__":
  code = main(*sys.argv[1:])
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
