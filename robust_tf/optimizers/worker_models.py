"""The models of this process's workers, and the mean that others see.

Under a strategy the components of a mirrored variable, one on each replica,
are the workers' models while they train; shown is the mean in all components,
and the models wait in variables that each worker keeps. Workers that a replica
simulates have their models there all the time.
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf.communication import Workers
from robust_tf.distribute.hooks import strategies
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import read

# Of each worker of this process, a variable for each of the model's.
Variables = Sequence[Sequence[tf.Variable]]


class WorkerModels:
  """The models of the workers of this process, in their order."""

  def __init__(
    self,
    strategy: tf.distribute.Strategy,
    variables: Sequence[keras.Variable],
    *,
    kept: Variables | None,
    workers_per_replica: int | None,
    mean_shown: keras.Variable,
    fingerprint: keras.Variable,
  ):
    """Takes the variables.

    Args:
      strategy: whose replicas train.
      variables: of the model, trainable.
      kept: what each worker keeps of its model; None where the models never
        differ between steps.
      workers_per_replica: the workers that each replica simulates, if it does.
      mean_shown: int32, 1 where the model's variables are what counts, and not
        what each worker keeps.
      fingerprint: int64, of the model when it was last made the mean.
    """
    self._strategy = strategy
    self._variables = variables
    self._kept = kept
    self._workers_per_replica = workers_per_replica
    self._mean_shown = mean_shown
    self._fingerprint = fingerprint
    self._functions = {}

  @property
  def mean_is_shown(self) -> bool:
    """Whether the model is the mean; between steps."""
    return bool(self._mean_shown.numpy())

  @property
  def live(self) -> Variables:
    """The variables of each worker's model that training works on."""
    return (
      self.of_replicas() if self._workers_per_replica is None else self._kept
    )

  @property
  def current(self) -> Variables:
    """The variables that hold each worker's model; between steps."""
    waiting = self._kept is not None and self.mean_is_shown
    return self._kept if waiting else self.live

  def of_replicas(self, variables=None) -> Variables:
    """Returns the components of variables, by default the model's, by replica.

    Args:
      variables: mirrored.
    """
    by_variable = [
      strategies.components(self._strategy, variable)
      for variable in (self._variables if variables is None else variables)
    ]
    return [list(model) for model in zip(*by_variable, strict=True)]

  def of_this_replica(self) -> Variables:
    """Returns the models of the workers that the current replica simulates."""
    models, rows = self._kept, self._workers_per_replica
    if len(models) == rows:
      return models
    context = tf.distribute.get_replica_context()
    # In a graph a constant; of several processes, each counts on.
    index = int(tf.get_static_value(context.replica_id_in_sync_group))
    replica = index % (len(models) // rows)
    return models[replica * rows : (replica + 1) * rows]

  def show_mean(self, statistics: Sequence[keras.Variable]) -> None:
    """Sets the model to the mean of the workers' models, which are kept.

    Args:
      statistics: variables of which each replica is given the mean, for good.
    """
    self.run(self._show, *statistics)

  def _show(self, *statistics: keras.Variable) -> None:
    workers = Workers(self._workers_per_replica or 1)
    live = self.live
    values = workers.map(read, live)
    if live is not self._kept:
      workers.map(assign, self._kept, values)
    means = workers.mean(values)
    rows = self._workers_per_replica or 1
    replicas = Workers()
    replicas.map(assign, self.of_replicas(), means[::rows])
    if statistics:
      of_replicas = self.of_replicas(statistics)
      means = replicas.mean(replicas.map(read, of_replicas))
      replicas.map(assign, of_replicas, means)
    self._fingerprint.assign(_fingerprint(self.of_replicas()[0]))
    self._mean_shown.assign(1)

  def hide_mean(self) -> None:
    """Puts the workers' models back, for training to go on."""
    self.run(self._hide)

  def _hide(self) -> None:
    if self._workers_per_replica is None:
      workers = Workers()
      values = workers.map(read, self._kept)
      workers.map(assign, self.of_replicas(), values)
    self._mean_shown.assign(0)

  def belong_to_model(self) -> bool:
    """Returns whether the model is still what it was as the mean."""
    return bool(self.run(self._agree))

  def _agree(self) -> tf.Tensor:
    fingerprint = _fingerprint(self.of_replicas()[0])
    equal = tf.cast(tf.equal(fingerprint, self._fingerprint), tf.float32)
    # All processes have to come to the same.
    replicas = Workers()
    return tf.equal(replicas.mean([[equal]] * len(replicas.devices))[0][0], 1.0)

  def take_model(self) -> None:
    """Lets all workers go on from the model as it is; in a graph."""
    rows = self._workers_per_replica or 1
    replicas = Workers()
    values = replicas.map(read, self.of_replicas())
    values = [value for value in values for _ in range(rows)]
    workers = Workers(rows)
    workers.map(assign, self._kept, values)
    self._mean_shown.assign(0)

  def run(self, function: Callable, *variables: keras.Variable):
    """Runs a function as one graph, traced once for its variables.

    Args:
      function: of those variables, a method; outside of `strategy.run`.
      *variables: given to the function.
    """
    key = (function.__name__, *map(id, variables))
    if key not in self._functions:
      self._functions[key] = tf.function(
        lambda: function(*variables), autograph=False
      )
    with self._strategy.scope():
      return self._functions[key]()


def _fingerprint(variables: Sequence[tf.Variable]) -> tf.Tensor:
  """Returns an int64 that is another if a bit of the values is."""
  integers = {2: tf.int16, 4: tf.int32, 8: tf.int64}
  fingerprint = tf.zeros([], tf.int64)
  for value in read(variables):
    bits = tf.bitcast(tf.reshape(value, [-1]), integers[value.dtype.size])
    odd = 2 * tf.range(tf.size(bits, tf.int64), dtype=tf.int64) + 1
    fingerprint = 31 * fingerprint + tf.reduce_sum(
      tf.cast(bits, tf.int64) * odd
    )
  return fingerprint
