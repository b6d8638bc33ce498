"""Connects this process to the servers of a cluster, as their client."""

import os
import time
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.host_addresses import split_address
from baechi_tf.runner.start import check_hosts
from baechi_tf.runner.start import ServerMissingError
from baechi_tf.runner.tasks import cluster_spec
from baechi_tf.runner.tasks import Task
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


def become_client(
  task: Task,
  spec: dict[str, dict[int, str]] | None,
  *,
  intra_op: int | None = None,
) -> None:
  """Sets TensorFlow up in this process, as one task of a cluster.

  Args:
    task: which one.
    spec: job -> task -> address; None for a cluster of this process alone.
    intra_op: how many threads an op may use; None for TensorFlow's default.
  """
  if intra_op is not None:
    tf.config.threading.set_intra_op_parallelism_threads(intra_op)
  tf.config.threading.set_inter_op_parallelism_threads(num_ops_at_once())
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * task.num_cpus
  )
  if spec:
    tf.config.experimental_connect_to_cluster(
      tf.train.ClusterSpec(spec), job_name=task.job, task_index=task.index
    )


def num_ops_at_once() -> int:
  """Returns one op a core, but two at least: one of them sends a tensor."""
  return max(2, len(os.sched_getaffinity(0)))
