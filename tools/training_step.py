"""A model's training step as a SavedModel: forward, backward, update.

The signature "train" takes one batch to its loss and updates the variables;
"serving_default" is the forward pass alone.
"""

import os

import keras
import tensorflow as tf

from tools.benchmark_models import Benchmark

_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-7


class FusedAdam(tf.Module):
  """Adam that updates a variable with one op, as TensorFlow 1's did.

  Kingma and Ba, "Adam", ICLR 2015. Keras' Adam makes 38 ops a variable.
  """

  def __init__(self, variables: list[keras.Variable], learning_rate: float):
    super().__init__(name="adam")
    self.learning_rate = learning_rate
    self.trained = [x.value for x in variables]
    self.momentums = [_slot(x, "momentum") for x in self.trained]
    self.velocities = [_slot(x, "velocity") for x in self.trained]
    self.beta_1_power = tf.Variable(_BETA_1, name="adam/beta_1_power")
    self.beta_2_power = tf.Variable(_BETA_2, name="adam/beta_2_power")

  def apply(self, gradients: list[tf.Tensor]) -> None:
    """Updates the variables, given their gradients in the same order."""
    with tf.name_scope(self.name):
      powers = self.beta_1_power.read_value(), self.beta_2_power.read_value()
      for variable, m, v, gradient in zip(
        self.trained,
        self.momentums,
        self.velocities,
        gradients,
        strict=True,
      ):
        tf.raw_ops.ResourceApplyAdam(
          var=variable.handle,
          m=m.handle,
          v=v.handle,
          beta1_power=powers[0],
          beta2_power=powers[1],
          lr=self.learning_rate,
          beta1=_BETA_1,
          beta2=_BETA_2,
          epsilon=_EPSILON,
          grad=tf.convert_to_tensor(gradient),  # an embedding's is sparse
        )
      self.beta_1_power.assign(powers[0] * _BETA_1)
      self.beta_2_power.assign(powers[1] * _BETA_2)


def _slot(variable: tf.Variable, kind: str) -> tf.Variable:
  name = f"adam/{variable.name.removesuffix(':0')}/{kind}"
  return tf.Variable(tf.zeros_like(variable), trainable=False, name=name)


class KerasOptimizer(tf.Module):
  """One of Keras' own optimizers, of which only the variables are tracked."""

  def __init__(
    self, optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]
  ):
    super().__init__(name=optimizer.name)
    optimizer.build(variables)
    self.slots = [x.value for x in optimizer.variables]
    self.apply = lambda gradients: optimizer.apply(gradients, variables)


def _keras_adam(
  variables: list[keras.Variable], learning_rate: float
) -> KerasOptimizer:
  adam = keras.optimizers.Adam(learning_rate, epsilon=_EPSILON)
  return KerasOptimizer(adam, variables)


def _keras_sgd(
  variables: list[keras.Variable], learning_rate: float
) -> KerasOptimizer:
  return KerasOptimizer(keras.optimizers.SGD(learning_rate), variables)


OPTIMIZERS = {
  "fused_adam": FusedAdam,
  "adam": _keras_adam,
  "sgd": _keras_sgd,
}


class TrainingStep(tf.Module):
  """One training step of a benchmark model, ready to be saved.

  Attributes:
    train: a tf.function of the batch that returns `{"loss": scalar}` and
      updates the variables.
    predict: a tf.function of the inputs that returns `{"logits": tensor}`.
  """

  def __init__(
    self,
    benchmark: Benchmark,
    optimizer: str = "fused_adam",
    learning_rate: float = 1e-3,
  ):
    """Builds the model's variables, and the optimizer's.

    Args:
      benchmark: the model and the shapes of its batch.
      optimizer: one of `OPTIMIZERS`; "adam" and "sgd" are Keras' own.
      learning_rate: of the optimizer.

    Raises:
      ValueError: there is no such optimizer.
    """
    super().__init__(name="training_step")
    if optimizer not in OPTIMIZERS:
      raise ValueError(
        f"no optimizer {optimizer!r}; optimizers are {', '.join(OPTIMIZERS)}"
      )
    model = benchmark.model

    @tf.function(input_signature=benchmark.inputs)
    def predict(*inputs):
      return {"logits": model(*inputs, training=False)}

    predict.get_concrete_function()  # Keras makes the variables when called
    # Only variables are tracked: a tracked Keras model would be saved too,
    # with a function for each of its layers.
    self.model_variables = [x.value for x in model.variables]
    variables = model.trainable_variables
    self.optimizer = OPTIMIZERS[optimizer](variables, learning_rate)
    apply = self.optimizer.apply

    @tf.function(input_signature=(*benchmark.inputs, benchmark.labels))
    def train(*batch):
      *inputs, labels = batch
      with tf.GradientTape() as tape:
        logits = model(*inputs, training=True)
        with tf.name_scope("loss"):
          loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
          )
      apply(tape.gradient(loss, [x.value for x in variables]))
      return {"loss": loss}

    self.train = train
    self.predict = predict


def export(step: TrainingStep, directory: str | os.PathLike) -> None:
  """Writes the step as a SavedModel of two signatures.

  Raises:
    ValueError: the directory exists.
  """
  if os.path.exists(directory):
    raise ValueError(f"{directory} exists already; remove it first")
  signatures = {"train": step.train, "serving_default": step.predict}
  tf.saved_model.save(step, os.fspath(directory), signatures)
