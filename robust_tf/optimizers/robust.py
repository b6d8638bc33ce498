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
first, so a row is the gradient of its worker's own mean loss. With the mean as
the rule the result is what Keras computes without this wrapper, except in two
cases, in which Keras does not apply the mean gradient as one machine would:

- An inner optimizer with `clipnorm`, `clipvalue` or `global_clipnorm` clips
  the aggregate. Keras clips each replica's share, and then sums the shares.
- An inner optimizer that squares gradients, as Adam, squares the whole gradient
  of an embedding's row. Keras squares what each look-up of the row adds to it.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from robust_tf import aggregators
from robust_tf import communication
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import batch_examples
from robust_tf.distribute.hooks import gradient_reduction
from robust_tf.distribute.hooks import loss_scale
from robust_tf.distribute.packing import densified
from robust_tf.distribute.validation_loss import NoValidationLoss
from robust_tf.distribute.validation_loss import ValidationLoss
from robust_tf.optimizers import absent_workers
from robust_tf.optimizers import requirements
from robust_tf.optimizers import rule_config
from robust_tf.optimizers.aggregation import Aggregation
from robust_tf.optimizers.clipping import clipping
from robust_tf.optimizers.finite_workers import finite_workers
from robust_tf.optimizers.gradient_sums import GradientSums
from robust_tf.optimizers.step_report import StepReport


