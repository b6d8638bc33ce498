"""How a step reaches all workers: one small interface.

Workers are replicas of a `tf.distribute.Strategy`, in one process or in
several, or rows of one tensor where many of them are computed on one device,
or both. An algorithm calls `once` to leave the replicas. There `all_rows`
shows it every worker's gradient, and `on_every_replica` takes it back; or,
where each worker has a model of its own, `Workers` does what each does alone
and what they do together. The order of workers is that of the replicas, and
within a replica that of its rows.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks.strategies import StrategyKind
from robust_tf.distribute.packing import pack
from robust_tf.ordered_sum import ordered_sum


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
  return strategies.local_replica_devices(tf.distribute.get_strategy())


def variables_on(device: str | None) -> contextlib.AbstractContextManager:
  """Returns a scope in which variables are made on one replica's device."""
  if device is None:
    return contextlib.nullcontext()
  return strategies.variables_on(device)


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
  if strategies.strategy_kind() is StrategyKind.MULTI_WORKER:
    return _gathered(packed, rows_per_replica)
  return packed[0] if len(packed) == 1 else tf.concat(packed, axis=0)


def all_flags(flags: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns a bool of every replica, `[n]`, the same in every process.

  To be called inside `once`.

  Args:
    flags: a bool scalar of each replica of this process.
  """
  if strategies.strategy_kind() is not StrategyKind.MULTI_WORKER:
    return tf.stack(flags)
  rows = [tf.cast(flag, tf.int32)[tf.newaxis] for flag in flags]
  return tf.cast(_gathered(rows, 1), tf.bool)


def _distributed(values: Sequence[tf.Tensor]):
  """Returns a tensor of each replica of this process as one value."""
  given = iter(values)
  return (
    tf.distribute.get_strategy().experimental_distribute_values_from_function(
      lambda _: next(given)
    )
  )


# What TensorFlow 2.21 gathers between processes.
_GATHERED_DTYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)


def _gathered(packed: Sequence[tf.Tensor], rows_per_replica: int) -> tf.Tensor:
  """Returns the rows of the replicas of all processes, in their order."""
  strategy = tf.distribute.get_strategy()
  like = packed[0]
  if like.dtype not in _GATHERED_DTYPES:
    words = _gathered([_to_words(rows) for rows in packed], rows_per_replica)
    return _from_words(words, like)
  rows = strategy.gather(_distributed(packed), axis=0)
  # Nothing promises an order of what is gathered.
  replicas = strategy.gather(
    strategy.experimental_distribute_values_from_function(
      lambda context: tf.fill([1], context.replica_id_in_sync_group)
    ),
    axis=0,
  )
  num_replicas = strategy.num_replicas_in_sync
  shape = like.shape[1:]
  by_replica = tf.reshape(rows, [num_replicas, rows_per_replica, *shape])
  ordered = tf.gather(by_replica, tf.argsort(replicas))
  return tf.reshape(ordered, [num_replicas * rows_per_replica, *shape])


def _to_words(rows: tf.Tensor) -> tf.Tensor:
  """Returns the bits of rows of a small dtype, in int32 `[m, words]`."""
  flat = tf.reshape(rows, [rows.shape[0], -1])
  in_word = 4 // rows.dtype.size
  flat = tf.pad(flat, [[0, 0], [0, -flat.shape[1] % in_word]])
  return tf.bitcast(tf.reshape(flat, [rows.shape[0], -1, in_word]), tf.int32)


def _from_words(words: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
  """Returns the rows, shaped and typed as others, whose bits these are."""
  num_rows = words.shape[0]
  size = like.shape[1:].num_elements()
  flat = tf.reshape(tf.bitcast(words, like.dtype), [num_rows, -1])
  return tf.reshape(flat[:, :size], [num_rows, *like.shape[1:]])


class Workers:
  """The workers of this process, and their way to all others; inside `once`.

  A value is a list over the workers of this process, in their order, of lists
  of tensors, each on its worker's device.

  Attributes:
    devices: of each worker of this process; None: any.
    num_workers: of all processes, n.
  """

  def __init__(self, rows_per_replica: int = 1, count: Callable | None = None):
    """Finds the workers of the current strategy.

    Args:
      rows_per_replica: the workers of each replica.
      count: is called with the bytes that a worker hands over, a tensor, each
        time that the workers communicate.
    """
    self._strategy = tf.distribute.get_strategy()
    self._rows = rows_per_replica
    self._count = count
    self.devices = tuple(
      device for device in replica_devices() for _ in range(rows_per_replica)
    )
    self.num_workers = self._strategy.num_replicas_in_sync * rows_per_replica

  @property
  def indices(self) -> range:
    """The indices, among all workers, of those of this process."""
    first = 0
    if strategies.strategy_kind() is StrategyKind.MULTI_WORKER:
      resolver = self._strategy.cluster_resolver
      first = len(self.devices) * (resolver.task_id or 0)
    return range(first, first + len(self.devices))

  def map(self, function: Callable, *values: Sequence) -> list:
    """Returns what a function makes of each worker's values, on its device."""
    results = []
    for device, *arguments in zip(self.devices, *values, strict=True):
      with tf.device(device):
        results.append(function(*arguments))
    return results

  def mean(self, values: Sequence[Sequence[tf.Tensor]]) -> list:
    """Returns the mean over all workers, for each worker of this process."""
    if self.num_workers == 1:
      return [list(values[0])]
    self._communicated(values[0])
    of_replicas = self._means_of_rows(values)
    if self._strategy.num_replicas_in_sync > 1:
      of_replicas = self._mean_of_replicas(of_replicas)
    return [mean for mean in of_replicas for _ in range(self._rows)]

  def gather(self, values: Sequence[Sequence[tf.Tensor]]) -> list:
    """Returns the values of all n workers, in their order."""
    if self.num_workers == 1:
      return [list(values[0])]
    self._communicated(values[0])
    if strategies.strategy_kind() is not StrategyKind.MULTI_WORKER:
      return [list(of_worker) for of_worker in values]
    by_tensor = []
    for tensors in zip(*values, strict=True):
      of_replicas = [
        tf.stack(tensors[i : i + self._rows])
        for i in range(0, len(tensors), self._rows)
      ]
      by_tensor.append(tf.unstack(_gathered(of_replicas, self._rows)))
    return [list(of_worker) for of_worker in zip(*by_tensor, strict=True)]

  def _communicated(self, values: Sequence[tf.Tensor]) -> None:
    if self._count is not None:
      self._count(
        ordered_sum(
          [
            tf.size(value, tf.int64) * value.dtype.base_dtype.size
            for value in values
          ]
        )
      )

  def _means_of_rows(self, values: Sequence) -> list:
    """Returns, for each replica, the mean over its workers."""
    if self._rows == 1:
      return [list(of_worker) for of_worker in values]
    means = []
    for i in range(0, len(values), self._rows):
      with tf.device(self.devices[i]):
        tensors = zip(*values[i : i + self._rows], strict=True)
        means.append([ordered_sum(x) / self._rows for x in tensors])
    return means

  def _mean_of_replicas(self, values: Sequence) -> list:
    """Returns the mean over all replicas, for each replica of this process."""
    by_tensor = [_distributed(x) for x in zip(*values, strict=True)]
    reduced = self._strategy.extended.batch_reduce_to(
      tf.distribute.ReduceOp.MEAN, [(value, value) for value in by_tensor]
    )
    return local_values(reduced)
