"""Connects this process to the servers of a cluster, as their client."""

import os
import time
from collections.abc import Sequence

from baechi_tf.cluster import Cluster
from baechi_tf.host_addresses import split_address
from baechi_tf.runner.client import become_client
from baechi_tf.runner.start import check_hosts
from baechi_tf.runner.start import ServerMissingError
from baechi_tf.runner.tasks import cluster_spec
from baechi_tf.runner.tasks import tasks_of

_POLL_S = 0.2


def connect(
  cluster: Cluster, addresses: Sequence[str], *, wait_s: float = 0.0
) -> None:
  """Gives this process the devices of all processes of a cluster.

  The process of the first device is this one, the client; each of the others
  runs `baechi_tf.serve`. Call it before TensorFlow runs anything.

  Args:
    cluster: whose devices' names say which processes there are.
    addresses: "host:port" for each process, in the order of its first device.
      The others find this one under the first.
    wait_s: how long to wait for the servers to be up, in seconds.

  Raises:
    ValueError: an address is none, no server answers there, or there are not as
      many as processes.
    RuntimeError: TensorFlow has run something before.
  """
  tasks = tasks_of(cluster.device_names)
  deadline = time.monotonic() + wait_s
  while True:
    try:
      check_hosts(tasks, addresses)
      break
    except ServerMissingError:
      if time.monotonic() >= deadline:
        raise
      time.sleep(_POLL_S)
  # Fail at once when a server is gone, not after gRPC's own retries.
  os.environ.setdefault("GRPC_FAIL_FAST", "use_caller")
  hosts = dict.fromkeys(split_address(address)[0] for address in addresses)
  os.environ.setdefault("no_grpc_proxy", ",".join(hosts))
  become_client(tasks[0], cluster_spec(tasks, addresses))
