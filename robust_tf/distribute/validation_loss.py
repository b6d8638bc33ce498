"""The loss on held-out data at points that a step would lead to.

Zeno (Xie et al., ICML 2019) scores an update by how much it lowers the loss on
a few fresh samples that the server holds. The model is called with other
values for its variables and in inference mode, so nothing is assigned and no
statistics move.
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf


class ValidationLoss(tf.Module):
  """Draws one held-out batch a step, and gives the loss on it after a step.

  Every process draws its own batches: where there are several, the dataset
  must give all of them the same batches in the same order, so shuffle it with
  a seed. The position in the dataset is part of a `tf.train.Checkpoint` of the
  optimizer; `.keras` and weights files do not hold it.
  """

  def __init__(
    self,
    model: keras.Model,
    loss: str | keras.losses.Loss | Callable,
    dataset: tf.data.Dataset,
  ):
    """Takes what the loss is computed with.

    Args:
      model: the model in training, without the workers' wrapper.
      loss: a Keras loss, its name, or a function of labels and predictions
        that returns values of any shape. The mean of its values is the loss:
        a Keras loss' own reduction is not used.
      dataset: batches (x, y), repeated when it ends.

    Raises:
      TypeError: the dataset is none, or the loss is no function.
      ValueError: the dataset is empty, or its elements are no pairs.
    """
    super().__init__(name="validation_loss")
    if not isinstance(dataset, tf.data.Dataset):
      raise TypeError(
        f"dataset is a {type(dataset).__name__}: give a tf.data.Dataset of"
        " batches (x, y)"
      )
    if dataset.cardinality() == 0:
      raise ValueError("dataset is empty: at least one batch is needed")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
      raise ValueError(f"dataset has elements {spec}: give batches (x, y)")
    self._values = _values_function(loss)
    # Not an attribute that TensorFlow follows: the model has the optimizer,
    # which has this.
    self._model = lambda: model
    self._iterator = iter(dataset.repeat())

  def after_steps(
    self, variables: Sequence[keras.Variable]
  ) -> Callable[[Sequence[tf.Tensor]], tf.Tensor]:
    """Draws a batch; returns the loss on it as a function of a step.

    Args:
      variables: the variables that a step moves.

    Returns:
      A function of a step, one tensor a variable: the loss at the variables'
      values minus the step, a float32 scalar.
    """
    model = self._model()
    x, y = next(self._iterator)
    trainable = [
      tf.convert_to_tensor(v.value) for v in model.trainable_variables
    ]
    fixed = [
      tf.convert_to_tensor(v.value) for v in model.non_trainable_variables
    ]
    moved = _positions(model.trainable_variables, variables)

    def loss_after(step: Sequence[tf.Tensor]) -> tf.Tensor:
      values = list(trainable)
      for k, move in zip(moved, step, strict=True):
        values[k] -= tf.cast(move, values[k].dtype)
      predictions, _ = model.stateless_call(values, fixed, x, training=False)
      losses = self._values(y, _wide(predictions))
      return tf.reduce_mean(tf.cast(losses, tf.float32))

    return loss_after


class NoValidationLoss(tf.Module):
  """What an optimizer with Zeno has that was loaded from a file."""

  def after_steps(self, variables: Sequence[keras.Variable]):
    """Says what is missing.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      "the optimizer was loaded without the held-out data that Zeno needs: set"
      " optimizer.validation_loss = ValidationLoss(model, loss, dataset)"
    )


def _values_function(loss) -> Callable:
  """Returns a loss as a function that returns un-reduced values."""
  loss = keras.losses.get(loss)
  if isinstance(loss, keras.losses.Loss):
    return loss.call
  if not callable(loss):
    raise TypeError(
      f"loss={loss!r} must be a Keras loss, its name, or a function"
    )
  return loss


def _wide(predictions):
  """Returns predictions in float32 where they have fewer bits."""
  return keras.tree.map_structure(
    lambda p: tf.cast(p, tf.float32) if p.dtype.size < 4 else p, predictions
  )


def _positions(trainable, variables) -> list[int]:
  """Returns where in the model's variables the optimizer's variables are."""
  position = {id(variable): k for k, variable in enumerate(trainable)}
  for variable in variables:
    if id(variable) not in position:
      raise ValueError(
        f"variable {variable.path} is not one of the trainable variables of"
        " the model that ValidationLoss was made with: give it the model in"
        " training"
      )
  return [position[id(variable)] for variable in variables]
