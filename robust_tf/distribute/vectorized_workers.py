"""Many workers on one device: their gradients in one vectorised step.

A model is trained as if each of m workers had a replica of it. A batch is cut
into m slices, as a strategy cuts one for its replicas, and every slice has its
own forward pass, loss and gradients; `tf.vectorized_map` computes them
together. What comes out are the numbers that m replicas give, without the cost
of m devices.

    workers = VectorizedWorkers(model, num_workers=20)
    workers.compile(
      RobustOptimizer(
        keras.optimizers.SGD(0.1),
        functools.partial(aggregators.trimmed_mean, trim=8),
        workers_per_replica=20,
      ),
      loss="sparse_categorical_crossentropy",
    )
    workers.fit(dataset)
    model.save("model.keras")
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import loss_scale
from robust_tf.distribute.hooks import model_parts
from robust_tf.distribute.packing import densified
from robust_tf.optimizers.local_models import LocalModelOptimizer
from robust_tf.optimizers.local_step import read
from robust_tf.optimizers.robust import RobustOptimizer


@keras.saving.register_keras_serializable("robust_tf")
class VectorizedWorkers(keras.Model):
  """Trains a model with the gradients of several workers on each replica.

  As with replicas, a worker normalises its batches by its own statistics, and
  all workers draw the same dropout masks. Moving statistics, which would
  differ between replicas, are the mean over the workers. Losses and metrics in
  the logs are those of the whole batch.

  Evaluation, prediction and weights are the model's own.

  Attributes:
    model: the model.
    num_workers: the workers on each replica.
    unroll: whether they are computed one after the other.
  """

  def __init__(
    self,
    model: keras.Model,
    num_workers: int,
    unroll: bool | None = None,
    name: str | None = None,
  ):
    """Wraps a model that is not compiled itself.

    Args:
      model: the model that every worker has. Its own `train_step` and
        `compute_loss` must be Keras' own.
      num_workers: m, by which each replica's batches must divide.
      unroll: compute one worker after the other. By default a model with
        recurrent layers is unrolled, because loops vectorise slowly or not at
        all, and no other.
      name: the name of this model.

    Raises:
      TypeError: `model` is no Keras model, or the number no integer.
      ValueError: the number is below 1, or the model cannot be vectorised.
    """
    super().__init__(name=name)
    _check_model(model)
    _check_num_workers(num_workers)
    self.model = model
    self.num_workers = num_workers
    self.unroll = _is_recurrent(model) if unroll is None else unroll
    if hasattr(model, "output_names"):
      self.output_names = model.output_names

  def call(self, inputs, training=None):
    """Returns the model's outputs."""
    return self.model(inputs, training=training)

  def compile(
    self,
    optimizer="rmsprop",
    loss=None,
    loss_weights=None,
    metrics=None,
    weighted_metrics=None,
    run_eagerly=False,
    steps_per_execution=1,
    jit_compile="auto",
    auto_scale_loss=True,
  ):
    """Configures the training as `keras.Model.compile` does.

    Raises:
      ValueError: the optimizer is no `RobustOptimizer` for as many workers;
        or `jit_compile=True` under a strategy.
    """
    _check_optimizer(keras.optimizers.get(optimizer), self.num_workers)
    if jit_compile is True and tf.distribute.has_strategy():
      raise ValueError(
        "jit_compile=True does not work under a strategy: leave it out"
      )
    super().compile(
      optimizer=optimizer,
      loss=loss,
      loss_weights=loss_weights,
      metrics=metrics,
      weighted_metrics=weighted_metrics,
      run_eagerly=run_eagerly,
      steps_per_execution=steps_per_execution,
      jit_compile=jit_compile,
      auto_scale_loss=auto_scale_loss,
    )

  def compile_from_config(self, config):
    """Compiles as when these workers were saved."""
    # Keras leaves it to classes with a `compile` of their own.
    self.compile(**keras.saving.deserialize_keras_object(config))
    if self.built:
      self.optimizer.build(self.trainable_variables)

  def train_step(self, data):
    """Computes every worker's gradients, and applies them."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    step = _WorkerStep(self, like=(x, y, sample_weight))
    parts = [_split(part, self.num_workers) for part in step.parts_of_batch]
    gradients, losses, predictions, states = self._map(
      step, parts + self._local_models()
    )
    self.optimizer.apply_gradients(
      zip(step.place(gradients), self.trainable_variables, strict=True)
    )
    for variable, values in zip(step.updated, states, strict=True):
      variable.assign(_common_state(values))
    predictions = self._merge(predictions)
    # Once more for what it records, as the loss of each output; the loss
    # itself, which nothing uses, is not computed again.
    self.compute_loss(x, y, predictions, sample_weight)
    model_parts.track_loss(self, tf.reduce_mean(losses), _batch_size(x))
    return self.compute_metrics(x, y, predictions, sample_weight)

  def _map(self, step: Callable, parts: Sequence[tf.Tensor]):
    """Returns what each worker's step gives, stacked over the workers."""
    if not self.unroll:
      return tf.vectorized_map(step, parts, warn=False)
    by_worker = zip(*[tf.unstack(part) for part in parts], strict=True)
    return tf.nest.map_structure(
      lambda *values: tf.stack(values), *[step(list(p)) for p in by_worker]
    )

  def _local_models(self) -> list[tf.Tensor]:
    """Returns the variables of the workers' own models, `[m, ...]` each.

    None, if all have the one model.
    """
    optimizer = loss_scale.without_loss_scale(self.optimizer)
    if not isinstance(optimizer, LocalModelOptimizer):
      return []
    optimizer.build(self.trainable_variables)
    models = optimizer.models_of_replica()
    return [tf.stack(read(own)) for own in zip(*models, strict=True)]

  def _merge(self, data):
    """Returns the workers' batches as one batch."""
    return keras.tree.map_structure(
      lambda part: tf.reshape(part, tf.concat([[-1], tf.shape(part)[2:]], 0)),
      data,
    )

  def get_config(self):
    """Returns what `from_config` makes these workers of."""
    return {
      "model": keras.saving.serialize_keras_object(self.model),
      "num_workers": self.num_workers,
      "unroll": self.unroll,
      "name": self.name,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Returns the workers that `get_config` described."""
    model = keras.saving.deserialize_keras_object(
      config["model"], custom_objects
    )
    return cls(**{**config, "model": model})


class _WorkerStep:
  """One worker's forward and backward pass, without a side effect.

  Attributes:
    parts_of_batch: the tensors of the whole batch.
    updated: the variables, as moving statistics, that the pass updates.
  """

  def __init__(self, workers: VectorizedWorkers, like):
    self._workers = workers
    self._like = like
    self._has_part = [part is not None for part in keras.tree.flatten(like)]
    self.parts_of_batch = _where(keras.tree.flatten(like), self._has_part)
    self._trainable = workers.trainable_variables
    self._fixed = workers.non_trainable_variables
    self._present = []
    self.updated = []

  def __call__(self, parts: Sequence[tf.Tensor]):
    """Returns a worker's gradients, loss, predictions and updated values.

    Args:
      parts: the tensors of its batch; then, if it has one, its own model.
    """
    workers = self._workers
    num_parts = len(self.parts_of_batch)
    x, y, sample_weight = keras.tree.pack_sequence_as(
      self._like, _spread(parts[:num_parts], self._has_part)
    )
    values = list(parts[num_parts:]) or [
      tf.convert_to_tensor(v.value) for v in self._trainable
    ]
    fixed = [tf.convert_to_tensor(v.value) for v in self._fixed]
    state = list(zip(self._trainable, values, strict=True))
    state += zip(self._fixed, fixed, strict=True)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch(values)
      with keras.StatelessScope(state, collect_losses=True) as scope:
        predictions = workers(x, training=True)
        loss = workers.compute_loss(x, y, predictions, sample_weight)
      scaled_loss = workers.optimizer.scale_loss(loss)
    gradients = tape.gradient(scaled_loss, values)
    for variable, value in zip(self._trainable, values, strict=True):
      if scope.get_current_value(variable) is not value:
        raise ValueError(
          f"the forward pass assigns the trainable variable {variable.path},"
          " which VectorizedWorkers cannot do for each worker: use a replica"
          " for each"
        )
    self._present = [g is not None for g in gradients]
    current = [scope.get_current_value(v) for v in self._fixed]
    changed = [new is not old for new, old in zip(current, fixed, strict=True)]
    self.updated = _where(self._fixed, changed)
    return (
      [
        densified(gradient, value)
        for gradient, value in zip(gradients, values, strict=True)
        if gradient is not None
      ],
      loss,
      predictions,
      _where(current, changed),
    )

  def place(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """Returns the gradients of all variables, None where there is none."""
    return _spread(gradients, self._present)


def _where(values, flags) -> list:
  """Returns the values whose flag is set."""
  return [value for value, flag in zip(values, flags, strict=True) if flag]


def _spread(values, flags) -> list:
  """Returns the values where flags are set, and None elsewhere."""
  given = iter(values)
  return [next(given) if flag else None for flag in flags]


def _common_state(values: tf.Tensor) -> tf.Tensor:
  """Returns one value of those of all workers, `[m, ...]`.

  The mean of statistics; whole numbers, as the states of random generators,
  are the same for all.
  """
  if values.dtype.is_floating:
    return tf.reduce_mean(values, axis=0)
  return values[0]


def _batch_size(x) -> tf.Tensor:
  parts = [part for part in keras.tree.flatten(x) if part is not None]
  return tf.shape(parts[0])[0]


def _split(part: tf.Tensor, num_workers: int) -> tf.Tensor:
  """Returns a batch as the workers' batches, `[m, batch / m, ...]`."""
  if not isinstance(part, tf.Tensor):
    raise TypeError(
      f"VectorizedWorkers cannot cut a {type(part).__name__} into the batches"
      " of workers: give dense tensors"
    )
  advice = (
    f"a batch must be cut into {num_workers} equal ones, one for each worker of"
    " a replica: choose a batch size that divides, and drop the remainder of"
    " the data, as with dataset.batch(..., drop_remainder=True)"
  )
  size = part.shape[0]
  if size is None:
    size = tf.shape(part)[0]
    fits = tf.logical_and(size > 0, size % num_workers == 0)
    check = tf.debugging.Assert(fits, [advice, "got", size])
    with tf.control_dependencies([check] if check is not None else []):
      part = tf.identity(part)
  elif size == 0 or size % num_workers:
    raise ValueError(f"{advice}; got a batch of {size}")
  return tf.reshape(
    part, tf.concat([[num_workers, size // num_workers], tf.shape(part)[1:]], 0)
  )


def _is_recurrent(model: keras.Model) -> bool:
  return any(
    isinstance(layer, keras.layers.RNN)
    for layer in model_parts.all_layers(model)
  )


def _check_model(model) -> None:
  if not isinstance(model, keras.Model):
    raise TypeError(f"model is a {type(model).__name__}, not a keras.Model")
  for method in ("train_step", "compute_loss"):
    if getattr(type(model), method) is not getattr(keras.Model, method):
      raise ValueError(
        f"{type(model).__name__} has a {method} of its own, which"
        " VectorizedWorkers would not call: give a model with Keras' own"
      )
  for layer in model_parts.all_layers(model):
    if getattr(layer, "synchronized", False):
      raise ValueError(
        f"layer {layer.name} has synchronized=True, which the workers on one"
        " replica cannot do: leave it out, or use a replica for each worker"
      )


def _check_num_workers(num_workers) -> None:
  if isinstance(num_workers, bool) or not isinstance(num_workers, int):
    raise TypeError(f"num_workers={num_workers!r} must be an integer")
  if num_workers < 1:
    raise ValueError(f"num_workers={num_workers} must be 1 or more")


def _check_optimizer(optimizer, num_workers: int) -> None:
  optimizer = loss_scale.without_loss_scale(optimizer)
  if not isinstance(optimizer, RobustOptimizer | LocalModelOptimizer):
    raise ValueError(
      f"optimizer is a {type(optimizer).__name__}, which cannot apply the"
      " gradients of several workers: wrap it in RobustOptimizer(...,"
      f" workers_per_replica={num_workers}), or take one of robust_tf"
    )
  if optimizer.workers_per_replica != num_workers:
    raise ValueError(
      f"the {type(optimizer).__name__} has workers_per_replica="
      f"{optimizer.workers_per_replica}, VectorizedWorkers has"
      f" {num_workers} workers: make them equal"
    )
