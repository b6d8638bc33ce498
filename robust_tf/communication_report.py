"""A callback that shows how much the workers sent."""

import keras

from robust_tf.distribute.hooks import loss_scale
from robust_tf.optimizers.local_models import LocalModelOptimizer


class CommunicationReport(keras.callbacks.Callback):
  """Adds what the workers sent to the logs of epochs.

  For a model trained with an optimizer of robust_tf that says what its workers
  send. `History`, `keras.callbacks.CSVLogger` and every callback after this one
  in the list, such as `keras.callbacks.TensorBoard`, then have

    bytes_sent: what each worker handed over since training began.
    compression_ratio: the bytes of a whole gradient at every step, over these.
  """

  def __init__(self):
    super().__init__()
    self._optimizer = None

  def on_train_begin(self, logs=None):
    """Finds the optimizer.

    Raises:
      ValueError: it does not say what is sent.
    """
    optimizer = loss_scale.without_loss_scale(self.model.optimizer)
    if not isinstance(optimizer, LocalModelOptimizer):
      raise ValueError(
        f"the model's optimizer is a {type(optimizer).__name__}, which does not"
        " say what its workers send: CommunicationReport is for CSER, LocalSGD"
        " and the like"
      )
    self._optimizer = optimizer

  def on_epoch_end(self, epoch, logs=None):
    """Adds what was sent so far."""
    if logs is not None:
      logs["bytes_sent"] = self._optimizer.bytes_sent
      logs["compression_ratio"] = self._optimizer.compression_ratio
