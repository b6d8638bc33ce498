"""What a worker does by itself with its variables: one tensor each."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.communication import Workers

Tensors = Sequence[tf.Tensor]
Variables = Sequence[tf.Variable]


def read(variables: Variables) -> list[tf.Tensor]:
  """Returns the values of variables."""
  return [tf.convert_to_tensor(variable) for variable in variables]


def assign(variables: Variables, values: Tensors) -> None:
  """Sets variables."""
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)


def subtract(variables: Variables, values: Tensors) -> None:
  """Subtracts a tensor from each variable."""
  for variable, value in zip(variables, values, strict=True):
    variable.assign_sub(value)


def sums(values: Tensors, others: Tensors) -> list[tf.Tensor]:
  """Returns the sums of tensors in pairs."""
  return [x + y for x, y in zip(values, others, strict=True)]


def differences(values: Tensors, others: Tensors) -> list[tf.Tensor]:
  """Returns the differences of tensors in pairs."""
  return [x - y for x, y in zip(values, others, strict=True)]


def periodically(step: tf.Tensor, period: int, function: Callable) -> None:
  """Calls a function at each `period`-th step; steps count from 0."""
  if period == 1:
    function()
  else:
    tf.cond((step + 1) % period == 0, function, lambda: None)


def nesterov_moves(
  workers: Workers,
  models: Sequence[Variables],
  gradients: Sequence[Tensors],
  state: Mapping[str, Sequence[Variables]],
  *,
  learning_rate: tf.Tensor,
  momentum: float,
  weight_decay: Sequence[float],
) -> list[list[tf.Tensor]]:
  """Returns what SGD subtracts from each worker's model; updates momenta.

  m = beta m + g; p = eta (beta m + g + decay x), as in M-CSER of Xie et al.,
  NeurIPS 2020; the learning rate is not in m, so that m outlives a change.

  Args:
    workers: all of them.
    models: x.
    gradients: g.
    state: has m under "momentum" where beta is not 0.
    learning_rate: eta.
    momentum: beta.
    weight_decay: of each variable.
  """

  def moves(variables, gradients, momenta=None):
    p = []
    for k, (x, g) in enumerate(zip(variables, gradients, strict=True)):
      step = g = tf.cast(g, x.dtype)
      if momenta is not None:
        step = momentum * momenta[k].assign(momentum * momenta[k] + g) + g
      if weight_decay[k]:
        step += weight_decay[k] * tf.convert_to_tensor(x)
      p.append(tf.cast(learning_rate, x.dtype) * step)
    return p

  momenta = [state["momentum"]] if momentum else []
  return workers.map(moves, models, gradients, *momenta)
