"""CSER, and the algorithms that are special cases of it.

Each worker applies what others sent of their steps, and at once all of its own
step, so its model and the common one drift apart; the difference, the error, is
reset in parts now and then, by averaging it.

Xie, Zheng, Koyejo, Gupta, Li and Lin, CSER: Communication-efficient SGD with
Error Reset, NeurIPS 2020 (arXiv 2007.13221), Algorithms 2 and 4.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf.compressors import GRBS
from robust_tf.compressors import Identity
from robust_tf.compressors import Zero
from robust_tf.optimizers import compressor_config
from robust_tf.optimizers import requirements
from robust_tf.optimizers.exchange import exchange
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import differences
from robust_tf.optimizers.local_step import nesterov_moves
from robust_tf.optimizers.local_step import periodically
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.local_step import subtract

# By default R_C = 16.
_RESET = GRBS(8, seed=1)
_GRADIENT = GRBS(32)


@keras.saving.register_keras_serializable("robust_tf")
class CSER(LocalModelOptimizer):
  """SGD that sends a part of each step and resets a part of the error at times.

  The compression ratio is R_C = 1 / (1 / R_2 + 1 / (R_1 H)), of the ratios of
  both compressors and the period.

  An error e_i is stored only if the reset compressor is not of the kind that
  an all-reduce carries: with that kind resetting coordinates of the errors is
  averaging those of the models.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    sync_period: int = 4,
    reset_compressor=_RESET,
    gradient_compressor=_GRADIENT,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    released_code: bool = False,
    workers_per_replica: int | None = None,
    name: str = "cser",
  ):
    """Takes the paper's parameters.

    Args:
      learning_rate: eta; a number, a schedule, or a callable.
      sync_period: H, the steps from one reset to the next.
      reset_compressor: C_1, of `robust_tf.compressors`; says what part of the
        error is reset.
      gradient_compressor: C_2; says what part of each step is sent.
      momentum: beta, of Nesterov's kind, kept by each worker for itself.
      weight_decay: as Keras', decoupled: part of the step that is compressed.
      clipnorm: limit for the norm of each variable's gradient of each worker.
      clipvalue: limit for each element of it.
      global_clipnorm: limit for the norm of each worker's whole gradient.
      released_code: do what the authors' code does, not what the paper says:
        average the models, not the steps, on what C_2 selects, and at a reset
        on what C_1 selects instead. Both must be of the kind that an
        all-reduce carries.
      workers_per_replica: the workers that each replica simulates, for
        `VectorizedWorkers`.
      name: the optimizer's name.

    Raises:
      TypeError: an argument of a wrong type.
      ValueError: an argument out of range, or an unsupported strategy.
    """
    reset_compressor = compressor_config.from_config(reset_compressor)
    gradient_compressor = compressor_config.from_config(gradient_compressor)
    requirements.check_period(sync_period)
    requirements.check_momentum(momentum)
    compressor_config.check_compressor("reset_compressor", reset_compressor)
    compressor_config.check_compressor(
      "gradient_compressor", gradient_compressor
    )
    if released_code:
      for argument, compressor in (
        ("reset_compressor", reset_compressor),
        ("gradient_compressor", gradient_compressor),
      ):
        if not compressor.all_reduce:
          raise ValueError(
            f"released_code=True averages models, and {argument}={compressor}"
            " keeps other coordinates on each worker: give one that an"
            " all-reduce carries, as robust_tf.compressors.GRBS"
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
    self.reset_compressor = reset_compressor
    self.gradient_compressor = gradient_compressor
    self.momentum = momentum
    self.released_code = released_code

  @property
  def models_differ(self) -> bool:
    """Whether steps, or in the released code models, are sent in part."""
    sends_all = isinstance(self.gradient_compressor, Identity)
    if self.released_code:
      sends_all &= isinstance(self.reset_compressor, Identity)
    return not sends_all

  @property
  def _keeps_error(self) -> bool:
    return not self.reset_compressor.all_reduce

  @property
  def initial_state(self):
    """The momentum m_i, and the error e_i where it has to be known."""
    kept = {"momentum": self.momentum, "error": self._keeps_error}
    return {name: "zeros" for name, is_kept in kept.items() if is_kept}

  def update(self, workers, models, gradients, state):
    """One step of Algorithm 4 (M-CSER), for all workers i."""
    step = tf.convert_to_tensor(self.iterations)
    p = nesterov_moves(
      workers,
      models,
      gradients,
      state,
      learning_rate=self.learning_rate,
      momentum=self.momentum,
      weight_decay=self.decays(),
    )
    if self.released_code:
      workers.map(subtract, models, p)
      self._average(workers, models, step)
      return
    sent = exchange(workers, p, self.gradient_compressor, step)
    workers.map(subtract, models, sent.synced())  # x_i -= p'_i
    if self._keeps_error:
      workers.map(subtract, state["error"], sent.residual())  # e_i -= r_i
    if self.models_differ:
      periodically(
        step,
        self.sync_period,
        lambda: self._reset(workers, models, state, step),
      )

  def _reset(self, workers, models, state, step) -> None:
    """Averages what C_1 selects of the errors."""
    if not self._keeps_error:
      self._average_selected(workers, models, self.reset_compressor, step)
      return
    errors = workers.map(read, state["error"])
    sent = exchange(workers, errors, self.reset_compressor, step)
    # x_i += e'_i - e_i, and e_i becomes its own residual.
    moved = workers.map(differences, errors, sent.synced())
    workers.map(subtract, models, moved)
    workers.map(assign, state["error"], sent.residual())

  def _average(self, workers, models, step) -> None:
    """Averages what either compressor selects of the models."""

    def with_compressor(compressor):
      return lambda: self._average_selected(workers, models, compressor, step)

    tf.cond(
      (step + 1) % self.sync_period == 0,
      with_compressor(self.reset_compressor),
      with_compressor(self.gradient_compressor),
    )

  def _average_selected(self, workers, models, compressor, step) -> None:
    values = workers.map(read, models)
    synced = exchange(workers, values, compressor, step).synced()
    workers.map(assign, models, synced)

  def restart(self, models, state):
    """Forgets the errors: all models are the common one."""
    for own in state.get("error", ()):
      for variable in own:
        variable.assign(tf.zeros_like(variable))

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return {
      **super().get_config(),
      "sync_period": self.sync_period,
      "reset_compressor": compressor_config.to_config(self.reset_compressor),
      "gradient_compressor": compressor_config.to_config(
        self.gradient_compressor
      ),
      "momentum": self.momentum,
      "released_code": self.released_code,
    }


@keras.saving.register_keras_serializable("robust_tf")
class CSEA(CSER):
  """CSER that sends a part of the error at every step, and nothing else.

  Error assimilation: R_C = R. Section 4 of the paper.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    compressor=_GRADIENT,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "csea",
  ):
    """Takes the arguments of `CSER`, with one compressor; raises as it does."""
    compressor = compressor_config.from_config(compressor)
    compressor_config.check_compressor("compressor", compressor)
    super().__init__(
      learning_rate,
      sync_period=1,
      reset_compressor=compressor,
      gradient_compressor=Zero(),
      momentum=momentum,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      workers_per_replica=workers_per_replica,
      name=name,
    )

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return _renamed(super().get_config(), ("sync_period",))


@keras.saving.register_keras_serializable("robust_tf")
class CSER_PL(CSER):  # noqa: N801  (the paper's name)
  """CSER that sends a part of the error every H steps, and nothing else.

  Partial local SGD: R_C = R H. Section 4 of the paper.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    sync_period: int = 4,
    compressor=_RESET,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "cser_pl",
  ):
    """Takes the arguments of `CSER`, with one compressor; raises as it does."""
    compressor = compressor_config.from_config(compressor)
    compressor_config.check_compressor("compressor", compressor)
    super().__init__(
      learning_rate,
      sync_period=sync_period,
      reset_compressor=compressor,
      gradient_compressor=Zero(),
      momentum=momentum,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      workers_per_replica=workers_per_replica,
      name=name,
    )

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return _renamed(super().get_config())


@keras.saving.register_keras_serializable("robust_tf")
class LocalSGD(CSER):
  """SGD by each worker alone, whose models are averaged every H steps.

  R_C = H.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    sync_period: int = 8,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "local_sgd",
  ):
    """Takes the arguments of `CSER`, but no compressors; raises as it does."""
    super().__init__(
      learning_rate,
      sync_period=sync_period,
      reset_compressor=Identity(),
      gradient_compressor=Zero(),
      momentum=momentum,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      workers_per_replica=workers_per_replica,
      name=name,
    )

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    config = _renamed(super().get_config())
    del config["compressor"]
    return config


def _renamed(config: dict, left_out: Sequence[str] = ()) -> dict:
  """Returns the arguments of an algorithm with one compressor."""
  config["compressor"] = config.pop("reset_compressor")
  for name in ("gradient_compressor", "released_code", *left_out):
    del config[name]
  return config
