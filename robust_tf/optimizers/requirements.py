"""What `RobustOptimizer` needs of what it is given, checked as it is made.

Each function returns nothing, or raises the one error that says what to do.
"""

import inspect
import numbers
import warnings
from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf import aggregators
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import collective_groups
from robust_tf.distribute.hooks import multi_worker_fit
from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks import strategies
from robust_tf.distribute.hooks import xla
from robust_tf.distribute.hooks.strategies import StrategyKind
from robust_tf.distribute.validation_loss import NoValidationLoss
from robust_tf.distribute.validation_loss import ValidationLoss
from robust_tf.optimizers.rule_config import rule_and_parameters


def check_strategy(optimizer: str) -> None:
  """Checks that the current strategy shows an optimizer every worker.

  Args:
    optimizer: its name, for the message.

  Raises:
    ValueError: it does not, or is not known to.
  """
  private.check_backend()
  kind = strategies.strategy_kind()
  if kind is StrategyKind.MIRRORED:
    collective_groups.separate(tf.distribute.get_strategy())
  elif kind is StrategyKind.MULTI_WORKER:
    hooks.install(multi_worker_fit)
  elif kind is StrategyKind.PARAMETER_SERVER:
    raise ValueError(
      "under ParameterServerStrategy an optimizer sees the gradients of one"
      f" worker at a time, so {optimizer} has nothing to aggregate: let the"
      " coordinator do it, with the algorithms of robust_tf.federated"
    )
  elif kind is StrategyKind.OTHER:
    raise ValueError(
      f"{optimizer} under {type(tf.distribute.get_strategy()).__name__} is"
      " not supported: use MirroredStrategy, MultiWorkerMirroredStrategy, or no"
      " strategy and VectorizedWorkers"
    )


def warn_of_lambda(name: str, choice: Callable) -> None:
  """Warns that what is trained with a lambda can be saved, but not loaded.

  Args:
    name: of the argument that it is.
    choice: a rule or an attack, or a `functools.partial` of one.
  """
  rule, _ = rule_and_parameters(choice)
  if getattr(rule, "__name__", None) == "<lambda>":
    warnings.warn(
      f"{name} is a lambda: the optimizer trains with it, but Keras cannot load"
      " a model that was saved with it; give a function with a name, registered"
      " with keras.saving.register_keras_serializable()",
      stacklevel=3,
    )


def inner_parts(optimizer) -> Sequence[keras.optimizers.Optimizer]:
  """Returns the optimizers that reduce gradients: one, or those of many."""
  if isinstance(optimizer, keras.optimizers.MultiOptimizer):
    return list(optimizer.optimizers)
  return [optimizer]


def check_inner(optimizer) -> None:
  """Checks one optimizer that is to be wrapped.

  Raises:
    TypeError: it is no Keras optimizer.
    ValueError: it has a setting that does not work inside a wrapper.
  """
  if not isinstance(optimizer, keras.optimizers.Optimizer):
    raise TypeError(
      f"inner_optimizer is {optimizer!r}: give a Keras optimizer, as"
      " keras.optimizers.SGD(0.1)"
    )
  if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
    raise ValueError(
      "inner_optimizer is a LossScaleOptimizer: put it around the"
      " RobustOptimizer instead (model.compile does so under mixed_float16)"
    )
  if optimizer.gradient_accumulation_steps:
    raise ValueError(
      f"{optimizer.name} has gradient_accumulation_steps="
      f"{optimizer.gradient_accumulation_steps}: each worker's gradients must"
      " be accumulated before they are aggregated, so set it on the"
      " RobustOptimizer"
    )
  if optimizer.loss_scale_factor is not None:
    raise ValueError(
      f"{optimizer.name} has loss_scale_factor={optimizer.loss_scale_factor}:"
      " leave it out, and put a LossScaleOptimizer around the RobustOptimizer"
    )
  if (
    optimizer.use_ema
    and optimizer.ema_overwrite_frequency
    and tf.distribute.has_strategy()
  ):
    raise ValueError(
      f"{optimizer.name} has ema_overwrite_frequency="
      f"{optimizer.ema_overwrite_frequency}, which Keras cannot do under a"
      " strategy: leave it unset; the average becomes the weights at the end"
      " of fit, or where finalize_variable_values is called"
    )


