"""Which replicas have examples in the batch of a training step.

A batch with fewer examples than replicas gives some of them none. An optimizer
sees gradients only, and an empty batch has a gradient too: zeros, that of a
regularizer, or a NaN of a normalisation.
"""

import functools

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks.loss_scale import without_loss_scale

# By strategy and replica of this process, while its step is being traced or
# run: whether it has examples, True where the shape of its batch says so.
_has_examples: dict[tuple[tf.distribute.Strategy, int], tf.Tensor | bool] = {}


def change() -> None:
  """Makes `fit` and `train_on_batch` note which replicas have examples.

  They do it for models whose optimizer, or whose strategy's cross-device ops,
  have `sees_examples` set. `keras.Model` is changed; for other models it does
  what it did.
  """
  # Keras 3.15: reads `train_step` once, and runs it on every replica.
  path = "keras.Model.make_train_function"
  stock_make = private.find(__name__, path, ("self", "force"))

  @functools.wraps(stock_make)
  def make_train_function(self, force=False):
    own_step = vars(self).get("train_step")
    if _asks(self):
      vars(self)["train_step"] = _noting_examples(self.train_step)
    try:
      return stock_make(self, force)
    finally:
      vars(self).pop("train_step", None)
      if own_step is not None:
        vars(self)["train_step"] = own_step

  keras.Model.make_train_function = make_train_function


def _asks(model: keras.Model) -> bool:
  if model.distribute_strategy.num_replicas_in_sync == 1:
    return False
  optimizer = without_loss_scale(model.optimizer)
  ops = strategies.cross_device_ops(model.distribute_strategy)
  return any(getattr(x, "sees_examples", False) for x in (optimizer, ops))


def _noting_examples(train_step):
  @functools.wraps(train_step)
  def step(data):
    key = (tf.distribute.get_strategy(), _replica())
    _has_examples[key] = _any_examples(data)
    try:
      return train_step(data)
    finally:
      del _has_examples[key]

  return tf.autograph.experimental.do_not_convert(step)


def _num_replicas() -> int:
  """Returns the number of replicas of this process."""
  return len(strategies.local_replica_devices(tf.distribute.get_strategy()))


def _replica() -> int:
  """Returns the index of the current replica among those of this process."""
  context = tf.distribute.get_replica_context()
  # A constant, in a graph too; of several processes, each counts on.
  index = int(tf.get_static_value(context.replica_id_in_sync_group))
  return index % _num_replicas()


def _any_examples(data) -> tf.Tensor | bool:
  """Returns whether a batch has examples; True where its shape says so."""
  for part in keras.tree.flatten(data):
    shape = getattr(part, "shape", None)
    if shape is None or shape.rank == 0:
      continue
    if shape.rank is not None and shape[0] is not None:
      return shape[0] > 0
    if isinstance(part, tf.SparseTensor):
      return part.dense_shape[0] > 0
    if isinstance(part, tf.RaggedTensor):
      return part.nrows() > 0
    return tf.shape(part)[0] > 0
  return True


def examples_are_seen() -> bool:
  """Returns whether the step at hand notes which replicas have examples."""
  return (tf.distribute.get_strategy(), 0) in _has_examples


def replica_has_examples() -> tf.Tensor | None:
  """Returns whether the current replica has examples.

  Returns:
    A bool scalar; None where it surely has some, or nothing is known.
  """
  if not tf.distribute.has_strategy():
    return None
  key = (tf.distribute.get_strategy(), _replica())
  has = _has_examples.get(key, True)
  return None if has is True else tf.convert_to_tensor(has)


def replicas_with_examples() -> list[tf.Tensor] | None:
  """Returns whether each replica of this process has examples.

  To be called in a merge function, when all replicas have begun their step.

  Returns:
    A bool scalar for each replica; None where all of them surely have some, or
    nothing is known.
  """
  if not examples_are_seen():
    return None
  strategy = tf.distribute.get_strategy()
  found = [_has_examples[strategy, i] for i in range(_num_replicas())]
  if all(has is True for has in found):
    return None
  return [tf.convert_to_tensor(has) for has in found]
