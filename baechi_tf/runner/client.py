"""Sets TensorFlow up in a process that runs the steps of a cluster."""

import os

import tensorflow as tf

from baechi_tf.runner.tasks import Task


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
