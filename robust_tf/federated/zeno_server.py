"""What servers with examples of their own judge updates by.

Each round, or each time that a gradient is computed anew, the server draws
fresh examples, as `validation_examples` does: by the seed and the
version alone, so that a run which goes on draws what it would have drawn. The
model is called in inference mode, at the server's weights and not at those of
its variables, and changes nothing.

Xie, Koyejo and Gupta, Zeno, ICML 2019 (arXiv 1805.10032); Zeno++, ICML 2020
(arXiv 1903.07020).
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.aggregators.zeno import zeno
from robust_tf.federated.validation_examples import validation_examples
from robust_tf.ordered_sum import ordered_sum

Weights = Sequence[np.ndarray]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class ServerExamples:
  """Examples that the server holds, to judge by."""

  def __init__(
    self, inputs: np.ndarray, labels: np.ndarray, batch_size: int, seed: int
  ):
    """Takes what there is to draw from.

    Args:
      inputs: `[num_examples, ...]`.
      labels: `[num_examples]`.
      batch_size: how many are drawn, each once at most.
      seed: of the draws.

    Raises:
      ValueError: `batch_size` is below 1 or more than there are examples.
    """
    if not 1 <= batch_size <= len(inputs):
      raise ValueError(
        f"batch_size={batch_size} must be at least 1, and at most the"
        f" {len(inputs)} examples of the server"
      )
    self._inputs = np.asarray(inputs)
    self._labels = np.asarray(labels)
    self._batch_size = batch_size
    self._seed = seed

  def batch(self, version: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the inputs and labels that are drawn at a version."""
    chosen = validation_examples(
      len(self._inputs), self._batch_size, self._seed, version
    )
    return tf.constant(self._inputs[chosen]), tf.constant(self._labels[chosen])


def zeno_on_server(
  model: keras.Model,
  loss: Loss,
  examples: ServerExamples,
  *,
  learning_rate: float,
  num_suspected: int,
  rho: float = 5e-4,
  penalty: str = "sum",
) -> Callable[[Weights, int], Callable]:
  """Returns the `aggregator_at` with which `SLSGD` runs Zeno.

  The loss is that at x - gamma g, where g is an update divided by gamma: the
  mean gradient, if devices take one local step, and otherwise the sum of those
  of their steps.

  Args:
    model: what is trained.
    loss: a scalar of labels and outputs, such as a `keras.losses.Loss`.
    examples: of which f_r is the loss.
    learning_rate: gamma, that of the devices' local steps.
    num_suspected: b, how many updates to leave out.
    rho: how much the squared length of g counts against an update.
    penalty: "sum" or "mean", see `aggregators.zeno`.

  Raises:
    ValueError: `learning_rate` is not above 0.
  """
  if not (learning_rate > 0 and np.isfinite(learning_rate)):
    raise ValueError(
      f"learning_rate={learning_rate} must be a finite number above 0"
    )
  loss_at = tf.function(
    _loss_at(model, loss), autograph=False, reduce_retracing=True
  )

  def aggregator_at(weights: Weights, version: int) -> Callable:
    inputs, labels = examples.batch(version)
    tensors = [tf.constant(x) for x in weights]

    def loss_after(step):
      values = [x - u for x, u in zip(tensors, step, strict=True)]
      return loss_at(values, inputs, labels)

    def aggregator(updates):
      # As it would be for g with the rate gamma, without copies of all g.
      return zeno(
        updates,
        loss_after,
        1.0,
        num_suspected,
        rho / learning_rate**2,
        penalty,
      )

    return aggregator

  return aggregator_at


def validation_gradient(
  model: keras.Model, loss: Loss, examples: ServerExamples
) -> Callable[[Weights, int], list[np.ndarray]]:
  """Returns the `validation_gradient` of `ZenoPlusPlus`.

  Args:
    model: what is trained.
    loss: a scalar of labels and outputs, such as a `keras.losses.Loss`.
    examples: of which v is the loss' gradient.
  """
  loss_at = _loss_at(model, loss)

  @tf.function(autograph=False, reduce_retracing=True)
  def gradient(weights, inputs, labels):
    trainable = weights[: len(model.trainable_variables)]
    with tf.GradientTape() as tape:
      tape.watch(trainable)
      value = loss_at([*trainable, *weights[len(trainable) :]], inputs, labels)
    return tape.gradient(
      value, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )

  def gradient_at(weights: Weights, version: int) -> list[np.ndarray]:
    tensors = [tf.constant(x) for x in weights]
    gradients = gradient(tensors, *examples.batch(version))
    return [tf.convert_to_tensor(x).numpy() for x in gradients]

  return gradient_at


def _loss_at(model: keras.Model, loss: Loss) -> Callable:
  """Returns the loss as a function of exchanged values, inputs and labels."""
  # By place: the values of all that is not exchanged.
  kept = {
    i: v.numpy()
    for i, v in enumerate(model.non_trainable_variables)
    if not tf.as_dtype(v.dtype).is_floating
  }
  count = len(model.trainable_variables)

  def loss_at(values, inputs, labels):
    others = list(values[count:])
    for i, value in kept.items():
      others.insert(i, tf.constant(value))
    outputs, _, losses = model.stateless_call(
      values[:count], others, inputs, training=False, return_losses=True
    )
    return ordered_sum([loss(labels, outputs), *losses])

  return loss_at
