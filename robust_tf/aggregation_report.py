"""A callback that shows what robust aggregation did."""

import keras

from robust_tf.distribute.hooks import loss_scale
from robust_tf.optimizers.robust import RobustOptimizer


class AggregationReport(keras.callbacks.Callback):
  """Adds what aggregation did to the logs of batches and epochs.

  For a model trained with `RobustOptimizer(..., report=True)`. `History`, the
  progress bar and every callback after this one in the list, such as
  `keras.callbacks.TensorBoard`, then have

    rows_accepted: the workers whose gradients the rule used, for a
      coordinate-wise rule all that sent finite numbers. Where the rule weights
      them unequally, as the geometric median does, it is the effective number
      (sum of the weights)^2 / (sum of their squares).
    rows_non_finite: the workers whose gradients held a NaN or an infinity.
    distance_from_mean: the distance between the aggregate and the mean of the
      finite gradients.

  Like Keras' loss, each is the mean over the steps of the epoch so far.
  """

  def __init__(self):
    super().__init__()
    self._report = None

  def on_train_begin(self, logs=None):
    """Finds the report.

    Raises:
      ValueError: the model's optimizer makes none.
    """
    optimizer = loss_scale.without_loss_scale(self.model.optimizer)
    if not isinstance(optimizer, RobustOptimizer):
      raise ValueError(
        f"the model's optimizer is a {type(optimizer).__name__}:"
        " AggregationReport shows what a RobustOptimizer did"
      )
    if optimizer.report is None:
      raise ValueError(
        "the model's optimizer reports nothing: make it with"
        " RobustOptimizer(..., report=True)"
      )
    self._report = optimizer.report

  def on_epoch_begin(self, epoch, logs=None):
    """Starts the means anew."""
    self._report.reset()

  def on_train_batch_end(self, batch, logs=None):
    """Adds the means of the epoch so far."""
    if logs is not None:
      logs.update(self._report.means())

  def on_epoch_end(self, epoch, logs=None):
    """Adds the means of the epoch."""
    if logs is not None:
      logs.update(self._report.means())
