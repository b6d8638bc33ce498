"""How a step reaches the gradients of all workers: one small interface.

Workers are replicas of a `tf.distribute.Strategy`, in one process or in
several, or rows of one tensor where many of them are computed on one device,
or both. An algorithm calls `once` to leave the replicas; there `all_updates`
or `all_rows` shows it every worker, and `on_every_replica` takes it back. The
order of workers is that of the replicas, and within a replica that of its
rows.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.distribute import compatibility
from robust_tf.distribute.compatibility import StrategyKind
from robust_tf.distribute.packing import pack


def once(function: Callable, *args):
  """Returns `function(*args)`, called once for all replicas of this process.

  To be called by every replica. Under a strategy the tensors in `args` arrive
  as one distributed value each, and every replica gets what is returned.
  """
  if not tf.distribute.has_strategy():
    return function(*args)
  return tf.distribute.get_replica_context().merge_call(
    lambda strategy, *merged: function(*merged), args=args
  )


def on_every_replica(function: Callable) -> None:
  """Calls `function()` on every replica; to be called inside `once`."""
  if not tf.distribute.has_strategy():
    function()
  else:
    tf.distribute.get_strategy().extended.call_for_each_replica(function)


def replica_devices() -> tuple[str | None, ...]:
  """Returns the device of each replica in this process; None: any."""
  if not tf.distribute.has_strategy():
    return (None,)
  return compatibility.local_replica_devices(tf.distribute.get_strategy())


def variables_on(device: str | None) -> contextlib.AbstractContextManager:
  """Returns a scope in which variables are made on one replica's device."""
  if device is None:
    return contextlib.nullcontext()
  return compatibility.variables_on(device)


def local_values(values: Sequence) -> list[list[tf.Tensor]]:
  """Returns what each replica of this process gave; inside `once`.

  Args:
    values: distributed values, one a variable.

  Returns:
    A list over the replicas of lists over the variables.
  """
  if not tf.distribute.has_strategy():
    return [list(values)]
  strategy = tf.distribute.get_strategy()
  by_variable = [strategy.experimental_local_results(v) for v in values]
  return [list(of_replica) for of_replica in zip(*by_variable, strict=True)]


def all_rows(
  gradients: Sequence[Sequence[tf.Tensor]], rows_per_replica: int
) -> tf.Tensor:
  """Returns the gradients of all workers as a matrix; inside `once`.

  Args:
    gradients: of each replica of this process, one tensor a variable.
    rows_per_replica: the workers of each replica.

  Returns:
    `[n, d]`, the same in every process.
  """
  packed = []
  for device, values in zip(replica_devices(), gradients, strict=True):
    with tf.device(device):
      packed.append(pack(values, rows_per_replica))
  if compatibility.strategy_kind() is StrategyKind.MULTI_WORKER:
    return _gathered(packed, rows_per_replica)
  return packed[0] if len(packed) == 1 else tf.concat(packed, axis=0)


def _gathered(packed: Sequence[tf.Tensor], rows_per_replica: int) -> tf.Tensor:
  """Returns the rows of the replicas of all processes, in their order."""
  strategy = tf.distribute.get_strategy()
  values = iter(packed)
  distribute = strategy.experimental_distribute_values_from_function
  rows = strategy.gather(distribute(lambda _: next(values)), axis=0)
  # Nothing promises an order of what is gathered.
  replicas = strategy.gather(
    distribute(lambda context: tf.fill([1], context.replica_id_in_sync_group)),
    axis=0,
  )
  num_replicas = strategy.num_replicas_in_sync
  by_replica = tf.reshape(rows, [num_replicas, rows_per_replica, -1])
  ordered = tf.gather(by_replica, tf.argsort(replicas))
  return tf.ensure_shape(
    tf.reshape(ordered, [num_replicas * rows_per_replica, -1]),
    [num_replicas * rows_per_replica, packed[0].shape[1]],
  )
