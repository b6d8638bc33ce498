"""`fit` and `evaluate` under MultiWorkerMirroredStrategy.

Two defects of Keras 3.15 stop them there: the logs of a step, scalars, are
reduced over an axis that they do not have; and the batch that a model is built
from is reduced as a tuple, which this strategy does not take.
"""

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks.strategies import strategy_kind
from robust_tf.distribute.hooks.strategies import StrategyKind


def _spans_processes(strategy: tf.distribute.Strategy) -> bool:
  if strategy_kind(strategy) is not StrategyKind.MULTI_WORKER:
    return False
  # TensorFlow 2.21: false for MultiWorkerMirroredStrategy without TF_CONFIG.
  extended = strategy.extended
  return private.attribute(__name__, extended, "_in_multi_worker_mode")()


def change() -> None:
  """Repairs both defects; under any other strategy Keras' own code runs.

  `RobustOptimizer` and the optimizers with local models install this under
  MultiWorkerMirroredStrategy; with another optimizer install it before `fit`.
  """
  # Keras 3.15, keras/src/backend/tensorflow/trainer.py.
  trainer = private.find(__name__, "keras.src.backend.tensorflow.trainer")
  stock_reduce = private.find(
    __name__,
    "keras.src.backend.tensorflow.trainer.reduce_per_replica",
    ("values", "strategy", "reduction"),
  )
  stock_build = private.find(
    __name__,
    "keras.Model._maybe_symbolic_build",
    ("self", "iterator", "data_batch"),
  )

  def reduce_per_replica(values, strategy, reduction):
    if reduction in ("auto", "mean") and _spans_processes(strategy):
      return keras.tree.map_structure(
        lambda value: strategy.reduce("MEAN", value, axis=None), values
      )
    return stock_reduce(values, strategy, reduction)

  def maybe_symbolic_build(self, iterator=None, data_batch=None):
    strategy = self.distribute_strategy
    if iterator is not None and _spans_processes(strategy):
      # Shapes are all that building needs: this process's first batch does.
      _, _, batches = next(iter(iterator))
      data_batch = keras.tree.map_structure(
        lambda value: strategy.experimental_local_results(value)[0],
        next(batches),
      )
      iterator = None
    stock_build(self, iterator=iterator, data_batch=data_batch)

  trainer.reduce_per_replica = reduce_per_replica
  keras.Model._maybe_symbolic_build = maybe_symbolic_build
