"""The base of optimizers whose workers have models that differ for a while.

Between two synchronisations the components of a mirrored variable, one on each
replica, are the local models of the workers; what else a worker remembers, as
its momentum, is in variables of its own on its replica's device. Whoever looks
at the model from outside sees the mean of all local models: `fit`, `evaluate`,
`predict` and the callbacks of a model that is compiled with such an optimizer
show it (`robust_tf.mean_model`), and put the local models back.
"""

import abc
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from robust_tf import communication
from robust_tf.communication import Workers
from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import batch_examples
from robust_tf.distribute.hooks import fit_callbacks
from robust_tf.distribute.hooks import loss_scale
from robust_tf.distribute.hooks import optimizer_decay
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.packing import densified
from robust_tf.optimizers import requirements
from robust_tf.optimizers.clipping import clipping
from robust_tf.optimizers.finite_workers import finite_workers
from robust_tf.optimizers.worker_models import Variables
from robust_tf.optimizers.worker_models import WorkerModels
from robust_tf.shown_model import MeanModel

# Of each worker of this process, something for each variable.
Values = Sequence[Sequence[tf.Tensor]]

# An initial value: that of the model's variable.
LIKE_MODEL = "like_model"


class LocalModelOptimizer(keras.optimizers.Optimizer, abc.ABC):
  """Updates each worker's model by its own gradients, as a subclass says.

  A batch with fewer examples than replicas leaves some replicas without any. In
  `fit` and `train_on_batch` the gradient of these is zero, whatever a
  regularizer or a normalisation makes of no examples, so that a short batch
  weighs less, as it does in Keras.

  Attributes:
    workers_per_replica: None, or the length of the gradients' leading axis.
  """

  def __init__(
    self,
    learning_rate,
    *,
    weight_decay: float | None,
    clipnorm: float | None,
    clipvalue: float | None,
    global_clipnorm: float | None,
    workers_per_replica: int | None,
    name: str,
  ):
    """Takes what all these optimizers have.

    Args:
      learning_rate: a number, a schedule, or a callable.
      weight_decay: as Keras', decoupled from gradients: in each step a weight
        shrinks by the learning rate times this.
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
    requirements.check_strategy(type(self).__name__)
    requirements.check_count("workers_per_replica", workers_per_replica, 1)
    super().__init__(
      learning_rate=learning_rate,
      weight_decay=weight_decay,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      name=name,
    )
    self.workers_per_replica = workers_per_replica
    self._clip = clipping(clipnorm, clipvalue, global_clipnorm)
    self._strategy = tf.distribute.get_strategy()
    # Of this process.
    self._num_local_workers = len(communication.replica_devices()) * (
      workers_per_replica or 1
    )
    self._state = {}
    self._present = None
    self._worker_models = None
    # Whether this process put the workers' models into the variables; it has
    # not if they were restored from a checkpoint of a moment between two steps.
    self._models_are_live = False
    hooks.install(fit_callbacks, loss_scale, batch_examples)
    # `VectorizedWorkers` gives every worker examples.
    self.sees_examples = workers_per_replica is None

  @property
  @abc.abstractmethod
  def models_differ(self) -> bool:
    """Whether the workers' models may differ between steps."""

  @property
  @abc.abstractmethod
  def initial_state(self) -> Mapping[str, str | keras.Initializer]:
    """What each worker keeps, beside its model, for each of its variables.

    By name, how Keras is to initialise it, or `LIKE_MODEL`.
    """

  @abc.abstractmethod
  def update(
    self,
    workers: Workers,
    models: Variables,
    gradients: Values,
    state: Mapping[str, Variables],
  ) -> None:
    """Does one step of all workers; outside the replicas.

    Args:
      workers: all of them; what they communicate is counted.
      models: the variables of each worker's model.
      gradients: of each worker's own mean loss, clipped.
      state: the variables of each name of `initial_state`.
    """

  def restart(self, models: Variables, state: Mapping[str, Variables]) -> None:
    """Makes the state fit models that were all set to one from outside."""
    del models, state

  @property
  def num_workers(self) -> int:
    """The number of workers, n."""
    return self._strategy.num_replicas_in_sync * (self.workers_per_replica or 1)

  @property
  def bytes_sent(self) -> float:
    """The bytes that each worker has handed over in training so far.

    What a worker contributes to an all-reduce or a gather is counted once;
    how often the network carries it is up to the collective.
    """
    return float(self._bytes_sent.numpy()) if self.built else 0.0

  @property
  def compression_ratio(self) -> float:
    """The bytes of a whole gradient at every step, over those sent."""
    if not self.bytes_sent:
      return float("inf")
    whole = int(self.iterations.numpy()) * sum(
      variable.shape.num_elements() * variable.dtype.size
      for variable in self._worker_models.of_replicas()[0]
    )
    return whole / self.bytes_sent

  def local_models(self) -> list[list[np.ndarray]]:
    """Returns the variables of each worker's model; between steps.

    Of the workers of this process, in their order.
    """
    models = self._worker_models.current
    return [[variable.numpy() for variable in own] for own in models]

  def local_state(self, name: str) -> list[list[np.ndarray]]:
    """Returns what each worker keeps under a name; between steps.

    Of the workers of this process, in their order, one array a variable.

    Raises:
      KeyError: it keeps nothing under that name.
    """
    return [[x.numpy() for x in own] for own in self._state[name]]

  def build(self, variables):
    """Creates the optimizer's variables.

    Raises:
      ValueError: it was made under another strategy than the variables; or one
        of them cannot be trained so.
    """
    if self.built:
      return
    name = type(self).__name__
    requirements.check_variables(name, variables)
    if tf.distribute.has_strategy():
      requirements.check_made_under(name, self._strategy)
      self._build(variables)
    else:
      # Callbacks run outside the scope.
      with self._strategy.scope():
        self._build(variables)

  def _build(self, variables) -> None:
    devices = communication.replica_devices()
    for variable in variables:
      if len(strategies.components(self._strategy, variable)) < len(devices):
        raise ValueError(
          f"variable {variable.path} is no part of any replica: make and build"
          " the model inside strategy.scope()"
        )
    super().build(variables)
    with communication.variables_on(devices[0]):
      self._bytes_sent = self.add_variable(
        [], dtype="float64", name="bytes_sent"
      )
      # Whether the model's variables are what counts, and not what each worker
      # keeps: so until the first step, and whenever others look at the model.
      self._mean_shown = self.add_variable(
        [], "ones", dtype="int32", name="mean_shown"
      )
      # What the model was when it was last made the mean.
      self._fingerprint = self.add_variable(
        [], dtype="int64", name="fingerprint"
      )
      # The workers whose state follows: after restoring, those that saved it.
      self._saved_workers = self.add_variable(
        [],
        keras.initializers.Constant(self._num_local_workers),
        dtype="int32",
        name="saved_workers",
      )
    self._num_common = len(self._variables)
    models = {"model": LIKE_MODEL} if self._keeps_models else {}
    kept = {**models, **self.initial_state}
    self._state = {name: [] for name in kept}
    # One worker after the other, so that a checkpoint of other workers is not
    # mistaken: the first of these are the first of those.
    for worker in range(self._num_local_workers):
      device = devices[worker // (self.workers_per_replica or 1)]
      for name, initializer in kept.items():
        self._state[name].append(
          self._variables_of_worker(
            device, f"{name}_{worker}", initializer, variables
          )
        )
    self._worker_models = WorkerModels(
      self._strategy,
      self._trainable_variables,
      kept=self._state.get("model"),
      workers_per_replica=self.workers_per_replica,
      mean_shown=self._mean_shown,
      fingerprint=self._fingerprint,
    )

  @property
  def _keeps_models(self) -> bool:
    # One variable cannot be the models of several simulated workers.
    return self.models_differ or self.workers_per_replica is not None

  def _variables_of_worker(
    self, device, name: str, initializer, variables
  ) -> list:
    # With an initializer and not with `assign`, which in the trace of a step
    # would become a part of every step; and with a constant, which XLA can lift
    # out of the step.
    def value_of(variable):
      with tf.init_scope():
        value = strategies.components(self._strategy, variable)[0].numpy()
      return lambda shape, dtype: tf.constant(value)

    with communication.variables_on(device):
      return [
        self.add_variable(
          shape=variable.shape,
          initializer=(
            value_of(variable) if initializer is LIKE_MODEL else initializer
          ),
          dtype=variable.dtype,
          name=name,
        )
        for variable in variables
      ]

  def gradients_will_do(self, gradients) -> tf.Tensor:
    """Returns whether a loss scale is to let a step be made: all are finite.

    Args:
      gradients: of this replica, unscaled.
    """
    finite, count = finite_workers(
      gradients,
      self.workers_per_replica,
      batch_examples.replica_has_examples(),
    )
    return tf.equal(finite, count)

  # AutoGraph, in a loop of one's own, has nothing to convert here.
  @tf.autograph.experimental.do_not_convert
  def apply(self, grads, trainable_variables=None):
    """Updates the workers' models.

    Args:
      grads: this replica's gradients, one a variable; None where there is
        none. With `workers_per_replica=m` they have a leading axis of m.
      trainable_variables: those that it was built with.

    Raises:
      ValueError: it is called where it cannot work; no variable has a
        gradient; a gradient has not its variable's shape; the variables, or
        those of them that have gradients, are others than before.
    """
    requirements.check_step(type(self).__name__, self._strategy)
    grads = list(grads)
    if not self.built:
      self.build(list(trainable_variables))
    self._check_same_variables(grads, trainable_variables)
    variables = self._trainable_variables
    has_examples = batch_examples.replica_has_examples()
    gradients = []
    for k in self._present:
      gradient = densified(grads[k], variables[k])
      requirements.check_gradient(
        gradient, variables[k], self.workers_per_replica
      )
      if has_examples is not None:
        gradient = tf.where(has_examples, gradient, tf.zeros_like(gradient))
      gradients.append(gradient)
    communication.once(lambda *merged: self._step(merged), *gradients)
    self._iterations.assign_add(1)

  def _check_same_variables(self, grads, trainable_variables) -> None:
    if trainable_variables is not None:
      given, known = list(trainable_variables), self._trainable_variables
      if [id(x) for x in given] != [id(x) for x in known]:
        raise ValueError(
          f"{self.name} was built for {len(known)} variables and is given"
          f" {len(given)}, not the same: what each worker keeps belongs to"
          " those; compile the model again, with a new optimizer"
        )
    present = [k for k, gradient in enumerate(grads) if gradient is not None]
    if not present:
      raise ValueError(
        f"{self.name} is given no gradient: no variable bears on the loss"
      )
    if self._present not in (None, present):
      raise ValueError(
        f"{self.name} is given gradients of other variables than before, and"
        " the workers' vectors must keep their coordinates: use a new optimizer"
      )
    self._present = present

  def _step(self, merged) -> None:
    """Does a step, given the gradients of all replicas of this process."""
    requirements.check_not_compiled()
    self._models_are_live = True
    if self._keeps_models and self.workers_per_replica is None:
      # Such steps, as those of `train_on_batch`, are from the mean model.
      tf.cond(tf.equal(self._mean_shown, 1), self._restart_state, lambda: None)
    workers = Workers(self.workers_per_replica or 1, self._count)
    self.update(
      workers,
      self._with_gradients(self._worker_models.live),
      workers.map(self._own_gradients, self._by_worker(merged)),
      self._state_with_gradients(),
    )
    if self._keeps_models:
      self._mean_shown.assign(0)

  def _with_gradients(self, values: Sequence) -> list:
    return [[own[k] for k in self._present] for own in values]

  def _state_with_gradients(self) -> dict[str, list]:
    return {
      name: self._with_gradients(values) for name, values in self._state.items()
    }

  def decays(self) -> list[float]:
    """Returns the weight decay of each variable that has a gradient."""
    variables = [self._trainable_variables[k] for k in self._present]
    return [
      optimizer_decay.weight_decay(self, variable) for variable in variables
    ]

  def _count(self, num_bytes: tf.Tensor) -> None:
    self._bytes_sent.assign_add(tf.cast(num_bytes, tf.float64))

  def _by_worker(self, merged) -> list:
    by_replica = communication.local_values(merged)
    if self.workers_per_replica is None:
      return by_replica
    return [
      [gradient[row] for gradient in of_replica]
      for of_replica in by_replica
      for row in range(self.workers_per_replica)
    ]

  def _own_gradients(self, gradients: Sequence[tf.Tensor]) -> list:
    """Returns a worker's gradients: Keras divides losses by the replicas."""
    scale = self._strategy.num_replicas_in_sync
    if scale > 1:
      gradients = [gradient * scale for gradient in gradients]
    return gradients if self._clip is None else self._clip(gradients, None)

  def live_models(self) -> Variables:
    """Returns the variables of each worker's model that training works on.

    Of the workers of this process, in their order.
    """
    return self._worker_models.live

  def models_of_replica(self) -> Variables:
    """Returns the models of the workers that the current replica simulates."""
    return self._worker_models.of_this_replica()

  def show_mean(self, statistics: Sequence[keras.Variable] = ()) -> bool:
    """Sets the model to the mean of the workers' models, which are kept.

    To be called outside of `strategy.run`, by all processes.

    Args:
      statistics: variables of which each replica is given the mean, for good:
        the moving statistics of normalisation.

    Returns:
      Whether it was not shown already.
    """
    if (
      not self.built
      or not self._keeps_models
      or self._worker_models.mean_is_shown
    ):
      return False
    self._check_live()
    self._worker_models.show_mean(statistics)
    return True

  def hide_mean(self) -> None:
    """Puts the workers' models back, for training to go on."""
    if self.built and self._keeps_models and self._worker_models.mean_is_shown:
      self._worker_models.hide_mean()
      self._models_are_live = True

  def resume(self) -> None:
    """Gets ready to train, from what each worker kept if that is the model's.

    If the model was set to other values, or the number of workers is another,
    every worker goes on from the model as it is. To be called outside of
    `strategy.run`, by all processes, before a training loop of one's own goes
    on from what was restored.

    Raises:
      ValueError: what was restored was saved while the models differed.
    """
    if not self.built:
      return
    saved_workers = int(self._saved_workers.numpy())
    if saved_workers != self._num_local_workers:
      logging.warning(
        "%s: saved by %d workers, goes on with %d: each starts from the saved"
        " model, and from the mean of what they kept",
        self.name,
        saved_workers,
        self._num_local_workers,
      )
      self._share_state(saved_workers)
      if self._keeps_models:
        self._restart()
      return
    if not self._keeps_models:
      return
    if not self._worker_models.mean_is_shown:
      self._check_live()
      return
    if self._worker_models.belong_to_model():
      self.hide_mean()
      return
    if int(self.iterations.numpy()):
      logging.warning(
        "%s: what the workers kept does not belong to the model's weights:"
        " these were set anew, or come from another number of workers; all %d"
        " workers go on from these weights",
        self.name,
        self.num_workers,
      )
    self._restart()

  def _check_live(self) -> None:
    """Checks that a model's variables are what this process trained.

    Raises:
      ValueError: they are not: all are now those of one worker.
    """
    if self.workers_per_replica is None and not self._models_are_live:
      raise ValueError(
        f"{self.name} is restored from a checkpoint that was saved within an"
        " epoch: it holds one worker's model, and not the others'; save at the"
        " end of an epoch, or inside `with robust_tf.mean_model(model):`"
      )

  def _share_state(self, saved_workers: int) -> None:
    """Gives each worker the mean of what the workers have that were restored.

    Args:
      saved_workers: how many saved it, in one process.
    """
    for name, by_worker in self._state.items():
      if name != "model":
        for variables in zip(*by_worker, strict=True):
          restored = [x.numpy() for x in variables[:saved_workers]]
          for variable in variables:
            variable.assign(np.mean(restored, axis=0))
    self._saved_workers.assign(self._num_local_workers)

  def _restart(self) -> None:
    """Lets all workers go on from the model as it is."""
    self._worker_models.run(self._restart_state)
    self._models_are_live = True

  def _restart_state(self) -> None:
    self._worker_models.take_model()
    self.restart(
      self._worker_models.live,
      {name: x for name, x in self._state.items() if name != "model"},
    )

  def training_callback(self, callbacks: Sequence[keras.callbacks.Callback]):
    """Returns what shows the mean model to the callbacks of a training."""
    return MeanModel(self, callbacks)

  def finalize_variable_values(self, var_list):
    """Sets the variables to the mean of the workers' models."""
    del var_list
    self.show_mean()

  def save_own_variables(self, store):
    """Saves what the workers of this process keep.

    Raises:
      ValueError: the model's variables are not the mean model.
    """
    if (
      self.built
      and self._keeps_models
      and not self._worker_models.mean_is_shown
    ):
      raise ValueError(
        f"{self.name}: the model's variables are now those of one worker; save"
        " at the end of an epoch, or inside `with robust_tf.mean_model(model):`"
      )
    super().save_own_variables(store)

  def load_own_variables(self, store):
    """Loads what was saved, also for another number of workers.

    Each worker then gets the mean of what the saved workers kept.

    Raises:
      ValueError: it was saved by another optimizer, or for another model.
    """
    if not self.built or len(store.keys()) == len(self._variables):
      super().load_own_variables(store)
      return
    saved = [store[str(i)][()] for i in range(len(store.keys()))]
    common, kept = saved[: self._num_common], saved[self._num_common :]
    own = self._variables[self._num_common :]
    stride = len(own) // self._num_local_workers
    if len(kept) % stride or any(
      value.shape != variable.shape
      for value, variable in zip(saved, self._variables, strict=False)
    ):
      raise ValueError(
        f"{self.name}: the file holds the state of another optimizer or model;"
        " set the dtype policy that it was trained with before, or load it with"
        " compile=False"
      )
    for variable, value in zip(self._variables, common, strict=False):
      variable.assign(value)
    # There is nothing of workers if the file was saved before training.
    for k, variable in enumerate(own if kept else ()):
      variable.assign(np.mean(kept[k % stride :: stride], axis=0))

  def get_config(self):
    """Returns what `from_config` makes this optimizer of."""
    config = super().get_config()
    kept = ("name", "learning_rate", "weight_decay")
    kept += ("clipnorm", "clipvalue", "global_clipnorm")
    return {
      **{name: config[name] for name in kept},
      "workers_per_replica": self.workers_per_replica,
    }
