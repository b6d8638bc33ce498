"""Cross-device ops that aggregate gradients robustly, and nothing else.

A strategy made with them changes what any Keras optimizer does with the
gradients of the replicas: where it would sum them, a rule aggregates them.

    strategy = tf.distribute.MirroredStrategy(
      cross_device_ops=RobustCrossDeviceOps(aggregators.median)
    )
    with strategy.scope():
      model = ...
      model.compile(optimizer="adam", loss="mse")

Metrics, losses, the statistics of synchronised batch normalisation, and what
a custom training loop reduces by itself are reduced as
`tf.distribute.ReductionToOneDevice` reduces them. `RobustOptimizer` gives the
same numbers, and has more: several processes, Zeno, gradient accumulation,
clipping for each worker before the rule. As with it, an optimizer's own
clipping acts on the aggregate, and an embedding's gradient has one row for each
row of the embedding; `robust_tf.optimizers.robust` says where that differs from
what Keras does by itself.

In `fit` and `train_on_batch` a replica that gets no examples of a batch has no
vote, as with `RobustOptimizer`. In a training loop of your own it cannot be
told from others: drop the remainder of the data, or choose a batch size that
the replicas divide. Under `LossScaleOptimizer` Keras leaves out a step in which
the gradients of replica 0, before they come here, are not finite.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from robust_tf import aggregators
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import batch_examples
from robust_tf.distribute.hooks import gradient_reduction
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks import xla
from robust_tf.distribute.hooks.strategies import StrategyKind
from robust_tf.distribute.packing import densified
from robust_tf.optimizers import absent_workers
from robust_tf.optimizers.aggregation import Aggregation
from robust_tf.optimizers.rule_config import rule_and_parameters
from robust_tf.ordered_sum import ordered_sum


class RobustCrossDeviceOps(tf.distribute.ReductionToOneDevice):
  """Reduces the gradients of Keras optimizers with an aggregation rule.

  For `tf.distribute.MirroredStrategy(cross_device_ops=...)`. Keras divides
  the loss of each of the n replicas by n and then sums, so what it gets for
  the sum of V is n times the rule of V, and with `aggregators.mean` the sum.

  Attributes:
    aggregator: the rule.
    byzantine: who attacks, and how.
  """

  def __init__(
    self,
    aggregator: Callable,
    *,
    byzantine: Byzantine | None = None,
  ):
    """Makes the ops of one strategy.

    Args:
      aggregator: a rule of `robust_tf.aggregators`, its parameters fixed by
        `functools.partial`; or any function of updates [n, d] that returns
        [d].
      byzantine: in experiments, which replicas lie, and how. The attack sees
        gradients of each replica's own mean loss, [n, d].

    Raises:
      TypeError: if the aggregator is not callable.
      ValueError: if it is Zeno, which needs more than gradients; or with a
        TensorFlow or Keras that this was not checked with.
    """
    super().__init__(accumulation_fn=ordered_sum)
    rule, _ = rule_and_parameters(aggregator)
    if rule is aggregators.zeno:
      raise ValueError(
        "aggregator zeno needs a loss and the learning rate, which cross-device"
        " ops do not have: use RobustOptimizer with a ValidationLoss"
      )
    hooks.install(gradient_reduction, batch_examples)
    self.sees_examples = True
    self.aggregator = aggregator
    self.byzantine = byzantine
    # As in RobustOptimizer, for the sum of gradients that were divided by n.
    self._aggregation = Aggregation(
      aggregator,
      byzantine,
      clip=None,
      workers_per_replica=None,
      report=None,
    )

  def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses what would not be aggregated, or not as it should be.

    It is called on each replica when an optimizer is to apply gradients.

    Raises:
      ValueError: always with what to do instead.
    """
    strategy = tf.distribute.get_strategy()
    _check_strategy(strategy)
    _check_optimizer(optimizer)
    if self.byzantine is not None:
      self.byzantine.check(strategy.num_replicas_in_sync)

  def batch_reduce_implementation(
    self, reduce_op, value_destination_pairs, options
  ):
    """Returns the aggregates of gradients; anything else is reduced as usual.

    TensorFlow calls it, with the values of all variables at once.
    """
    strategies.check_used(self)
    optimizer = gradient_reduction.reducing_gradients_of()
    if optimizer is None or self._is_plain_mean():
      return super().batch_reduce_implementation(
        reduce_op, value_destination_pairs, options
      )
    variables = [variable for _, variable in value_destination_pairs]
    gradients = _dense_updates(value_destination_pairs)
    with tf.device(variables[0].device):
      aggregate = self._aggregation(
        gradients,
        variables,
        step=tf.convert_to_tensor(optimizer.iterations),
        votes=absent_workers.votes(self.aggregator, gradients),
        loss=None,
        learning_rate=None,
      )
    if reduce_op == tf.distribute.ReduceOp.MEAN:
      num_replicas = len(value_destination_pairs[0][0].values)
      aggregate = [gradient / num_replicas for gradient in aggregate]
    return [
      self.broadcast_implementation(gradient, variable)
      for gradient, variable in zip(aggregate, variables, strict=True)
    ]

  def _is_plain_mean(self) -> bool:
    rule, _ = rule_and_parameters(self.aggregator)
    return rule is aggregators.mean and self.byzantine is None


