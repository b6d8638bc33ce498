"""SGD with error feedback: what was not sent is sent later.

All workers have one model. Each adds what it could not send of its earlier
steps to the next before that is compressed.

Karimireddy, Rebjock, Stich and Jaggi, Error Feedback Fixes SignSGD, ICML 2019;
with Nesterov momentum as in the baseline of Xie et al., CSER, NeurIPS 2020.
"""

import keras
import tensorflow as tf

from robust_tf.compressors import GRBS
from robust_tf.optimizers import compressor_config
from robust_tf.optimizers import requirements
from robust_tf.optimizers.exchange import exchange
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import assign
from robust_tf.optimizers.local_step import nesterov_moves
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.local_step import subtract
from robust_tf.optimizers.local_step import sums

_COMPRESSOR = GRBS(32)


@keras.saving.register_keras_serializable("robust_tf")
class ErrorFeedbackSGD(LocalModelOptimizer):
  """SGD of which each worker sends C(p_i + e_i) and keeps the rest, e_i.

  R_C is the compressor's ratio. The error is in units of weights, with the
  learning rate in it, so that a change of the rate does not rescale it.
  """

  def __init__(
    self,
    learning_rate=0.01,
    *,
    compressor=_COMPRESSOR,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    workers_per_replica: int | None = None,
    name: str = "error_feedback_sgd",
  ):
    """Takes the paper's parameters.

    Args:
      learning_rate: eta; a number, a schedule, or a callable.
      compressor: C, of `robust_tf.compressors`.
      momentum: beta, of Nesterov's kind, kept by each worker for itself.
      weight_decay: as Keras', decoupled; applied as it is, not compressed.
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
    self.compressor = compressor
    self.momentum = momentum

  @property
  def models_differ(self) -> bool:
    """No: all workers apply the same mean."""
    return False

  @property
  def initial_state(self):
    """The momentum m_i and the error e_i."""
    names = ["momentum", "error"] if self.momentum else ["error"]
    return dict.fromkeys(names, "zeros")

  def update(self, workers, models, gradients, state):
    """v_i = p_i + e_i; e_i = v_i - C(v_i); x -= mean C(v_k)."""
    p = nesterov_moves(
      workers,
      models,
      gradients,
      state,
      learning_rate=self.learning_rate,
      momentum=self.momentum,
      weight_decay=[0.0] * len(models[0]),
    )
    decay = workers.map(self._decay, models)
    v = workers.map(sums, p, workers.map(read, state["error"]))
    step = tf.convert_to_tensor(self.iterations)
    sent = exchange(workers, v, self.compressor, step)
    workers.map(assign, state["error"], sent.residual())
    workers.map(subtract, models, workers.map(sums, sent.mean(), decay))

  def _decay(self, variables) -> list[tf.Tensor]:
    return [
      tf.cast(self.learning_rate, x.dtype) * decay * x
      for x, decay in zip(read(variables), self.decays(), strict=True)
    ]

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    return {
      **super().get_config(),
      "compressor": compressor_config.to_config(self.compressor),
      "momentum": self.momentum,
    }
