"""Python functions that a coordinator's threads call for a worker."""

from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.distribute.hooks import private

_COORDINATOR = "tensorflow.python.distribute.coordinator"


def schedule_call(
  coordinator: tf.distribute.coordinator.ClusterCoordinator,
  function: Callable[..., None],
  args: Sequence,
) -> None:
  """Has a worker's thread in this process call a Python function.

  `ClusterCoordinator.schedule` takes graphs only, and tells nobody when their
  results are there. What the function calls runs on the worker, as far as it
  is TensorFlow's; if it raises what `is_worker_failure` knows, the worker is
  recovered, and the function called again, on any worker.

  Args:
    coordinator: of the cluster.
    function: is to raise nothing else.
    args: of the function, some of them per worker.
  """
  # TensorFlow 2.21: what `schedule` does after its check.
  cluster = private.attribute(__name__, coordinator, "_cluster")
  cluster.schedule(function, args=tuple(args), kwargs=None)


def current_worker() -> int:
  """Returns the index of the worker for which `schedule_call` calls this."""
  get_context = private.find(
    __name__,
    f"{_COORDINATOR}.coordinator_context.get_current_dispatch_context",
  )
  return get_context().worker_index


def is_worker_failure(error: Exception) -> bool:
  """Returns whether an error is that a worker was lost."""
  path = f"{_COORDINATOR}.cluster_coordinator._is_worker_failure"
  return private.find(__name__, path, ("error",))(error)


def is_parameter_server_failure(error: Exception) -> bool:
  """Returns whether an error is that a parameter server was lost."""
  path = f"{_COORDINATOR}.cluster_coordinator._is_ps_failure"
  return private.find(__name__, path, ("error",))(error)
