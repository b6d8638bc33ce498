"""A Keras optimizer that aggregates the workers' gradients robustly.

`RobustOptimizer` wraps any Keras optimizer. Where Keras would sum the
gradients of the replicas, it gives every worker's gradient to a rule, and what
the rule makes of them to the optimizer inside, as if one machine had computed
it: that optimizer's schedule, momentum, clipping, weight decay, average and
constraints work on the aggregate.

    with strategy.scope():
      model = ...
      model.compile(
        optimizer=RobustOptimizer(
          keras.optimizers.Adam(1e-3),
          functools.partial(aggregators.trimmed_mean, trim=1),
        ),
        loss="sparse_categorical_crossentropy",
      )

Keras divides each replica's loss by the number of replicas. That is undone
first, so a row is the gradient of its worker's own mean loss, and with the
mean as the rule the result is what Keras computes without this wrapper.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from robust_tf import aggregators
from robust_tf import communication
from robust_tf.distribute import compatibility
from robust_tf.distribute.compatibility import StrategyKind
from robust_tf.distribute.packing import unpack
from robust_tf.optimizers import rule_config


@keras.saving.register_keras_serializable("robust_tf")
class RobustOptimizer(keras.optimizers.Optimizer):
  """Applies what a rule makes of all workers' gradients.

  To be made inside `strategy.scope()`, like any optimizer. What one step does,
  in this order: gradients are accumulated, then clipped, by this wrapper and
  for each worker alone; Byzantine workers' rows are replaced (in experiments);
  the rule aggregates; the inner optimizer applies, and clips, the aggregate.

  Attributes:
    inner_optimizer: the optimizer that gets the aggregate.
    aggregator: the rule.
  """

  def __init__(
    self,
    inner_optimizer: keras.optimizers.Optimizer,
    aggregator: Callable,
    *,
    workers_per_replica: int | None = None,
    name: str = "robust_optimizer",
  ):
    _check_inner(inner_optimizer)
    super().__init__(
      learning_rate=lambda: inner_optimizer.learning_rate, name=name
    )
    self.inner_optimizer = compatibility.without_gradient_reduction(
      inner_optimizer
    )
    if compatibility.strategy_kind() is StrategyKind.MULTI_WORKER:
      compatibility.allow_multi_worker_fit()
    self.aggregator = aggregator
    self.workers_per_replica = workers_per_replica

  def build(self, variables):
    """Creates the variables of both optimizers."""
    self.inner_optimizer.build(variables)
    super().build(variables)

  def apply(self, grads, trainable_variables=None):
    """Aggregates the workers' gradients, and applies the aggregate.

    Args:
      grads: this replica's gradients, one a variable; None where there is
        none. With `workers_per_replica=m` they have a leading axis of m.
      trainable_variables: the variables, if not those it was built with.
    """
    grads = list(grads)
    if trainable_variables is None:
      variables = self._trainable_variables
    else:
      variables = list(trainable_variables)
    if not self.built:
      self.build(variables)
    present = [k for k, gradient in enumerate(grads) if gradient is not None]
    if not present:
      # Says that there are no gradients, in Keras' own words.
      self.inner_optimizer.apply(grads, variables)
      return
    communication.once(
      lambda *merged: self._step(merged, present, variables),
      *[self._unscaled(grads[k], variables[k]) for k in present],
    )
    self._iterations.assign_add(1)

  def _unscaled(self, gradient, variable) -> tf.Tensor:
    """Returns a gradient of the mean loss of this replica, as a tensor."""
    if isinstance(gradient, tf.IndexedSlices):
      gradient = tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, variable.shape[0]
      )
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return gradient if num_replicas == 1 else gradient * num_replicas

  def _step(self, merged, present, variables) -> None:
    """Aggregates and applies; called once for all replicas of the process."""
    updates = communication.local_values(merged)
    like = [
      tf.TensorSpec(v.shape, g.dtype)
      for v, g in zip([variables[k] for k in present], updates[0])
    ]
    with tf.device(communication.replica_devices()[0]):
      aggregate = self._aggregate(updates, like)
    gradients = [None] * len(variables)
    for k, gradient in zip(present, aggregate, strict=True):
      gradients[k] = gradient
    communication.on_every_replica(
      lambda: self.inner_optimizer.apply(gradients, variables)
    )

  def _aggregate(self, updates, like) -> list[tf.Tensor]:
    rule, _ = rule_config.rule_and_parameters(self.aggregator)
    in_process = compatibility.strategy_kind() is not StrategyKind.MULTI_WORKER
    if (
      rule in aggregators.AGGREGATORS.values()
      and in_process
      and self.workers_per_replica is None
    ):
      return self.aggregator(updates)
    rows = communication.all_rows(updates, self.workers_per_replica or 1)
    return unpack(self.aggregator(rows), like)

  @property
  def variables(self):
    """This optimizer's variables, then those of the inner one."""
    return self._variables + self.inner_optimizer.variables

  @property
  def iterations(self):
    """The number of updates so far."""
    return self.inner_optimizer.iterations

  @property
  def learning_rate(self):
    """The inner optimizer's learning rate."""
    return self.inner_optimizer.learning_rate

  @learning_rate.setter
  def learning_rate(self, learning_rate):
    self.inner_optimizer.learning_rate = learning_rate

  def finalize_variable_values(self, var_list):
    """Sets the variables to the inner optimizer's average, if it has one."""
    self.inner_optimizer.finalize_variable_values(var_list)

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return {
      "inner_optimizer": keras.saving.serialize_keras_object(
        self.inner_optimizer
      ),
      "aggregator": rule_config.to_config(
        self.aggregator, aggregators.AGGREGATORS
      ),
      "workers_per_replica": self.workers_per_replica,
      "name": self.name,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Returns the optimizer that `get_config` described."""
    config = dict(config)
    config["inner_optimizer"] = keras.saving.deserialize_keras_object(
      config["inner_optimizer"], custom_objects
    )
    config["aggregator"] = rule_config.from_config(
      config["aggregator"], aggregators.AGGREGATORS, custom_objects
    )
    return cls(**config)


def _check_inner(inner_optimizer) -> None:
  if isinstance(inner_optimizer, RobustOptimizer):
    raise ValueError(
      "inner_optimizer is a RobustOptimizer: its result would be aggregated"
      " twice; wrap the optimizer once"
    )
