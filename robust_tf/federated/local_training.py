"""What a device does with a task: some steps of an optimizer on its examples.

A device starts from the server's model x_tau and takes H steps on

    f(x; z) + rho / 2 ||x - x_tau||^2

(Xie, Koyejo and Gupta, Asynchronous Federated Optimization, OPT 2020, arXiv
1903.03934, Algorithm 1; rho = 0 leaves plain local training). All of it is a
function of its arguments: it reads and writes no variable, so it can run on
any machine, and again if that machine is lost.
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.distribute.hooks import stateless_update
from robust_tf.ordered_sum import ordered_sum

_SEED_STATE = "seed_generator_state"


def exchanged_variables(model: keras.Model) -> list[keras.Variable]:
  """Returns what devices and server exchange: all that training changes.

  The trainable variables, then the floating ones among the others: the moving
  statistics of BatchNormalization are mixed by the same rule as the weights,
  as in the code that the authors of FedAsync and SLSGD released.
  """
  return [
    *model.trainable_variables,
    *(v for v in model.non_trainable_variables if _is_floating(v)),
  ]


class DeviceData:
  """The training examples, as tensors."""

  def __init__(self, inputs: np.ndarray, labels: np.ndarray, num_classes: int):
    """Takes the examples of all devices.

    Args:
      inputs: `[num_examples, ...]`.
      labels: integers `[num_examples]` in `[0, num_classes)`.
      num_classes: how many classes there are.
    """
    self.inputs = np.asarray(inputs)
    self.labels = np.asarray(labels)
    self.num_classes = num_classes

  def batches(
    self,
    inputs: tf.Tensor,
    labels: tf.Tensor,
    examples: tf.Tensor,
    flipped: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a task's inputs `[H, B, ...]` and labels `[H, B]`.

    Args:
      inputs: of all examples, wherever they are held.
      labels: of all examples.
      examples: of the task, int32 `[H, B]`.
      flipped: bool scalar, whether labels are flipped, y -> classes - 1 - y.
    """
    chosen = tf.gather(labels, examples)
    other = tf.constant(self.num_classes - 1, chosen.dtype) - chosen
    return tf.gather(inputs, examples), tf.where(flipped, other, chosen)


class LocalTraining:
  """The local steps of one task, as a function of tensors.

  Attributes:
    specs: of the exchanged variables.
    gives_update: whether x_tau - x_new is returned, not x_new.
  """

  def __init__(
    self,
    model: keras.Model,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    optimizer: keras.optimizers.Optimizer,
    *,
    proximal_weight: float = 0.0,
    gives_update: bool = False,
  ):
    """Takes what is trained, and how.

    Args:
      model: its variables give names, shapes and dtypes; their values are
        neither read nor changed.
      loss: a scalar of labels and outputs, such as a `keras.losses.Loss`.
      optimizer: of Keras. Each task begins with its initial state.
      proximal_weight: rho, at least 0.
      gives_update: whether x_tau - x_new is returned, not x_new; see
        `Server.wants_updates`.

    Raises:
      ValueError: `proximal_weight` is below 0; or the optimizer is one that
        needs other workers, scales losses, or averages weights of many steps.
    """
    if not proximal_weight >= 0:
      raise ValueError(f"proximal_weight={proximal_weight} must be at least 0")
    _check_optimizer(optimizer)
    self._model = model
    self._loss = loss
    self._optimizer = optimizer
    self._rho = proximal_weight
    self.gives_update = gives_update
    if not optimizer.built:
      optimizer.build(model.trainable_variables)
    self._state = [v.numpy() for v in optimizer.variables]
    # By place: the values of all that is not exchanged, and what are seeds.
    self._kept = {
      i: (v.numpy(), v.path.endswith(_SEED_STATE))
      for i, v in enumerate(model.non_trainable_variables)
      if not _is_floating(v)
    }
    self.specs = tuple(
      tf.TensorSpec(v.shape, v.dtype) for v in exchanged_variables(model)
    )

  def __call__(
    self,
    start: Sequence[tf.Tensor],
    inputs: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    center: Sequence[tf.Tensor] | None = None,
  ) -> list[tf.Tensor]:
    """Returns what the device pushes, a tensor for each exchanged variable.

    Args:
      start: x_{tau,0}, a tensor for each exchanged variable.
      inputs: of each step, `[H, B, ...]`.
      labels: of each step, `[H, B]`.
      seed: of what is random in the model, an integer scalar.
      center: x_tau, if that is not where the device starts.
    """
    start = _tensors(start)
    center = start if center is None else _tensors(center)
    count = len(self._model.trainable_variables)
    steps = tf.shape(inputs)[0]

    def step(h, values, others, state):
      gradients, others = self._gradients(
        values, others, inputs[h], labels[h], center
      )
      values, state = stateless_update.stateless_apply(
        self._optimizer, state, gradients, values
      )
      return h + 1, _tensors(values), others, _tensors(state)

    _, values, others, _ = tf.while_loop(
      lambda h, *_: h < steps,
      step,
      (
        tf.constant(0),
        start[:count],
        self._others(start[count:], seed),
        _tensors(self._state),
      ),
      parallel_iterations=1,
    )
    result = values + [x for x in others if x.dtype.is_floating]
    if self.gives_update:
      result = [a - b for a, b in zip(center, result, strict=True)]
    return result

  def _gradients(self, values, others, inputs, labels, center):
    """Returns the gradients of the objective, and the other variables after."""
    with tf.GradientTape() as tape:
      tape.watch(values)
      outputs, others, losses = self._model.stateless_call(
        values, others, inputs, training=True, return_losses=True
      )
      loss = ordered_sum([self._loss(labels, outputs), *losses])
    gradients = tape.gradient(
      loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    gradients = _tensors(gradients)
    if self._rho:
      gradients = [
        g + tf.cast(self._rho, g.dtype) * (x - c)
        for g, x, c in zip(gradients, values, center, strict=False)
      ]
    return gradients, _tensors(others)

  def _others(self, floating: Sequence[tf.Tensor], seed: tf.Tensor):
    """Returns values for all variables that are not trainable."""
    values = list(floating)
    for i, (kept, is_seed) in self._kept.items():
      value = tf.constant(kept)
      if is_seed:
        # A generator's state is its seed and a count; each has its own seed.
        first = tf.cast(seed, value.dtype) + tf.cast(i, value.dtype)
        value = tf.stack([first, tf.zeros([], value.dtype)])
      values.insert(i, value)
    return values


def _is_floating(variable: keras.Variable) -> bool:
  return tf.as_dtype(variable.dtype).is_floating


def _tensors(values) -> list[tf.Tensor]:
  return [tf.convert_to_tensor(x) for x in values]


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
  name = type(optimizer).__name__
  if type(optimizer).__module__.partition(".")[0] == "robust_tf":
    raise ValueError(
      f"{name} needs other workers; a device's local steps take an optimizer of"
      " Keras, such as keras.optimizers.SGD"
    )
  if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
    raise ValueError(
      f"{name} is not for local steps; give the optimizer that it wraps"
    )
  if optimizer.use_ema or optimizer.gradient_accumulation_steps:
    raise ValueError(
      f"{name} begins anew with each task of a few steps: make it without"
      " use_ema and gradient_accumulation_steps"
    )