def check_unbuilt(optimizer: keras.optimizers.Optimizer) -> None:
  """Checks that an optimizer has not been used before it is wrapped.

  Raises:
    ValueError: it has.
  """
  if optimizer.built:
    raise ValueError(
      f"{optimizer.name} is built already: a model that was compiled with it"
      " would share its state; wrap a new optimizer"
    )


def check_count(name: str, value: int | None, least: int) -> None:
  """Checks an optional integer.

  Raises:
    TypeError: it is no integer.
    ValueError: it is below `least`.
  """
  if value is None:
    return
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise TypeError(f"{name}={value!r} must be an integer or None")
  if value < least:
    raise ValueError(f"{name}={value} must be {least} or more, or None")


def check_period(sync_period: int) -> None:
  """Checks how many steps there are from one synchronisation to the next.

  Raises:
    TypeError: it is no integer.
    ValueError: it is below 1.
  """
  if isinstance(sync_period, bool) or not isinstance(
    sync_period, numbers.Integral
  ):
    raise TypeError(f"sync_period={sync_period!r} must be an integer")
  if sync_period < 1:
    raise ValueError(
      f"sync_period={sync_period} must be 1 or more steps; 1 synchronises at"
      " every step"
    )


def check_momentum(momentum: float) -> None:
  """Checks a momentum.

  Raises:
    ValueError: it is not at least 0 and below 1.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum={momentum} must be at least 0 and below 1")


def check_validation_loss(
  inner_optimizer: keras.optimizers.Optimizer,
  aggregator: Callable,
  validation_loss,
) -> None:
  """Checks that Zeno has what it needs, and no other rule gets it.

  Raises:
    TypeError: `validation_loss` is something else.
    ValueError: otherwise.
  """
  rule, _ = rule_and_parameters(aggregator)
  if rule is not aggregators.zeno:
    if validation_loss is not None:
      raise ValueError(
        f"validation_loss is for aggregators.zeno, not for {rule_name(rule)}:"
        " leave it out"
      )
    return
  if validation_loss is None:
    raise ValueError(
      "aggregators.zeno scores gradients by a loss on held-out data: give"
      " validation_loss=ValidationLoss(model, loss, dataset)"
    )
  if not isinstance(validation_loss, ValidationLoss | NoValidationLoss):
    raise TypeError(
      f"validation_loss={validation_loss!r} must be a ValidationLoss(model,"
      " loss, dataset)"
    )
  if isinstance(inner_optimizer, keras.optimizers.MultiOptimizer):
    raise ValueError(
      "aggregators.zeno needs the learning rate, and a MultiOptimizer has"
      " several: wrap one optimizer"
    )


def check_byzantine(byzantine: Byzantine | None, num_workers: int) -> None:
  """Checks that an attack is one, of workers that there are.

  Raises:
    TypeError: it is no `Byzantine`.
    ValueError: it names workers that there are not.
  """
  if byzantine is None:
    return
  if not isinstance(byzantine, Byzantine):
    raise TypeError(
      f"byzantine={byzantine!r} must be a robust_tf.Byzantine, or None"
    )
  byzantine.check(num_workers)


def check_rule(aggregator: Callable, num_workers: int) -> None:
  """Checks that a rule makes one update of those of so many workers.

  It is traced once with updates of no particular length.

  Raises:
    ValueError: it does not; or the rule's own error for too few workers.
  """
  rule, _ = rule_and_parameters(aggregator)
  arguments = {}
  if rule is aggregators.zeno:
    arguments = {"loss": lambda step: tf.zeros([]), "learning_rate": 0.1}

  @tf.function(autograph=False)
  def probe(rows):
    return checked_result(aggregator, aggregator(rows, **arguments), rows)

  probe.get_concrete_function(tf.TensorSpec([num_workers, None], tf.float32))


def checked_result(aggregator: Callable, result, rows: tf.Tensor) -> tf.Tensor:
  """Returns what a rule made of rows [n, d], if it is one update.

  Raises:
    ValueError: it is not [d] in the dtype of the rows.
  """
  result = tf.convert_to_tensor(result)
  if (
    not result.shape.is_compatible_with(rows.shape[1:])
    or result.dtype != rows.dtype
  ):
    rule, _ = rule_and_parameters(aggregator)
    raise ValueError(
      f"aggregator {rule_name(rule)} returned {result.dtype.name}"
      f" {result.shape} for updates {rows.dtype.name} {rows.shape}: it must"
      f" return {rows.dtype.name} {rows.shape[1:]}"
    )
  return tf.ensure_shape(result, rows.shape[1:])


def rule_name(rule: Callable) -> str:
  """Returns what to call a rule in a message."""
  if inspect.isroutine(rule):
    return rule.__name__
  return type(rule).__name__


def check_made_under(
  optimizer: str, made_under: tf.distribute.Strategy
) -> None:
  """Checks that an optimizer is used under the strategy it was made under.

  Args:
    optimizer: its name, for the message.
    made_under: the strategy that it was made under.

  Raises:
    ValueError: the current strategy is another.
  """
  strategy = tf.distribute.get_strategy()
  if strategy is not made_under:
    raise ValueError(
      f"{optimizer} was made under"
      f" {type(made_under).__name__} and is used under"
      f" {type(strategy).__name__}: make it, and compile the model, inside"
      " strategy.scope()"
    )


def check_step(optimizer: str, made_under: tf.distribute.Strategy) -> None:
  """Checks where `apply` is called.

  Args:
    optimizer: its name, for the message.
    made_under: the strategy that it was made under.

  Raises:
    ValueError: under another strategy than that, or outside the replicas.
  """
  check_made_under(optimizer, made_under)
  if tf.distribute.in_cross_replica_context():
    raise ValueError(
      f"{optimizer}.apply is called outside the replicas: call it in a"
      " function that strategy.run runs"
    )


def check_several(num_workers: int) -> None:
  """Checks that there is something to aggregate.

  Raises:
    ValueError: there is a single worker.
  """
  if num_workers == 1:
    raise ValueError(
      "RobustOptimizer has 1 worker, and so nothing to aggregate: make it"
      " inside the scope of a strategy with several replicas; or set"
      " workers_per_replica and train VectorizedWorkers"
    )


def check_not_compiled() -> None:
  """Checks that XLA does not compile a step of several replicas.

  Raises:
    ValueError: it does.
  """
  if tf.distribute.has_strategy() and xla.in_xla():
    raise ValueError(
      "jit_compile=True does not work under a strategy: compile the model with"
      " jit_compile=False (the rules compile themselves)"
    )


def check_variables(optimizer: str, variables: Sequence) -> None:
  """Checks that every variable is updated with gradients.

  Args:
    optimizer: its name, for the message.
    variables: that it is built for.

  Raises:
    ValueError: one is overwritten with what Keras calls its gradient.
  """
  for variable in variables:
    if getattr(variable, "overwrite_with_gradient", False):
      raise ValueError(
        f"variable {variable.path} is overwritten with its gradient, as in"
        f" float8 training, which {optimizer} does not support: use another"
        " dtype policy"
      )


def check_gradient(gradient: tf.Tensor, variable, rows: int | None) -> None:
  """Checks that a gradient has the shape that the workers give it.

  Raises:
    ValueError: it has not.
  """
  shape = list(variable.shape) if rows is None else [rows, *variable.shape]
  if not gradient.shape.is_compatible_with(shape):
    advice = (
      "workers_per_replica is for VectorizedWorkers"
      if rows is not None
      else "VectorizedWorkers needs workers_per_replica"
    )
    raise ValueError(
      f"the gradient of {variable.path} has shape {gradient.shape}, not"
      f" {tuple(shape)}: {advice}"
    )
