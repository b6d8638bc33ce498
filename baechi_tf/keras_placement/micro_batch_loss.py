"""The loss of a batch as a sum over its slices.

A loss of Keras is a value for each entry, weighted, added up and divided by
what its reduction says: the entries, those that a mask leaves, the sum of the
weights, or nothing. A slice's own loss is divided by the slice's number. So it
counts for the slice's share of the batch's number, and the shares add up to 1.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import get_keras_mask
from keras.src.losses.loss import apply_mask

_SUM, _WEIGHTED_MEAN = "sum", "mean_with_sample_weight"
_REDUCTIONS = (_SUM, _WEIGHTED_MEAN, "mean", "sum_over_batch_size")
# Regularizers that are sums over all entries; Keras divides them by the rows.
_ADDITIVE = (
  keras.regularizers.L1,
  keras.regularizers.L2,
  keras.regularizers.L1L2,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
  """A part of the batch, and what the model makes of it.

  Attributes:
    scope: the name scope of its ops.
    data: its rows of x, y and the sample weights; at least one row.
    num_rows: how many of its rows count, a scalar; 0 if its row stands in for
      none, because the batch has fewer rows than there are slices.
    y_pred: the model's outputs.
    added: the losses of activity regularizers, scalars.
  """

  scope: str
  data: tuple[Any, Any, Any]
  num_rows: int | tf.Tensor
  y_pred: Any
  added: Sequence[tf.Tensor]


def slice_losses(
  model: keras.Model, slices: Sequence[Slice]
) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
  """Returns scalars that add up to the loss of the whole batch.

  Args:
    model: a compiled model, whose losses are built.
    slices: all slices of the batch.

  Returns:
    The part of the whole loss of each slice; those of weight regularizers are
    in the first. And for each output, the parts of its loss without its weight.

  Raises:
    ValueError: a loss is no sum or mean over the examples.
  """
  compiled = model._compile_loss
  own = [_divisors(compiled, part) for part in slices]
  whole = [
    1.0 if x.loss.reduction == _SUM else sum(sizes)
    for x, *sizes in zip(compiled._flat_losses, *own, strict=True)
  ]
  num_rows = sum(part.num_rows for part in slices)
  parts = [[] for _ in whole]
  losses = []
  for part, sizes in zip(slices, own, strict=True):
    with tf.name_scope(part.scope):
      shares = list(map(tf.math.divide_no_nan, sizes, whole))
      _, y, sample_weight = part.data
      loss = _with_losses(compiled, _recorded(shares, parts))(
        y, part.y_pred, sample_weight
      )
      for added in map(model._aggregate_additional_loss, part.added):
        share = tf.cast(part.num_rows, added.dtype)
        loss += added * share / tf.cast(num_rows, added.dtype)
      losses.append(loss)
  with tf.name_scope(slices[0].scope):
    for penalty in model._get_regularization_losses():  # of weights: once
      losses[0] += model._aggregate_additional_loss(penalty)
  return losses, parts


def added_losses(model: keras.Model) -> list[tf.Tensor]:
  """Returns the losses of activity regularizers in the model's last call.

  Raises:
    ValueError: a layer adds a loss of its own.
  """
  losses = []
  for layer in model._flatten_layers():
    own = layer._get_own_losses()
    known = isinstance(layer.activity_regularizer, _ADDITIVE)
    if own and not (known and type(layer).__module__.startswith("keras.")):
      raise ValueError(
        f"micro_batches: layer {layer.name!r} adds a loss of its own, and its"
        " value for a batch does not follow from its values for slices: give"
        " compile a loss function, or use micro_batches=1"
      )
    losses += own
  return losses


def _recorded(shares, parts):
  """Returns a function that makes each loss count for its share."""

  def loss_of(i, loss):
    def share_of_loss(y_true, y_pred, sample_weight):
      value = loss(y_true, y_pred, sample_weight)
      parts[i].append(value * tf.cast(shares[i], value.dtype))
      return parts[i][-1]

    return share_of_loss

  return loss_of


def _divisors(compiled, part: Slice) -> list[tf.Tensor]:
  """Returns what each output's loss divides the slice's sum by, or 1 or 0."""
  sizes = []

  def loss_of(_, loss):
    def size_of_loss(y_true, y_pred, sample_weight):
      _check_loss(loss, y_true, y_pred)
      sizes.append(_divisor(loss, y_pred, sample_weight, part.num_rows))
      return 0.0

    return size_of_loss

  _, y, sample_weight = part.data
  with tf.name_scope(part.scope):
    _with_losses(compiled, loss_of)(y, part.y_pred, sample_weight)
  return sizes


def _divisor(loss, y_pred, sample_weight, num_rows) -> tf.Tensor:
  counts = tf.cast(num_rows > 0, loss.dtype)
  mask = get_keras_mask(y_pred)
  if loss.reduction == _SUM:
    return counts
  if loss.reduction == _WEIGHTED_MEAN:
    weights = apply_mask(sample_weight, mask, loss.dtype, loss.reduction)
  else:
    weights = mask
  if weights is None:
    return tf.cast(num_rows, loss.dtype)
  return tf.reduce_sum(tf.cast(weights, loss.dtype)) * counts


def _with_losses(compiled, loss_of: Callable[[int, Any], Callable]):
  """Returns Keras' `CompileLoss` with other losses, and no trackers."""
  shadow = object.__new__(type(compiled))  # Keras forbids copies
  shadow.__dict__.update(compiled.__dict__)
  shadow._flat_losses = [
    x._replace(loss=loss_of(i, x.loss))
    for i, x in enumerate(compiled._flat_losses)
  ]
  shadow._metrics = [None] * len(shadow._flat_losses)
  return shadow


def _check_loss(loss, y_true, y_pred) -> None:
  """Checks that a loss is a sum or a mean over examples.

  Raises:
    ValueError: it is not, as far as one can see.
  """
  where = f"micro_batches: the loss {loss.name!r}"
  if type(loss).__call__ is not keras.losses.Loss.__call__:
    raise ValueError(
      f"{where} has a __call__ of its own, which may do anything with a batch:"
      " override call, which gives a value for each example, or use"
      " micro_batches=1"
    )
  if loss.reduction not in _REDUCTIONS:
    raise ValueError(
      f"{where} has reduction={loss.reduction!r}, which gives no single number:"
      f" use one of {', '.join(map(repr, _REDUCTIONS))}, or micro_batches=1"
    )
  types = tf.nest.map_structure(
    lambda x: tf.TensorSpec(x.shape, loss.dtype), (y_true, y_pred)
  )
  call = tf.function(loss.call, autograph=False)
  values = call.get_concrete_function(*types).structured_outputs
  if values.shape.rank == 0:
    raise ValueError(
      f"{where} gives one number for a batch, which does not follow from its"
      " values for slices: let it give one for each example, or use"
      " micro_batches=1"
    )
