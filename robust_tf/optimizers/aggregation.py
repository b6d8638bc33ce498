"""From the gradients of every replica to the one that is applied."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from robust_tf import aggregators
from robust_tf import communication
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks.strategies import StrategyKind
from robust_tf.distribute.packing import unpack
from robust_tf.optimizers.absent_workers import rule_of_voters
from robust_tf.optimizers.requirements import checked_result
from robust_tf.optimizers.rule_config import rule_and_parameters
from robust_tf.optimizers.step_report import measure
from robust_tf.optimizers.step_report import StepReport

# Gradients of each replica of this process, one tensor a variable.
Gradients = Sequence[Sequence[tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Aggregation:
  """What is done with the gradients of all workers, outside the replicas.

  Keras divides each replica's loss by n, the number of replicas, so gradients
  come divided by n. They are multiplied by it before anything that depends on
  their size.

  Attributes:
    aggregator: the rule.
    byzantine: the attack, if there is one.
    clip: clips one replica's gradients; None clips nothing.
    workers_per_replica: None, or the length of the gradients' leading axis.
    report: where to add what is done, if anywhere.
  """

  aggregator: Callable
  byzantine: Byzantine | None
  clip: Callable | None
  workers_per_replica: int | None
  report: StepReport | None

  def __call__(
    self,
    gradients: Gradients,
    variables: Sequence,
    step: tf.Tensor,
    votes: Sequence[tf.Tensor] | None,
    loss: Callable | None,
    learning_rate: tf.Tensor | None,
  ) -> list[tf.Tensor]:
    """Returns what the rule makes of the gradients, one tensor a variable.

    Args:
      gradients: of each replica of this process, one tensor a variable.
      variables: the variables.
      step: the number of aggregations before this one.
      votes: whether each replica of this process has a vote; None where all
        have one.
      loss: the loss after a step, one tensor a variable, for Zeno.
      learning_rate: the learning rate, for Zeno.
    """
    like = [
      tf.TensorSpec(variable.shape, gradient.dtype)
      for variable, gradient in zip(variables, gradients[0], strict=True)
    ]

    def arguments(to_variables: Callable) -> Mapping[str, Any]:
      if self._rule is not aggregators.zeno:
        return {}
      return {
        "loss": lambda move: loss(to_variables(move)),
        "learning_rate": learning_rate,
      }

    def rows() -> tf.Tensor:
      values = communication.all_rows(
        self._own(gradients), self.workers_per_replica or 1
      )
      return values if self.byzantine is None else self.byzantine(values, step)

    def of_rows(values: tf.Tensor) -> list[tf.Tensor]:
      return unpack(
        self._of(values, arguments(lambda move: unpack(move, like))), like
      )

    def of_all() -> list[tf.Tensor]:
      if self._takes_variables():
        return self._of_variables(gradients, arguments(lambda move: move))
      return of_rows(rows())

    if votes is None:
      return of_all()
    return rule_of_voters(votes, of_all, rows, of_rows, like=gradients[0])

  @property
  def _rule(self) -> Callable:
    return rule_and_parameters(self.aggregator)[0]

  def _takes_variables(self) -> bool:
    """Whether the rule gets the variables as they are, and not rows [n, d].

    All rules of ours can, and are faster where nothing has been copied.
    """
    return (
      self._rule in aggregators.AGGREGATORS.values()
      and self.workers_per_replica is None
      and self.byzantine is None
      and strategies.strategy_kind() is not StrategyKind.MULTI_WORKER
    )

  def _of(self, updates, arguments: Mapping[str, Any], scale: int = 1):
    """Returns the rule of updates, in their form, and reports of it.

    Args:
      updates: in any form of `aggregators.updates`.
      arguments: what the rule needs of this step.
      scale: the number that the updates were divided by.
    """
    result = self.aggregator(updates, **arguments)
    if not isinstance(result, list):
      result = checked_result(self.aggregator, result, updates)
    if self.report is not None:
      _, parameters = rule_and_parameters(self.aggregator)
      weights = aggregators.WEIGHTS.get(self._rule)
      if weights is not None:
        weights = weights(updates, **parameters, **arguments)
      self.report.add(measure(updates, result, weights, scale))
    return result

  def _of_variables(
    self, gradients: Gradients, arguments: Mapping[str, Any]
  ) -> list[tf.Tensor]:
    """Returns the rule of gradients that have not been copied to rows.

    All rules but Zeno are scale-equivariant: one multiplication of the
    aggregate costs less than one of every row, unless clipping needs these.
    """
    if self._rule is aggregators.zeno or self.clip is not None:
      return self._of(self._own(gradients), arguments)
    scale = tf.distribute.get_strategy().num_replicas_in_sync
    return [value * scale for value in self._of(gradients, {}, scale)]

  def _own(self, gradients: Gradients) -> Gradients:
    """Returns each replica's gradients of its own mean loss, clipped."""
    scale = tf.distribute.get_strategy().num_replicas_in_sync
    own = []
    for device, values in zip(
      communication.replica_devices(), gradients, strict=True
    ):
      with tf.device(device):
        values = [value if scale == 1 else value * scale for value in values]
        if self.clip is not None:
          values = self.clip(values, self.workers_per_replica)
        own.append(values)
    return own
