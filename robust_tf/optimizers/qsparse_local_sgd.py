"""Local SGD whose workers send, every H steps, compressed differences.

Basu, Data, Karakus and Diggavi, Qsparse-local-SGD: Distributed SGD with
Quantization, Sparsification, and Local Computations, NeurIPS 2019; with
Nesterov momentum as in the baseline of Xie et al., CSER, NeurIPS 2020.
"""

import keras
import tensorflow as tf

from robust_tf.compressors import GRBS
from robust_tf.optimizers import compressor_config
from robust_tf.optimizers import requirements
from robust_tf.optimizers.exchange import exchange
from robust_tf.optimizers.local_models import LIKE_MODEL
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import differences
from robust_tf.optimizers.local_step import nesterov_moves
from robust_tf.optimizers.local_step import periodically
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.local_step import subtract
from robust_tf.optimizers.local_step import sums

_COMPRESSOR = GRBS(8)


@keras.saving.register_keras_serializable("robust_tf")
class QSparseLocalSGD(LocalModelOptimizer):
  """Local SGD with error feedback on what is sent every H steps.

  R_C is the compressor's ratio times H.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    sync_period: int = 4,
    compressor=_COMPRESSOR,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "qsparse_local_sgd",
  ):
    """Takes the paper's parameters.

    Args:
      learning_rate: eta; a number, a schedule, or a callable.
      sync_period: H, the steps from one synchronisation to the next.
      compressor: C, of `robust_tf.compressors`.
      momentum: beta, of Nesterov's kind, kept by each worker for itself.
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
    compressor = compressor_config.from_config(compressor)
    requirements.check_period(sync_period)
    requirements.check_momentum(momentum)
    compressor_config.check_compressor("compressor", compressor)
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
    self.compressor = compressor
    self.momentum = momentum

  @property
  def models_differ(self) -> bool:
    """Whether there are steps without a synchronisation."""
    return self.sync_period > 1

  @property
  def initial_state(self):
    """The error e_i, the common model x of the last time, the momentum m_i."""
    momentum = {"momentum": "zeros"} if self.momentum else {}
    return {**momentum, "error": "zeros", "common": LIKE_MODEL}

  def update(self, workers, models, gradients, state):
    """A local step, and at each H-th a synchronisation."""
    p = nesterov_moves(
      workers,
      models,
      gradients,
      state,
      learning_rate=self.learning_rate,
      momentum=self.momentum,
      weight_decay=self.decays(),
    )
    workers.map(subtract, models, p)
    step = tf.convert_to_tensor(self.iterations)
    periodically(
      step,
      self.sync_period,
      lambda: self._synchronize(workers, models, state, step),
    )

  def _synchronize(self, workers, models, state, step) -> None:
    """v_i = e_i + x_i - x; e_i = v_i - C(v_i); x_i = x += mean C(v_k)."""
    common = workers.map(read, state["common"])
    moved = workers.map(differences, workers.map(read, models), common)
    v = workers.map(sums, workers.map(read, state["error"]), moved)
    sent = exchange(workers, v, self.compressor, step)
    x = workers.map(sums, common, sent.mean())
    workers.map(assign, state["error"], sent.residual())
    workers.map(assign, state["common"], x)
    workers.map(assign, models, x)

  def restart(self, models, state):
    """Starts from models that are all the same: that is the common one."""
    for common, model in zip(state["common"], models, strict=True):
      assign(common, read(model))

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return {
      **super().get_config(),
      "sync_period": self.sync_period,
      "compressor": compressor_config.to_config(self.compressor),
      "momentum": self.momentum,
    }
