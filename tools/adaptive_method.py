"""AdaGrad and what becomes of it when workers send less, as plain data."""

import dataclasses

import keras
import tensorflow as tf

import robust_tf
from robust_tf import aggregators
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import periodically
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.local_step import subtract


@dataclasses.dataclass(frozen=True)
class AdaptiveMethod:
  """One way to train with a learning rate for each coordinate.

  Attributes:
    title: for tables and pictures.
    optimizer: `Adagrad`, that of Keras; `AdaAlter`; `LocalAdaAlter`; or
      `NaiveLocalAdaGrad`.
    epsilon: the papers' eps^2 and b_0^2.
    sync_period: H, None if the method has none.
    constant_epsilon: Local AdaAlter as in the authors' code.
  """

  title: str
  optimizer: str
  epsilon: float
  sync_period: int | None = None
  constant_epsilon: bool = False

  def settings(self) -> str:
    """Returns the settings, as in a call."""
    items = []
    if self.sync_period is not None:
      items.append(f"sync_period={self.sync_period}")
    if self.constant_epsilon:
      items.append("constant_epsilon=True")
    return ", ".join(items)

  @property
  def compression_ratio(self) -> float:
    """R_C, the bytes of whole gradients over those that it sends."""
    num_vectors = {"AdaAlter": 2, "LocalAdaAlter": 2}.get(self.optimizer, 1)
    return (self.sync_period or 1) / num_vectors

  def make_optimizer(self, learning_rate, workers_per_replica: int):
    """Returns a new optimizer for `VectorizedWorkers`.

    Args:
      learning_rate: a number or a schedule.
      workers_per_replica: how many workers.
    """
    initial = {"initial_accumulator_value": self.epsilon}
    if self.optimizer == "Adagrad":
      return robust_tf.RobustOptimizer(
        keras.optimizers.Adagrad(
          learning_rate, epsilon=self.epsilon, **initial
        ),
        aggregators.mean,
        workers_per_replica=workers_per_replica,
      )
    if self.optimizer == "NaiveLocalAdaGrad":
      return NaiveLocalAdaGrad(
        learning_rate, self.sync_period, self.epsilon, workers_per_replica
      )
    if self.optimizer == "LocalAdaAlter":
      initial["sync_period"] = self.sync_period
      initial["constant_epsilon"] = self.constant_epsilon
    optimizer_type = getattr(robust_tf, self.optimizer)
    return optimizer_type(
      learning_rate,
      epsilon=self.epsilon,
      workers_per_replica=workers_per_replica,
      **initial,
    )


class NaiveLocalAdaGrad(LocalModelOptimizer):
  """AdaGrad by each worker alone; models are averaged, denominators are not.

  What Xie et al., Local AdaAlter (arXiv 1911.09030), is better than: where
  workers have different examples, each scales its steps in its own way.
  """

  def __init__(
    self,
    learning_rate,
    sync_period: int,
    epsilon: float,
    workers_per_replica: int,
  ):
    """Takes the parameters.

    Args:
      learning_rate: eta.
      sync_period: H, the steps from one mean of the models to the next.
      epsilon: eps^2, and what sums of squares begin with.
      workers_per_replica: the workers of one device.
    """
    super().__init__(
      learning_rate,
      weight_decay=None,
      clipnorm=None,
      clipvalue=None,
      global_clipnorm=None,
      workers_per_replica=workers_per_replica,
      name="naive_local_adagrad",
    )
    self.sync_period = sync_period
    self.epsilon = epsilon

  @property
  def models_differ(self) -> bool:
    """Whether there are steps without a mean."""
    return self.sync_period > 1

  @property
  def initial_state(self):
    """A_i^2, each worker's sum of squares."""
    return {"accumulator": keras.initializers.Constant(self.epsilon)}

  def update(self, workers, models, gradients, state):
    """A_i^2 += G_i^2; x_i -= eta G_i / sqrt(A_i^2 + eps^2)."""
    workers.map(self._move, models, gradients, state["accumulator"])
    periodically(
      tf.convert_to_tensor(self.iterations),
      self.sync_period,
      lambda: self._average(workers, models),
    )

  def _average(self, workers, models) -> None:
    workers.map(assign, models, workers.mean(workers.map(read, models)))

  def _move(self, variables, gradients, accumulators) -> None:
    rate = tf.cast(self.learning_rate, tf.float32)
    moves = [
      rate * g / tf.sqrt(a2.assign_add(tf.square(g)) + self.epsilon)
      for g, a2 in zip(gradients, accumulators, strict=True)
    ]
    subtract(variables, moves)
