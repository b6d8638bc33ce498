"""A training step that runs on slices of its batch, one after another.

The step of Keras' `Model.train_step` becomes m forward and backward passes,
whose gradients are added up for one update (Huang et al., *GPipe*, NeurIPS
2019). The gradients are the whole batch's, except for the order of sums; the
metrics are updated once, on the predictions of all slices.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import get_keras_mask
from keras.src.backend import set_keras_mask

from baechi_tf.keras_placement.micro_batch_loss import added_losses
from baechi_tf.keras_placement.micro_batch_loss import Slice
from baechi_tf.keras_placement.micro_batch_loss import slice_losses
from baechi_tf.micro_batch_graph import scope_of

# Grappler's mark of sums that it has made one AddN of, which needs all
# gradients at once: memory for as many copies as there are micro-batches.
_NO_ADD_N = "_grappler_ArithmeticOptimizer_AddOpsRewriteStage"


def micro_batched(
  model: keras.Model, num_micro_batches: int
) -> Callable[[Any], Any]:
  """Returns a model's training step on slices of the batch.

  It takes what `Model.train_step` takes and returns what that returns. The ops
  of slice i are in the name scope `scope_of(i)`. Where a batch does not divide,
  slices differ by one row; one with fewer rows than slices works too.

  Args:
    model: a compiled model, whose losses are built, and for which
      `check_divisible` raises nothing.
    num_micro_batches: how many slices.

  Raises:
    ValueError: when traced, a loss is no sum or mean over the examples.
  """

  def train_step(data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    first = next(i for i in tf.nest.flatten(x) if i is not None)
    weights = model.trainable_weights
    with tf.GradientTape(persistent=True) as tape:
      slices = _forward(model, (x, y, sample_weight), num_micro_batches)
      losses, parts = slice_losses(model, slices)
      targets = [model.optimizer.scale_loss(loss) for loss in losses]
    gradients = [None] * len(weights)
    for part, target in zip(slices, targets, strict=True):
      with tf.name_scope(part.scope):
        gradients = [
          _sum(*pair)
          for pair in zip(
            gradients, tape.gradient(target, weights), strict=True
          )
        ]
    if weights:
      model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    num_rows = tf.shape(first)[0]
    model._loss_tracker.update_state(_total(losses), sample_weight=num_rows)
    for tracker, part in zip(model._compile_loss.metrics, parts, strict=False):
      # Keras weighs by the rows only where it knows them before the step.
      tracker.update_state(_total(part), sample_weight=first.shape[0])
    y_pred = _joined([part.y_pred for part in slices], num_rows)
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

  return train_step


def check_divisible(model: keras.Model, train_step: Callable) -> None:
  """Checks that a model's training step can be cut into micro-batches.

  Args:
    model: a compiled model.
    train_step: its own step, not the one of an earlier placement.

  Raises:
    ValueError: the model computes its step or its loss itself, or a layer
      keeps a state for each row of the batch.
  """
  where = f"micro_batches: model {model.name!r}"
  if not is_keras_step(train_step):
    raise ValueError(
      f"{where} has a train_step of its own, and how to cut it is not known:"
      " use Keras' train_step with compile(loss=…), or micro_batches=1"
    )
  if type(model).compute_loss is not keras.Model.compute_loss:
    raise ValueError(
      f"{where} has a compute_loss of its own, whose value for a batch does not"
      " follow from its values for slices: give compile a loss function, or use"
      " micro_batches=1"
    )
  if model._compile_loss is None:
    raise ValueError(
      f"{where} is compiled without a loss: give compile one, or use"
      " micro_batches=1"
    )
  for layer in model._flatten_layers():
    if getattr(layer, "stateful", False):
      raise ValueError(
        f"{where} has a layer with stateful=True, {layer.name!r}, whose state"
        " has a row for each of the whole batch: use stateful=False, or"
        " micro_batches=1"
      )


def is_keras_step(train_step: Callable) -> bool:
  """Returns whether a model's training step is the one of `keras.Model`."""
  return getattr(train_step, "__func__", None) is keras.Model.train_step


def notes_of(model: keras.Model) -> tuple[str, ...]:
  """Returns what differs from a step on the whole batch, as sentences."""
  layers = model._flatten_layers()
  if any(isinstance(x, keras.layers.BatchNormalization) for x in layers):
    return (
      "micro-batches: BatchNormalization normalises each by its own mean and"
      " variance, so losses differ from those of the whole batch",
    )
  return ()


def _forward(model, data, num_slices: int) -> list[Slice]:
  """Returns all slices, with the model's outputs for them."""
  slices = []
  for i, (rows, num_rows) in enumerate(_cut(data, num_slices)):
    scope = scope_of(i)
    with tf.name_scope(scope):
      arguments = {"training": True} if model._call_has_training_arg else {}
      y_pred = model(rows[0], **arguments)
      slices.append(Slice(scope, rows, num_rows, y_pred, added_losses(model)))
  return slices


def _cut(data: Any, num_slices: int) -> Iterator[tuple[Any, Any]]:
  """Yields the rows of each slice, and how many of them count."""
  first = next(x for x in tf.nest.flatten(data) if x is not None)
  known = first.shape[0] is not None
  num_rows = first.shape[0] if known else tf.shape(first)[0]
  if known:
    num_slices = min(num_slices, num_rows)
  least = min if known else tf.minimum
  size, longer = num_rows // num_slices, num_rows % num_slices
  for i in range(num_slices):
    with tf.name_scope(scope_of(i)):
      begin = i * size + least(i, longer)
      end = (i + 1) * size + least(i + 1, longer)
      start, stop = begin, end
      if not known:  # the mean of no rows would be no number
        start = tf.minimum(begin, num_rows - 1)
        stop = tf.maximum(end, start + 1)
      rows = tf.nest.map_structure(
        lambda x, a=start, b=stop: None if x is None else x[a:b], data
      )
    yield rows, end - begin


def _sum(total, gradient):
  """Returns the sum of two gradients, each dense, of some rows, or None."""
  if total is None or gradient is None:
    return gradient if total is None else total
  if isinstance(total, tf.IndexedSlices) and isinstance(
    gradient, tf.IndexedSlices
  ):
    return tf.IndexedSlices(
      tf.concat([total.values, gradient.values], 0),
      tf.concat([total.indices, gradient.indices], 0),
      total.dense_shape,
    )
  result = tf.add(total, gradient)
  # Checked with TensorFlow 2.21: an op with the mark stays as it is.
  result.op._set_attr(_NO_ADD_N, tf.compat.v1.AttrValue(b=True))
  return result


def _total(values: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns the sum of scalars, from the first to the last."""
  total = values[0]
  for value in values[1:]:
    total += value
  return total


def _joined(outputs: Sequence[Any], num_rows: tf.Tensor) -> Any:
  """Returns the outputs of all slices as those of the whole batch."""

  def join(*parts):
    whole = tf.concat(parts, 0)[:num_rows]
    masks = list(map(get_keras_mask, parts))
    if masks[0] is not None:
      set_keras_mask(whole, tf.concat(masks, 0)[:num_rows])
    return whole

  return tf.nest.map_structure(join, *outputs)
