"""Small strategies and training steps whose numbers a test can work out."""

import contextlib
import functools

import keras
import numpy as np

from robust_tf.ordered_sum import ordered_sum
from tests.tensorflow_setup import tf


@functools.cache
def mirrored(num_replicas: int) -> tf.distribute.MirroredStrategy:
  """Returns a strategy of logical CPU devices.

  With ops that are no collectives: one that fails would poison the process.
  What they add up is the same at every run, as tests compare bits.
  """
  return tf.distribute.MirroredStrategy(
    [f"CPU:{i}" for i in range(num_replicas)],
    cross_device_ops=tf.distribute.ReductionToOneDevice(
      accumulation_fn=ordered_sum
    ),
  )


def scope(strategy: tf.distribute.Strategy | None):
  """Returns the strategy's scope, or an empty one."""
  return contextlib.nullcontext() if strategy is None else strategy.scope()


def random_gradients(num_steps: int, num_workers: int, shapes, seed: int = 0):
  """Returns gradients, `[num_steps, num_workers, *shape]` for each shape."""
  random = np.random.default_rng(seed)
  return [
    random.normal(size=(num_steps, num_workers, *shape)).astype(np.float32)
    for shape in shapes
  ]


class Problem:
  """Variables, and an optimizer that is fed given gradients of n workers.

  Attributes:
    variables: Keras variables.
    optimizer: the optimizer.
  """

  def __init__(
    self, make_optimizer, initial, strategy=None, rows=None, **kwargs
  ):
    """Makes the variables and the optimizer.

    Args:
      make_optimizer: called in the strategy's scope.
      initial: the variables' values.
      strategy: a strategy or None.
      rows: the workers on each replica, where gradients hold several.
      **kwargs: for every variable.
    """
    self._strategy = strategy
    self._rows = rows
    with scope(strategy):
      self.variables = [
        keras.Variable(value, name=f"v{i}", **kwargs)
        for i, value in enumerate(initial)
      ]
      self.optimizer = make_optimizer()
      self.optimizer.build(self.variables)
    self._step = tf.function(self._apply)

  def _apply(self, gradients):
    num_replicas = (
      1 if self._strategy is None else self._strategy.num_replicas_in_sync
    )
    rows = self._rows or 1

    def on_replica():
      context = tf.distribute.get_replica_context()
      first = context.replica_id_in_sync_group * rows
      own = [
        None if g is None else g[first : first + rows] / num_replicas
        for g in gradients
      ]
      if self._rows is None:
        own = [None if g is None else g[0] for g in own]
      self.optimizer.apply(own, self.variables)

    if self._strategy is None:
      on_replica()
    else:
      self._strategy.run(on_replica)

  def step(self, gradients) -> None:
    """Applies gradients of all workers' mean losses, `[n, *shape]` each."""
    self._step([None if g is None else tf.constant(g) for g in gradients])

  def steps(self, gradients) -> "Problem":
    """Applies gradients `[steps, n, *shape]`, and returns itself."""
    for step in range(len(gradients[0])):
      self.step([g[step] for g in gradients])
    return self

  def values(self) -> list[np.ndarray]:
    """Returns the variables' values, once it is sure they are all the same."""
    for variable in self.variables:
      replicas = getattr(variable.value, "values", [variable.value])
      for replica in replicas:
        np.testing.assert_array_equal(replica.numpy(), replicas[0].numpy())
    return [variable.numpy() for variable in self.variables]
