"""A loss scale that asks the optimizer inside whether gradients will do.

Keras leaves a step out if gradients of the first replica of a process are not
finite. An optimizer that has `gradients_will_do(gradients)`, called on each
replica and with one answer on all, is asked in place of that.
"""

import keras

from robust_tf.distribute.hooks import private


def without_loss_scale(optimizer):
  """Returns what is inside a `LossScaleOptimizer`; any other as it is."""
  if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
    return optimizer.inner_optimizer
  return optimizer


def change() -> None:
  """Makes a loss scale ask the optimizer inside, if that wants to be asked.

  `keras.optimizers.LossScaleOptimizer` is changed; with other optimizers inside
  it does what it did.
  """
  # Keras 3.15: `_tf_apply` calls it on each replica, and merges no results.
  path = "keras.optimizers.LossScaleOptimizer.check_finite"
  stock_check = private.find(__name__, path, ("self", "grads"))

  def check_finite(self, grads):
    judge = getattr(self.inner_optimizer, "gradients_will_do", None)
    return stock_check(self, grads) if judge is None else judge(grads)

  keras.optimizers.LossScaleOptimizer.check_finite = check_finite
