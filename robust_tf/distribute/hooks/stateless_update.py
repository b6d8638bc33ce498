"""A step of a Keras optimizer on tensors."""

import functools
import inspect
from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private


def stateless_apply(
  optimizer: keras.optimizers.Optimizer,
  state: Sequence[tf.Tensor],
  gradients: Sequence[tf.Tensor],
  values: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
  """Returns what one step of an optimizer makes of tensors; changes nothing.

  Keras has it for all its backends but TensorFlow, whose methods go through
  `tf.distribute` and take variables only: here those of the class beneath
  them are called.

  Args:
    optimizer: built for variables of these shapes.
    state: of the optimizer, in the order of its `variables`.
    gradients: of the loss, a tensor for each value.
    values: of the trainable variables that it was built for.

  Returns:
    The values and the state after the step.
  """
  above = private.find(
    __name__, "keras.src.backend.tensorflow.optimizer.TFOptimizer"
  )
  below = private.find(
    __name__, "keras.src.optimizers.base_optimizer.BaseOptimizer"
  )
  kept = {"__init__", "add_variable_from_reference", "stateless_apply"}
  replaced = [
    name
    for name, method in vars(above).items()
    if inspect.isfunction(method) and name in vars(below) and name not in kept
  ]
  # The optimizer's slots are found by keys that only variables have.
  key = private.attribute(__name__, optimizer, "_var_key")
  variables = private.attribute(__name__, optimizer, "_trainable_variables")
  keys = {id(variable): key(variable) for variable in variables}
  methods = {
    name: functools.partial(getattr(below, name), optimizer)
    for name in replaced
  }
  methods["_var_key"] = lambda variable: keys[id(variable)]
  # Past Keras' own `__setattr__`, which would track them.
  vars(optimizer).update(methods)
  try:
    return below.stateless_apply(optimizer, state, gradients, values)
  finally:
    for name in methods:
      del vars(optimizer)[name]
