"""Kinds of strategies, their replicas and the variables on these."""

import contextlib
import enum
from collections.abc import Iterator

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private


class StrategyKind(enum.Enum):
  """How replicas reach each other."""

  NONE = "no strategy"
  MIRRORED = "replicas of one process"
  MULTI_WORKER = "replicas of several processes"
  PARAMETER_SERVER = "a coordinator and workers that see one replica each"
  OTHER = "another strategy"


def strategy_kind(strategy: tf.distribute.Strategy | None = None):
  """Returns the `StrategyKind` of a strategy, by default the current one."""
  if strategy is None:
    if not tf.distribute.has_strategy():
      return StrategyKind.NONE
    strategy = tf.distribute.get_strategy()
  if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return StrategyKind.MULTI_WORKER
  if isinstance(strategy, tf.distribute.MirroredStrategy):
    return StrategyKind.MIRRORED
  if isinstance(
    strategy,
    (
      tf.distribute.ParameterServerStrategy,
      tf.distribute.experimental.ParameterServerStrategy,
    ),
  ):
    return StrategyKind.PARAMETER_SERVER
  return StrategyKind.OTHER


def local_replica_devices(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
  """Returns the device of each replica of this process, in replica order."""
  return tuple(strategy.extended.worker_devices)


@contextlib.contextmanager
def variables_on(device: str) -> Iterator[None]:
  """Makes variables on one device alone, inside the scope of a strategy.

  They are no mirrored variables: each replica has its own, and a checkpoint
  holds them all.
  """
  single_device = private.find(
    __name__, "tensorflow.python.distribute.numpy_dataset.SingleDevice"
  )

  def create(next_creator, **kwargs):
    # TensorFlow 2.21: what MirroredExtended._create_variable leaves alone.
    kwargs["colocate_with"] = single_device(device)
    return next_creator(**kwargs)

  with tf.variable_creator_scope(create):
    yield


def components(
  strategy: tf.distribute.Strategy, variable: keras.Variable
) -> tuple[tf.Variable, ...]:
  """Returns a variable's part on each replica of this process."""
  # Keras 3.15: `value` may be cast, in a scope of mixed precision.
  return strategy.experimental_local_results(
    private.attribute(__name__, variable, "_value")
  )


def cross_device_ops(
  strategy: tf.distribute.Strategy,
) -> tf.distribute.CrossDeviceOps | None:
  """Returns what a strategy reduces with, None where it has no such thing."""
  # TensorFlow 2.21: set by MirroredExtended and CollectiveAllReduceExtended.
  return getattr(strategy.extended, "_cross_device_ops", None)


def check_used(ops: tf.distribute.CrossDeviceOps) -> None:
  """Checks that ops which reduce something are known as those of the strategy.

  Raises:
    ValueError: they are not, so `cross_device_ops` cannot find them.
  """
  extended = tf.distribute.get_strategy().extended
  if cross_device_ops(tf.distribute.get_strategy()) is not ops:
    raise private.broken(
      __name__,
      f"{type(extended).__qualname__}._cross_device_ops",
      "is not what reduces",
    )
