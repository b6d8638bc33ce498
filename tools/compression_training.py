"""Trains a model with one method and several learning rates, and watches it.

Tracing a step takes longer than a thousand steps. So the model, its optimizer
and the compiled steps are made once for a method; a variable holds the learning
rate, and between runs everything is set back.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.distribute.vectorized_workers import VectorizedWorkers
from robust_tf.training.data import Dataset

NUM_POINTS = 20  # of a curve
_MOST_EVALUATED = 20_000


@dataclasses.dataclass(frozen=True)
class Point:
  """The mean model at some step.

  Attributes:
    step: how many were done.
    bytes_sent: by each worker until then.
    train_loss: on the training examples, or every so many of them.
    test_loss: on all test examples.
    test_accuracy: the fraction of test examples with the right answer; an
      answer that is not finite is wrong.
  """

  step: int
  bytes_sent: float
  train_loss: float
  test_loss: float
  test_accuracy: float


class WarmUpAndDrops(keras.optimizers.schedules.LearningRateSchedule):
  """Rises linearly to a rate, and becomes a fifth of it at some steps."""

  def __init__(self, rate: tf.Variable, warm_up: int, drops: Sequence[int]):
    """Takes the shape.

    Args:
      rate: the highest.
      warm_up: the steps that it takes to rise.
      drops: the steps at which it becomes a fifth.
    """
    self._rate = rate
    self._warm_up = warm_up
    self._drops = list(drops)

  def __call__(self, step):
    """Returns the learning rate at a step; the first is 0."""
    step = tf.cast(step, tf.float32)
    rate = self._rate * tf.minimum(1.0, (step + 1) / self._warm_up)
    for drop in self._drops:
      rate *= tf.where(step >= drop, 0.2, 1.0)
    return rate


class Training:
  """A model and its workers, to be trained again and again."""

  def __init__(
    self,
    make_model: Callable[[int], keras.Model],
    make_optimizer: Callable,
    *,
    num_workers: int,
    num_steps: int,
    warm_up: int,
    drops: Sequence[float],
  ):
    """Compiles the workers.

    Args:
      make_model: returns a model of logits, with the weights of a seed.
      make_optimizer: of a learning rate schedule and the number of workers.
      num_workers: n.
      num_steps: T, a multiple of the number of points.
      warm_up: steps in which the learning rate rises to its value.
      drops: fractions of T at which it becomes a fifth.

    Raises:
      ValueError: T is no such multiple.
    """
    if num_steps % NUM_POINTS:
      raise ValueError(
        f"num_steps={num_steps} must be a multiple of {NUM_POINTS}"
      )
    self._make_model = make_model
    self._num_steps = num_steps
    self._rate = tf.Variable(0.0, trainable=False)
    schedule = WarmUpAndDrops(
      self._rate, warm_up, [round(num_steps * x) for x in drops]
    )
    self.model = make_model(0)
    self.optimizer = make_optimizer(schedule, num_workers)
    self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    self._workers = VectorizedWorkers(self.model, num_workers)
    # XLA would compile convolutions for the processor that are slow.
    self._workers.compile(
      self.optimizer,
      self._loss,
      steps_per_execution=num_steps // NUM_POINTS,
      jit_compile=False,
    )
    self.optimizer.build(self.model.trainable_variables)
    self._variables = _all_variables(self.optimizer)
    self._initial = [variable.numpy() for variable in self._variables]
    self._evaluate = tf.function(self._losses_and_hits, reduce_retracing=True)

  @property
  def vector_bytes(self) -> int:
    """The bytes of a whole gradient."""
    return 4 * sum(x.shape.num_elements() for x in self.model.trainable_weights)

  def run(
    self, data: Dataset, examples: np.ndarray, rate: float, seed: int
  ) -> list[Point]:
    """Returns the curve of a training from the start.

    Args:
      data: what is learnt.
      examples: those that workers see at each step, indices `[T, n, B]`.
      rate: the highest learning rate.
      seed: of the weights.
    """
    self.model.set_weights(self._make_model(seed).get_weights())
    for variable, value in zip(self._variables, self._initial, strict=True):
      variable.assign(value)
    self._rate.assign(rate)
    examples = examples.reshape(self._num_steps, -1)
    inputs, labels = tf.constant(data.x_train), tf.constant(data.y_train)
    watch = _Watch(lambda epoch: self._point(data, epoch))
    self._workers.fit(
      tf.data.Dataset.from_tensor_slices(examples).map(
        lambda chosen: (tf.gather(inputs, chosen), tf.gather(labels, chosen))
      ),
      epochs=NUM_POINTS,
      steps_per_epoch=self._num_steps // NUM_POINTS,
      callbacks=[watch],
      shuffle=False,
      verbose=0,
    )
    return watch.points

  def _point(self, data: Dataset, epoch: int) -> Point:
    step = (epoch + 1) * self._num_steps // NUM_POINTS
    stride = -(-len(data.x_train) // _MOST_EVALUATED)
    train_loss, _ = self._evaluate(
      data.x_train[::stride], data.y_train[::stride]
    )
    test_loss, accuracy = self._evaluate(data.x_test, data.y_test)
    return Point(
      step,
      # A mean of gradients that does not count sends all of them.
      getattr(self.optimizer, "bytes_sent", float(step * self.vector_bytes)),
      float(train_loss),
      float(test_loss),
      float(accuracy),
    )

  def _losses_and_hits(self, x, y):
    logits = self.model(x, training=False)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
    hits = tf.equal(tf.argmax(logits, axis=1, output_type=y.dtype), y)
    hits = tf.logical_and(finite, hits)
    return self._loss(y, logits), tf.reduce_mean(tf.cast(hits, tf.float32))


class _Watch(keras.callbacks.Callback):
  """Keeps a point for the end of each epoch."""

  def __init__(self, point_of: Callable[[int], Point]):
    super().__init__()
    self._point_of = point_of
    self.points = []

  def on_epoch_end(self, epoch, logs=None):
    self.points.append(self._point_of(epoch))


def _all_variables(optimizer) -> list:
  inner = getattr(optimizer, "inner_optimizer", None)
  return list(optimizer.variables) + (list(inner.variables) if inner else [])
