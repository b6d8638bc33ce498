"""What the settings stand for: a server, and devices that work for it."""

import functools
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np

from robust_tf.aggregators import AGGREGATORS
from robust_tf.attacks import Byzantine
from robust_tf.federated.fed_async import FedAsync
from robust_tf.federated.local_training import DeviceData
from robust_tf.federated.local_training import exchanged_variables
from robust_tf.federated.local_training import LocalTraining
from robust_tf.federated.sampling import SAMPLINGS
from robust_tf.federated.server import Server
from robust_tf.federated.slsgd import fed_avg
from robust_tf.federated.slsgd import SLSGD
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.zeno_plus_plus import ZenoPlusPlus
from robust_tf.federated.zeno_server import ServerExamples
from robust_tf.federated.zeno_server import validation_gradient
from robust_tf.federated.zeno_server import zeno_on_server
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.data import Dataset
from robust_tf.training.experiment import make_attack
from robust_tf.training.experiment import make_optimizer
from robust_tf.training.settings import Settings

Updates = list[Sequence[np.ndarray]]


def make_tasks(settings: Settings, parts: Sequence[np.ndarray]) -> DeviceTasks:
  """Returns what devices are asked to do.

  Args:
    settings: of the run.
    parts: the examples of each device.
  """
  flips = settings.attack == LABEL_FLIP
  return DeviceTasks(
    parts,
    settings.batch_size,
    settings.algorithm_arguments["local_steps"],
    settings.seed,
    flipped=settings.byzantine if flips else (),
    flipped_from=settings.attack_start_step,
  )


def make_server(
  settings: Settings,
  model: keras.Model,
  tasks: DeviceTasks,
  dataset: Dataset,
  num_workers: int,
) -> Server:
  """Returns the server, with the model as it is.

  Args:
    settings: of the run.
    model: what is trained.
    tasks: what devices do.
    dataset: from which the server draws examples of its own.
    num_workers: how many tasks are done at a time.

  Raises:
    ValueError: the settings do not go together.
  """
  arguments = settings.algorithm_arguments
  weights = [v.numpy() for v in exchanged_variables(model)]
  sample = SAMPLINGS[arguments["sampling"]]
  concurrency = arguments.get("concurrency") or min(
    num_workers, tasks.num_devices
  )
  if settings.algorithm == "fed_async":
    return FedAsync(
      weights,
      tasks,
      mixing_weight=_mixing_weight(settings),
      staleness=arguments["staleness"],
      max_staleness=arguments["max_staleness"],
      concurrency=concurrency,
      sample=sample,
    )
  if settings.algorithm == "zeno_plus_plus":
    return ZenoPlusPlus(
      weights,
      tasks,
      validation_gradient=validation_gradient(
        model, loss_function(), _server_examples(settings, dataset)
      ),
      learning_rate=settings.learning_rate,
      refresh_every=arguments["refresh_every"],
      rho=arguments["rho"],
      epsilon=arguments["zeno_epsilon"],
      max_staleness=arguments["max_staleness"],
      concurrency=concurrency,
      sample=sample,
    )
  rule = functools.partial(
    AGGREGATORS[settings.aggregator], **settings.aggregator_arguments
  )
  rounds = {
    "devices_per_round": arguments["devices_per_round"],
    "arrivals_per_round": arguments["arrivals_per_round"],
    "attack": _attack(settings, rule),
    "sample": sample,
    **(
      {"aggregator_at": _zeno(settings, model, dataset)}
      if settings.takes_loss
      else {"aggregator": rule}
    ),
  }
  try:
    if settings.algorithm == "fed_avg":
      return fed_avg(weights, tasks, **rounds)
    mixing_weight = _mixing_weight(settings)
    return SLSGD(weights, tasks, mixing_weight=mixing_weight, **rounds)
  except ValueError as error:
    raise ValueError(f"--aggregator={settings.aggregator}: {error}") from None


def make_local_training(settings: Settings, model: keras.Model, server: Server):
  """Returns what a device does with a task."""
  return LocalTraining(
    model,
    loss_function(),
    make_optimizer(settings),
    proximal_weight=settings.algorithm_arguments["proximal_weight"],
    gives_update=server.wants_updates,
  )


def make_data(dataset: Dataset) -> DeviceData:
  """Returns the examples of all devices."""
  return DeviceData(dataset.x_train, dataset.y_train, dataset.num_classes)


def loss_function() -> keras.losses.Loss:
  """Returns what devices, and a server with examples of its own, minimise."""
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _mixing_weight(settings: Settings) -> Callable[[int], float]:
  """Returns the mixing weight as a function of the version."""
  arguments = settings.algorithm_arguments
  steps = np.array(arguments["mixing_decay_steps"], int)

  def mixing_weight(version: int) -> float:
    passed = int((steps <= version).sum())
    return (
      arguments["mixing_weight"] * arguments["mixing_decay_factor"] ** passed
    )

  return mixing_weight


def _zeno(settings: Settings, model: keras.Model, dataset: Dataset) -> Callable:
  return zeno_on_server(
    model,
    loss_function(),
    _server_examples(settings, dataset),
    learning_rate=settings.learning_rate,
    **settings.aggregator_arguments,
  )


def _server_examples(settings: Settings, dataset: Dataset) -> ServerExamples:
  try:
    return ServerExamples(
      dataset.x_train,
      dataset.y_train,
      settings.validation_batch_size,
      settings.seed,
    )
  except ValueError as error:
    raise ValueError(f"--validation_{error}") from None


def _attack(settings: Settings, rule: Callable) -> Callable | None:
  """Returns what Byzantine devices make of a round's updates."""
  attack = make_attack(settings, rule)
  if attack is None:
    return None

  def replaced(updates: Updates, devices: Sequence[int], version: int):
    rows = tuple(i for i, x in enumerate(devices) if x in settings.byzantine)
    if not rows:
      return updates
    byzantine = Byzantine(
      rows, attack, settings.attack_start_step, settings.seed
    )
    flat = np.stack([np.concatenate([x.ravel() for x in u]) for u in updates])
    return _unflattened(byzantine(flat, version).numpy(), updates[0])

  return replaced


def _unflattened(rows: np.ndarray, like: Sequence[np.ndarray]) -> Updates:
  ends = np.cumsum([x.size for x in like])[:-1]
  return [
    [
      part.reshape(x.shape).astype(x.dtype, copy=False)
      for part, x in zip(np.split(row, ends), like, strict=True)
    ]
    for row in rows
  ]
