"""The mean of the workers' models, for everyone who looks at the model.

Between synchronisations each worker trains a model of its own, and none of
these is the model that is trained: that is their mean.
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence

import keras

from robust_tf.distribute.hooks import loss_scale


class MeanModel(keras.callbacks.Callback):
  """Shows the mean model at the end of an epoch, to tests and to predictions.

  An optimizer with local models puts it before all other callbacks of a model.
  """

  def __init__(
    self, optimizer, callbacks: Sequence[keras.callbacks.Callback] = ()
  ):
    """Takes the optimizer, and the callbacks that look at the model.

    Raises:
      ValueError: one of them saves the model within an epoch.
    """
    super().__init__()
    for callback in callbacks:
      frequency = getattr(callback, "save_freq", "epoch")
      if frequency != "epoch":
        raise ValueError(
          f"{type(callback).__name__} has save_freq={frequency!r}: under"
          f" {optimizer.name} the model is the mean of the workers' models at"
          " the end of an epoch; leave save_freq='epoch', and give fit"
          " steps_per_epoch if epochs are long"
        )
    self._optimizer = optimizer
    self._in_training = False
    self._shown_here = False

  def on_train_begin(self, logs=None):
    """Leaves the mean model to the other callbacks, which may restore one."""
    self._in_training = True

  def on_epoch_begin(self, epoch, logs=None):
    """Puts the workers' models back, unless a callback set other weights."""
    self._optimizer.resume()

  def on_epoch_end(self, epoch, logs=None):
    """Shows the mean model."""
    self._show()

  def on_train_end(self, logs=None):
    """Leaves the mean model."""
    self._in_training = False

  def on_test_begin(self, logs=None):
    """Shows the mean model."""
    self._shown_here = self._show()

  def on_test_end(self, logs=None):
    """Puts the workers' models back, within an epoch of training."""
    self._hide()

  def on_predict_begin(self, logs=None):
    """Shows the mean model."""
    self._shown_here = self._show()

  def on_predict_end(self, logs=None):
    """Puts the workers' models back, within an epoch of training."""
    self._hide()

  def _show(self) -> bool:
    return self._optimizer.show_mean(_statistics(self.model))

  def _hide(self) -> None:
    # In `fit` the end of the epoch follows, for which it is shown again.
    if self._shown_here and not self._in_training:
      self._optimizer.hide_mean()


@contextlib.contextmanager
def mean_model(model: keras.Model) -> Iterator[keras.Model]:
  """Shows the mean of the workers' models, in a training loop of one's own.

  To be entered outside of `strategy.run`, by all processes. With an optimizer
  whose workers have one model it does nothing. A loop that goes on from what
  was saved inside calls `model.optimizer.resume()` first.

  Args:
    model: is compiled with the optimizer.

  Yields:
    The model, to be evaluated, saved or exported.
  """
  optimizer = loss_scale.without_loss_scale(model.optimizer)
  show = getattr(optimizer, "show_mean", None)
  shown = show is not None and show(_statistics(model))
  try:
    yield model
  finally:
    if shown:
      optimizer.hide_mean()


def _statistics(model: keras.Model) -> list[keras.Variable]:
  """Returns the variables that layers update without gradients."""
  return [
    variable
    for variable in model.non_trainable_weights
    if keras.backend.is_float_dtype(variable.dtype)
  ]
