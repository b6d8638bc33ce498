"""The time that TensorFlow waits for a worker's sign of life."""

import tensorflow as tf

from robust_tf.distribute.hooks import private


def bear_with_slow_links(heartbeat_timeout_s: float = 600.0) -> None:
  """Lets workers be silent for longer before they are taken for dead.

  A worker's sign of life waits behind its gradients, and TensorFlow gives up
  after ten seconds: too few for a large model on a link of 20 Mbit/s. To be
  called in every process before `MultiWorkerMirroredStrategy` is made; a
  process that ends is still noticed at once.

  Args:
    heartbeat_timeout_s: above 0.

  Raises:
    ValueError: the time is not above 0, or TF_CONFIG names no workers, or
      TensorFlow is a version without what this needs.
  """
  if not heartbeat_timeout_s > 0:
    raise ValueError(
      f"heartbeat_timeout_s={heartbeat_timeout_s} must be above 0"
    )
  cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
  spec = cluster.cluster_spec()
  if not spec:
    raise ValueError(
      "TF_CONFIG names no workers: set it before bear_with_slow_links is called"
    )
  context = private.find(__name__, "tensorflow.python.eager.context.context")
  leader = private.find(
    __name__,
    "tensorflow.python.distribute.multi_worker_util.coordination_leader",
    ("cluster_spec",),
  )
  coordinated_job = private.find(
    __name__,
    "tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2"
    ".CoordinatedJob",
  )
  # TensorFlow 2.21: what CollectiveAllReduceExtended sets by itself, but for
  # the time, unless it is set already.
  configure = private.attribute(
    __name__, context(), "configure_coordination_service"
  )
  configure(
    service_type="standalone",
    service_leader=leader(spec),
    heartbeat_timeout_in_ms=round(1000 * heartbeat_timeout_s),
    coordinated_jobs=[
      coordinated_job(name=job, num_tasks=spec.num_tasks(job))
      for job in spec.jobs
    ],
  )
