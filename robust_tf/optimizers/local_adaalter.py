"""AdaAlter, and Local AdaAlter: AdaGrad whose denominators lag behind.

AdaAlter divides by the sum of squares before it adds the new ones. So the
denominator can stay the same on all workers between two synchronisations,
while each adds up its own squares for the next.

Xie, Koyejo, Gupta and Lin, Local AdaAlter: Communication-Efficient Stochastic
Gradient Descent with Adaptive Learning Rates (arXiv 1911.09030), Algorithms 3
and 4.
"""

import keras
import tensorflow as tf

from robust_tf.optimizers import requirements
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import periodically
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.local_step import subtract


@keras.saving.register_keras_serializable("robust_tf")
class LocalAdaAlter(LocalModelOptimizer):
  """AdaAlter by each worker alone; models and squares are averaged at times.

  Two vectors are sent every H steps: R_C = H / 2. With H = 1 it is AdaAlter.
  """

  def __init__(
    self,
    learning_rate=0.5,
    *,
    sync_period: int = 4,
    initial_accumulator_value: float = 1.0,
    epsilon: float = 1.0,
    constant_epsilon: bool = False,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "local_adaalter",
  ):
    """Takes the paper's parameters.

    Args:
      learning_rate: eta; a number, a schedule, or a callable. The paper warms
        up over the first steps.
      sync_period: H, the steps from one synchronisation to the next.
      initial_accumulator_value: b_0^2, what the sums of squares begin with.
      epsilon: the paper's eps^2, which stands for each sum of squares that is
        not added yet. Choose it small against H times these.
      constant_epsilon: add epsilon once, as the authors' code does, and not
        once for each step since the last synchronisation.
      weight_decay: as Keras', decoupled: part of the worker's own step.
      clipnorm: limit for the norm of each variable's gradient of each worker.
      clipvalue: limit for each element of it.
      global_clipnorm: limit for the norm of each worker's whole gradient.
      workers_per_replica: the workers that each replica simulates, for
        `VectorizedWorkers`.
      name: the optimizer's name.

    Raises:
      TypeError: an argument of a wrong type.
      ValueError: an argument out of range, or an unsupported strategy.
    """
    requirements.check_period(sync_period)
    for argument, value in (
      ("initial_accumulator_value", initial_accumulator_value),
      ("epsilon", epsilon),
    ):
      if not value >= 0:
        raise ValueError(f"{argument}={value} must be at least 0")
    if initial_accumulator_value == 0 and epsilon == 0:
      raise ValueError(
        "initial_accumulator_value=0 and epsilon=0: the first step would"
        " divide by 0; make one of them greater"
      )
    super().__init__(
      learning_rate,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      workers_per_replica=workers_per_replica,
      name=name,
    )
    self.sync_period = sync_period
    self.initial_accumulator_value = initial_accumulator_value
    self.epsilon = epsilon
    self.constant_epsilon = constant_epsilon

  @property
  def models_differ(self) -> bool:
    """Whether there are steps without a synchronisation."""
    return self.sync_period > 1

  @property
  def initial_state(self):
    """A_i^2, each worker's sum of squares, and B^2, that of the last time."""
    constant = keras.initializers.Constant(self.initial_accumulator_value)
    return {"accumulator": constant, "denominator": constant}

  def update(self, workers, models, gradients, state):
    """One step of Algorithm 4, for all workers i."""
    step = tf.convert_to_tensor(self.iterations)
    since = step % self.sync_period + 1  # t'
    workers.map(
      lambda x, g, b2: self._move(x, g, b2, since),
      models,
      gradients,
      state["denominator"],
    )
    workers.map(_add_squares, state["accumulator"], gradients)
    periodically(
      step,
      self.sync_period,
      lambda: self._synchronize(workers, models, state),
    )

  def _move(self, variables, gradients, denominators, since) -> None:
    """y_i = x_i - eta G_i / sqrt(B^2 + t' eps^2)."""
    moves = []
    decays = self.decays()
    for x, g, b2, decay in zip(
      variables, gradients, denominators, decays, strict=True
    ):
      times = 1 if self.constant_epsilon else tf.cast(since, x.dtype)
      move = tf.cast(g, x.dtype) / tf.sqrt(b2 + times * self.epsilon)
      if decay:
        move += decay * tf.convert_to_tensor(x)
      moves.append(tf.cast(self.learning_rate, x.dtype) * move)
    subtract(variables, moves)

  def _synchronize(self, workers, models, state) -> None:
    """x_i = mean y_k; B^2 = A_i^2 = mean A_k^2."""
    num_variables = len(models[0])
    means = workers.mean(
      workers.map(
        lambda x, a2: read(x) + read(a2), models, state["accumulator"]
      )
    )
    workers.map(lambda x, m: assign(x, m[:num_variables]), models, means)
    for name in self.initial_state:
      workers.map(
        lambda a2, m: assign(a2, m[num_variables:]), state[name], means
      )

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return {
      **super().get_config(),
      "sync_period": self.sync_period,
      "initial_accumulator_value": self.initial_accumulator_value,
      "epsilon": self.epsilon,
      "constant_epsilon": self.constant_epsilon,
    }


def _add_squares(accumulators, gradients) -> None:
  for accumulator, gradient in zip(accumulators, gradients, strict=True):
    accumulator.assign_add(tf.square(tf.cast(gradient, accumulator.dtype)))


@keras.saving.register_keras_serializable("robust_tf")
class AdaAlter(LocalAdaAlter):
  """AdaGrad that divides by the squares of the steps before.

  The mean of the workers' squares is added, and not the square of their mean
  as in AdaGrad. Two vectors are sent at each step.
  """

  def __init__(
    self,
    learning_rate=0.5,
    *,
    initial_accumulator_value: float = 1.0,
    epsilon: float = 1.0,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "adaalter",
  ):
    """Takes the arguments of `LocalAdaAlter` but H; raises as it does."""
    super().__init__(
      learning_rate,
      sync_period=1,
      initial_accumulator_value=initial_accumulator_value,
      epsilon=epsilon,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      workers_per_replica=workers_per_replica,
      name=name,
    )

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    config = super().get_config()
    del config["sync_period"], config["constant_epsilon"]
    return config