def _check_strategy(strategy: tf.distribute.Strategy) -> None:
  kind = strategies.strategy_kind(strategy)
  if kind is not StrategyKind.MIRRORED:
    raise ValueError(
      f"RobustCrossDeviceOps under {type(strategy).__name__}: they are for"
      " MirroredStrategy; use RobustOptimizer"
    )
  if strategy.num_replicas_in_sync == 1:
    raise ValueError(
      "MirroredStrategy has 1 replica, and so nothing to aggregate: name 2 or"
      " more devices, or simulate workers with VectorizedWorkers and"
      " RobustOptimizer"
    )
  if tf.distribute.in_cross_replica_context():
    raise ValueError(
      "an optimizer is applied outside the replicas: do it in a function that"
      " strategy.run runs"
    )
  if xla.in_xla():
    raise ValueError(
      "jit_compile=True goes past cross-device ops: compile the model with"
      " jit_compile=False (the rules compile themselves)"
    )


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
  if isinstance(optimizer, keras.optimizers.MultiOptimizer):
    raise ValueError(
      f"{optimizer.name} gives each of its optimizers a part of the gradient,"
      " and a rule must see the whole: wrap it in a RobustOptimizer, under"
      " other cross-device ops"
    )
  if gradient_reduction.reduces_by_itself(optimizer):
    raise ValueError(
      f"{optimizer.name} does not leave the reduction of its gradients to"
      " Keras, as the optimizer inside a RobustOptimizer does not: under"
      " RobustCrossDeviceOps use a plain optimizer, or RobustOptimizer under"
      " other cross-device ops"
    )
  # Keras calls merge_call inside a cond for these, which TensorFlow refuses.
  if optimizer.gradient_accumulation_steps:
    raise ValueError(
      f"{optimizer.name} has gradient_accumulation_steps="
      f"{optimizer.gradient_accumulation_steps}, which Keras cannot do under"
      " MirroredStrategy: set it on a RobustOptimizer"
    )
  if optimizer.use_ema and optimizer.ema_overwrite_frequency:
    raise ValueError(
      f"{optimizer.name} has ema_overwrite_frequency="
      f"{optimizer.ema_overwrite_frequency}, which Keras cannot do under"
      " MirroredStrategy: leave it unset; the average becomes the weights at"
      " the end of fit, or where finalize_variable_values is called"
    )


def _dense_updates(value_destination_pairs) -> list[list[tf.Tensor]]:
  """Returns each replica's gradients as tensors of the variables' shapes."""
  by_variable = [
    [_dense(value, variable) for value in values.values]
    for values, variable in value_destination_pairs
  ]
  return [list(update) for update in zip(*by_variable, strict=True)]


def _dense(gradient, variable) -> tf.Tensor:
  with tf.device(gradient.device):
    return tf.ensure_shape(densified(gradient, variable), variable.shape)