@keras.saving.register_keras_serializable("robust_tf")
class RobustOptimizer(keras.optimizers.Optimizer):
  """Applies what a rule makes of all workers' gradients.

  To be made inside `strategy.scope()`, like any optimizer. One step does this,
  in this order: gradients are accumulated, then clipped, for each worker alone
  and by this wrapper's settings; Byzantine workers' rows are replaced (in
  experiments); the rule aggregates; the inner optimizer applies, and by its
  own settings clips, the aggregate.

  Workers are the strategy's replicas. With `workers_per_replica=m` each replica
  computes the gradients of m workers, along a leading axis of every gradient,
  as `VectorizedWorkers` does.

  A batch with fewer examples than replicas leaves some replicas without any. In
  `fit` and `train_on_batch` these have no vote: the rule is that of the others,
  and where they are too few for it the gradient is zero, and a warning says so.
  The mean counts them, as Keras does, so that a short batch weighs less. In
  a training loop of your own they cannot be told from others: drop the
  remainder of the data, or choose a batch size that divides.

  Under mixed_float16 `compile` puts a `LossScaleOptimizer` around this one,
  and rows are unscaled. A step is left out, and the scale lowered, where half
  of the workers or more have no finite gradients, or with the mean as the rule
  not all; what is not finite in the others the rule leaves out.

  Attributes:
    inner_optimizer: the optimizer that gets the aggregate.
    aggregator: the rule.
    byzantine: the attack, if there is one.
    validation_loss: the loss that Zeno scores gradients with.
    gradient_accumulation_steps: calls of `apply` for one update.
    workers_per_replica: None, or the length of the gradients' leading axis.
    report: the `StepReport`, if asked for.
  """

  def __init__(
    self,
    inner_optimizer: keras.optimizers.Optimizer,
    aggregator: Callable,
    *,
    byzantine: Byzantine | None = None,
    validation_loss: ValidationLoss | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    gradient_accumulation_steps: int | None = None,
    workers_per_replica: int | None = None,
    report: bool = False,
    name: str = "robust_optimizer",
  ):
    """Wraps an optimizer that has not been built.

    Args:
      inner_optimizer: any Keras optimizer. An update is one step of its
        learning rate schedule.
      aggregator: a rule of `robust_tf.aggregators`, with its parameters set by
        `functools.partial`, or any function of the rows [n, d] that returns
        [d] in their dtype, made of TensorFlow operations. A lambda is warned
        of: Keras cannot load it again.
      byzantine: which workers attack, and how: for experiments. Steps are
        counted in updates.
      validation_loss: what `aggregators.zeno` needs, and no other rule.
      clipnorm: limit for the norm of each variable's gradient of each worker.
      clipvalue: limit for each element of it.
      global_clipnorm: limit for the norm of each worker's whole gradient.
      gradient_accumulation_steps: apply the mean of each worker's gradients
        over so many calls, 2 or more, once. Checkpoints hold the sums of all
        replicas of the process that saves: with several processes, save after
        an update.
      workers_per_replica: the workers whose gradients each replica computes,
        for `VectorizedWorkers`.
      report: keep what aggregation did for `AggregationReport`. It reads all
        gradients twice more, and scores those of whole-vector rules again.
      name: the optimizer's name.

    Raises:
      TypeError: an argument of a wrong type.
      ValueError: an argument out of range, too few workers for the rule, or
        what cannot work together, with what to do instead.
    """
    if isinstance(inner_optimizer, RobustOptimizer):
      raise ValueError(
        "inner_optimizer is a RobustOptimizer: gradients would be aggregated"
        " twice; wrap an optimizer once"
      )
    requirements.check_strategy("RobustOptimizer")
    requirements.check_inner(inner_optimizer)
    requirements.check_unbuilt(inner_optimizer)
    requirements.check_count(
      "gradient_accumulation_steps", gradient_accumulation_steps, 2
    )
    requirements.check_count("workers_per_replica", workers_per_replica, 1)
    requirements.check_validation_loss(
      inner_optimizer, aggregator, validation_loss
    )
    super().__init__(
      learning_rate=lambda: inner_optimizer.learning_rate,
      clipnorm=clipnorm,
      clipvalue=clipvalue,
      global_clipnorm=global_clipnorm,
      name=name,
    )
    self.inner_optimizer = inner_optimizer
    self.aggregator = aggregator
    self.byzantine = byzantine
    self.validation_loss = validation_loss
    self.workers_per_replica = workers_per_replica
    self.report = StepReport() if report else None
    # `VectorizedWorkers` gives every worker examples.
    self.sees_examples = workers_per_replica is None
    self._clip = clipping(clipnorm, clipvalue, global_clipnorm)
    self._accumulation_steps = gradient_accumulation_steps
    self._sums = None
    self._strategy = tf.distribute.get_strategy()
    hooks.install(loss_scale, batch_examples)
    requirements.check_byzantine(byzantine, self.num_workers)
    # One worker is refused when it trains: a model that many workers trained
    # is loaded and used on one.
    if self.num_workers > 1:
      requirements.check_rule(aggregator, self.num_workers)
    requirements.warn_of_lambda("aggregator", aggregator)
    if byzantine is not None:
      requirements.warn_of_lambda("byzantine.attack", byzantine.attack)

  @property
  def num_workers(self) -> int:
    """The number of workers whose gradients are aggregated."""
    return self._strategy.num_replicas_in_sync * (self.workers_per_replica or 1)

  def build(self, variables):
    """Creates the variables of both optimizers."""
    requirements.check_variables("RobustOptimizer", variables)
    self.inner_optimizer.build(variables)
    for part in requirements.inner_parts(self.inner_optimizer):
      requirements.check_inner(part)
      gradient_reduction.without_gradient_reduction(part)
    if self._accumulation_steps is not None:
      self._sums = GradientSums(
        self.add_variable, variables, self.workers_per_replica
      )
    super().build(variables)

  def apply(self, grads, trainable_variables=None):
    """Aggregates the workers' gradients, and applies the aggregate.

    Args:
      grads: this replica's gradients, one a variable; None where there is
        none. With `workers_per_replica=m` they have a leading axis of m.
      trainable_variables: the variables, if not all it was built with.

    Raises:
      ValueError: it is called where it cannot work; no variable has a
        gradient; a gradient has not its variable's shape.
    """
    requirements.check_step("RobustOptimizer", self._strategy)
    requirements.check_several(self.num_workers)
    grads = list(grads)
    if trainable_variables is None:
      variables = self._trainable_variables
    else:
      variables = list(trainable_variables)
    if not self.built:
      self.build(variables)
    present = [k for k, gradient in enumerate(grads) if gradient is not None]
    if not present:
      # Keras' own words for no gradients at all.
      self.inner_optimizer.apply(grads, variables)
      return
    communication.once(
      lambda *merged: self._step(merged, present, variables),
      *[self._own_gradient(grads[k], variables[k]) for k in present],
    )
    self._iterations.assign_add(1)

  def gradients_will_do(self, gradients) -> tf.Tensor:
    """Returns whether a loss scale is to let a step be made.

    Args:
      gradients: of this replica, unscaled.
    """
    counts_all = absent_workers.counts_all(self.aggregator)
    finite, count = finite_workers(
      gradients,
      self.workers_per_replica,
      None if counts_all else batch_examples.replica_has_examples(),
    )
    return tf.equal(finite, count) if counts_all else 2 * finite > count

  def _own_gradient(self, gradient, variable) -> tf.Tensor:
    """Returns a replica's gradient of its scaled loss, as a tensor."""
    gradient = densified(gradient, variable)
    requirements.check_gradient(gradient, variable, self.workers_per_replica)
    return gradient

  def _step(self, merged, present, variables) -> None:
    """Accumulates, or aggregates and applies; outside the replicas.

    Args:
      merged: the gradients of all replicas of this process.
      present: the positions, in `variables`, of those that have them.
      variables: the variables.
    """
    requirements.check_not_compiled()
    gradients = communication.local_values(merged)
    votes = None
    if self.sees_examples:
      votes = absent_workers.votes(self.aggregator, gradients)
    if self._sums is None:
      self._update(gradients, votes, present, variables)
      return
    indices = [self._get_variable_index(variables[k]) for k in present]
    self._sums.add(gradients, votes, indices)

    def update():
      votes_so_far = None if votes is None else self._sums.votes()
      self._update(self._sums.means(indices), votes_so_far, present, variables)
      self._sums.reset(indices)

    steps = self._accumulation_steps
    # Around what the replicas do together, never inside one of them.
    tf.cond((self._iterations + 1) % steps == 0, update, lambda: None)

  def _update(self, gradients, votes, present, variables) -> None:
    """Aggregates gradients and applies the aggregate; outside the replicas."""
    moved = [variables[k] for k in present]
    aggregation = Aggregation(
      aggregator=self.aggregator,
      byzantine=self.byzantine,
      clip=self._clip,
      workers_per_replica=self.workers_per_replica,
      report=self.report,
    )
    loss = learning_rate = None
    if self.validation_loss is not None:
      loss = self.validation_loss.after_steps(moved)
      learning_rate = tf.convert_to_tensor(self.learning_rate)
    with tf.device(communication.replica_devices()[0]):
      aggregate = aggregation(
        gradients,
        moved,
        step=tf.convert_to_tensor(self.iterations),
        votes=votes,
        loss=loss,
        learning_rate=learning_rate,
      )
    applied = [None] * len(variables)
    for k, gradient in zip(present, aggregate, strict=True):
      applied[k] = gradient
    communication.on_every_replica(
      lambda: gradient_reduction.apply_as_given(
        self.inner_optimizer, applied, variables
      )
    )

  @property
  def variables(self):
    """This optimizer's variables, then those of the inner one."""
    return self._variables + self.inner_optimizer.variables

  def set_weights(self, weights):
    """Sets both optimizers' variables to values in the order of `variables`."""
    num_own = len(self._variables)
    super().set_weights(weights[:num_own])
    self.inner_optimizer.set_weights(weights[num_own:])

  def save_own_variables(self, store):
    """Saves what is not the inner optimizer's, which Keras saves by itself."""
    for i, variable in enumerate(self._variables):
      store[str(i)] = variable.numpy()

  def load_own_variables(self, store):
    """Loads what `save_own_variables` saved, also for other workers.

    Raises:
      ValueError: gradients of another number of workers were being
        accumulated when it was saved.
    """
    if not self.built:
      super().load_own_variables(store)  # says that nothing is loaded
      return
    saved = [store[str(i)] for i in range(len(store.keys()))]
    if len(saved) != len(self._variables):
      if any(np.any(sums[()]) for sums in saved[1:]):
        raise ValueError(
          "the optimizer was saved while it accumulated gradients for other"
          " workers or another gradient_accumulation_steps than here: save"
          " after an update, or load with compile=False"
        )
      saved = saved[:1]
    for variable, value in zip(self._variables, saved, strict=False):
      variable.assign(value)

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

  def exclude_from_weight_decay(self, var_list=None, var_names=None):
    """Excludes variables from the inner optimizer's weight decay."""
    self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

  def finalize_variable_values(self, var_list):
    """Sets the variables to the inner optimizer's average, if it has one."""
    self.inner_optimizer.finalize_variable_values(var_list)

  def get_config(self):
    """Returns what `from_config` makes this optimizer of.

    Everything but the validation loss, whose data no file holds.
    """
    return {
      "inner_optimizer": keras.saving.serialize_keras_object(
        self.inner_optimizer
      ),
      "aggregator": rule_config.to_config(
        self.aggregator, aggregators.AGGREGATORS
      ),
      "byzantine": rule_config.byzantine_to_config(self.byzantine),
      "clipnorm": self.clipnorm,
      "clipvalue": self.clipvalue,
      "global_clipnorm": self.global_clipnorm,
      "gradient_accumulation_steps": self._accumulation_steps,
      "workers_per_replica": self.workers_per_replica,
      "report": self.report is not None,
      "name": self.name,
    }

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Returns the optimizer that `get_config` described.

    With Zeno, `optimizer.validation_loss` must be set before it trains.

    Raises:
      ValueError: the config is damaged.
    """
    entry = functools.partial(rule_config.entry, config)
    aggregator = rule_config.from_config(
      entry("aggregator", Mapping), aggregators.AGGREGATORS, custom_objects
    )
    rule, _ = rule_config.rule_and_parameters(aggregator)
    return cls(
      **{
        **config,
        "inner_optimizer": keras.saving.deserialize_keras_object(
          entry("inner_optimizer"), custom_objects
        ),
        "aggregator": aggregator,
        "byzantine": rule_config.byzantine_from_config(
          config.get("byzantine"), custom_objects
        ),
        "validation_loss": (
          NoValidationLoss() if rule is aggregators.zeno else None
        ),
      }
    )
