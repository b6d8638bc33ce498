"""What the settings stand for: strategy, rule, attack, optimizer."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import robust_tf
from robust_tf.aggregators import AGGREGATORS
from robust_tf.attacks import ATTACKS
from robust_tf.attacks import Byzantine
from robust_tf.attacks import DERIVED
from robust_tf.compressors import COMPRESSORS
from robust_tf.ordered_sum import ordered_sum
from robust_tf.training.algorithms import SYNCHRONOUS
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.job_flags import CompressorChoice
from robust_tf.training.settings import Settings

OPTIMIZERS = {
  "sgd": keras.optimizers.SGD,
  "momentum": functools.partial(keras.optimizers.SGD, momentum=0.9),
  "adam": keras.optimizers.Adam,
  "adagrad": keras.optimizers.Adagrad,
  "rmsprop": keras.optimizers.RMSprop,
  "cser": robust_tf.CSER,
  "csea": robust_tf.CSEA,
  "cser_pl": robust_tf.CSER_PL,
  "local_sgd": robust_tf.LocalSGD,
  "error_feedback_sgd": robust_tf.ErrorFeedbackSGD,
  "qsparse_local_sgd": robust_tf.QSparseLocalSGD,
  "adaalter": robust_tf.AdaAlter,
  "local_adaalter": robust_tf.LocalAdaAlter,
}


def make_strategy(settings: Settings) -> tf.distribute.Strategy:
  """Returns the strategy, before TensorFlow has run anything.

  Raises:
    ValueError: there are fewer devices than replicas, or the workers cannot be
      spread evenly over the replicas.
  """
  if settings.strategy == "mirrored":
    strategy = tf.distribute.MirroredStrategy(
      _devices(settings),
      # The default, a collective, is not needed for what is reduced beside
      # gradients, and stays broken in a process where it once failed.
      cross_device_ops=tf.distribute.ReductionToOneDevice(
        accumulation_fn=ordered_sum
      ),
    )
  elif settings.strategy == "multi_worker":
    if settings.heartbeat_timeout_s is not None:
      robust_tf.bear_with_slow_links(settings.heartbeat_timeout_s)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
  else:
    strategy = tf.distribute.get_strategy()
  replicas = strategy.num_replicas_in_sync
  if settings.workers % replicas:
    raise ValueError(
      f"--workers={settings.workers} cannot be spread evenly over {replicas}"
      " devices"
    )
  return strategy


def _devices(settings: Settings) -> list[str]:
  """Returns the devices of the mirrored strategy; makes CPU devices."""
  gpus = tf.config.list_physical_devices("GPU")
  if gpus:
    count = settings.replicas or len(gpus)
    if count > len(gpus):
      raise ValueError(f"--replicas={count}: there are {len(gpus)} GPUs")
    return [f"GPU:{i}" for i in range(count)]
  count = settings.replicas or settings.workers
  cpu = tf.config.list_physical_devices("CPU")[0]
  made = tf.config.get_logical_device_configuration(cpu)
  if made is None:
    tf.config.set_logical_device_configuration(
      cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )
  elif len(made) < count:
    raise ValueError(
      f"--replicas={count}: TensorFlow has started with {len(made)} CPU devices"
    )
  return [f"CPU:{i}" for i in range(count)]


def make_rule(settings: Settings) -> Callable:
  """Returns the aggregation rule.

  Raises:
    ValueError: it cannot be had with so many workers.
  """
  rule = AGGREGATORS[settings.aggregator]
  rule = functools.partial(rule, **settings.aggregator_arguments)
  supplied = {}
  if settings.takes_loss:
    supplied = {"loss": tf.reduce_sum, "learning_rate": settings.learning_rate}
  try:
    rule(np.zeros([settings.workers, 1], np.float32), **supplied)
  except ValueError as error:
    raise ValueError(
      f"--aggregator={settings.aggregator} with --workers={settings.workers}:"
      f" {error}"
    ) from None
  return rule


def make_byzantine(
  settings: Settings, rule: Callable, num_parameters: int
) -> Byzantine | None:
  """Returns who attacks the updates, and how; None if nobody does.

  Args:
    settings: of the run.
    rule: what `make_rule` returned.
    num_parameters: d, of the model.

  Raises:
    ValueError: the attack cannot be made on such updates.
  """
  attack = make_attack(settings, rule)
  if attack is None:
    return None
  byzantine = Byzantine(
    workers=settings.byzantine,
    attack=attack,
    start_step=settings.attack_start_step,
    seed=settings.seed,
  )
  try:
    byzantine.check(settings.workers)
    byzantine(
      tf.zeros([settings.workers, num_parameters]), settings.attack_start_step
    )
  except ValueError as error:
    raise ValueError(f"--attack={settings.attack}: {error}") from None
  return byzantine


def derived_arguments(settings: Settings) -> dict[str, float]:
  """Returns the attack's arguments that follow from who attacks.

  Args:
    settings: of the run.

  Raises:
    ValueError: one follows in no way, or not the same in each round.
  """
  found = {}
  for name, derive in DERIVED.get(settings.attack, {}).items():
    if name in settings.attack_arguments:
      continue
    if settings.algorithm != SYNCHRONOUS:
      raise ValueError(
        f"--attack={settings.attack} needs --{name}: it would follow from how"
        " many devices of a round attack, which changes from round to round"
      )
    try:
      found[name] = derive(settings.workers, len(settings.byzantine))
    except ValueError as error:
      raise ValueError(f"--attack={settings.attack}: {error}") from None
  return found


def make_attack(settings: Settings, rule: Callable) -> Callable | None:
  """Returns what Byzantine workers do to updates; None if nothing.

  Args:
    settings: of the run.
    rule: the aggregation rule.

  Raises:
    ValueError: the attack cannot be made on that rule, or misses an argument.
  """
  name = settings.attack
  if name in (None, LABEL_FLIP):
    return None
  attack = functools.partial(
    ATTACKS[name], **settings.attack_arguments, **derived_arguments(settings)
  )
  if "aggregator" not in inspect.signature(ATTACKS[name]).parameters:
    return attack
  if settings.takes_loss:
    raise ValueError(
      f"--attack={name} tries updates out on the rule, which"
      f" --aggregator={settings.aggregator} does not allow: it scores them by"
      " a loss; choose another rule or attack"
    )
  return functools.partial(attack, aggregator=rule)


def make_optimizer(
  settings: Settings, workers_per_replica: int | None = None
) -> keras.optimizers.Optimizer:
  """Returns the optimizer, with its schedule.

  Args:
    settings: of the run.
    workers_per_replica: of an optimizer with local models; None for one each.

  Raises:
    ValueError: its compressor is none for such a model.
  """
  rate = settings.learning_rate
  if settings.decay_steps:
    powers = range(len(settings.decay_steps) + 1)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
      # Keras goes on with the old rate at a boundary itself.
      boundaries=[step - 1 for step in settings.decay_steps],
      values=[rate * settings.decay_factor**k for k in powers],
    )
  arguments = {
    name: _compressor(name, value, settings.seed)
    if isinstance(value, CompressorChoice)
    else value
    for name, value in settings.optimizer_arguments.items()
  }
  if settings.has_local_models:
    arguments["workers_per_replica"] = workers_per_replica
  return OPTIMIZERS[settings.optimizer](rate, **arguments)


def _compressor(flag: str, choice: CompressorChoice, seed: int):
  """Returns the compressor that a flag chooses."""
  kind = COMPRESSORS[choice.name]
  fields = [field.name for field in dataclasses.fields(kind)]
  arguments = {} if choice.number is None else {fields[0]: choice.number}
  if "seed" in fields:
    # Two compressors of a step should not draw alike.
    arguments["seed"] = 2 * seed + (flag == "reset_compressor")
  try:
    return kind(**arguments)
  except ValueError as error:
    raise ValueError(f"--{flag}={choice.name}: {error}") from None
