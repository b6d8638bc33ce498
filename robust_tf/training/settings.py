"""What a run is to do: the flags, checked against each other.

Everything that can be known to be wrong without TensorFlow and without the
examples is found here.
"""

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence

from robust_tf.training.choices import chosen_arguments
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.choices import signatures
from robust_tf.training.federated_flags import ClusterSize
from robust_tf.training.federated_settings import check_algorithm
from robust_tf.training.federated_settings import complete_arguments
from robust_tf.training.job_flags import flag_texts
from robust_tf.training.job_flags import LOCAL
from robust_tf.training.job_flags import OPTIMIZERS
from robust_tf.training.job_flags import parse_flags

Arguments = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags of a run, see `job_flags`.

  `partition_arguments`, `aggregator_arguments`, `attack_arguments` and
  `optimizer_arguments` hold those that are given to the chosen function or
  optimizer, `algorithm_arguments` all that the algorithm takes.
  `has_local_models` says whether the optimizer is one with which workers train
  models of their own, or send parts; `takes_loss` whether the rule scores
  updates by a loss. `flags` has the text of each flag that is set and bears on
  the run, as it stands in a flagfile.
  """

  model: str
  data: str
  seed: int
  workers: int
  batch_size: int
  partition: str
  partition_arguments: Arguments
  strategy: str
  replicas: int | None
  heartbeat_timeout_s: float | None
  aggregator: str
  aggregator_arguments: Arguments
  takes_loss: bool
  validation_batch_size: int
  attack: str | None
  attack_arguments: Arguments
  byzantine: tuple[int, ...]
  attack_start_step: int
  optimizer: str
  optimizer_arguments: Arguments
  has_local_models: bool
  algorithm: str
  algorithm_arguments: Arguments
  local_cluster: ClusterSize | None
  listen_on_network: bool
  max_restarts: int
  cluster_timeout_s: float
  learning_rate: float
  decay_steps: tuple[int, ...]
  decay_factor: float
  steps: int
  evaluate_every: int
  checkpoint_every: int
  output: str | None
  overwrite: bool
  flags: Mapping[str, str]


def parse_settings(argv: Sequence[str]) -> Settings:
  """Returns the settings that the arguments stand for.

  Args:
    argv: the command's arguments, without its name.

  Raises:
    ValueError: they are wrong; one line that names the flag.
  """
  parsed = parse_flags(argv)
  values = {name: parsed[name].value for name in parsed}
  settings = _settings(values, chosen_arguments(values), flag_texts(parsed))
  _check_numbers(values)
  _check_attack(settings)
  _check_scoring(values, settings)
  _check_optimizer(values, settings)
  _check_local_models(settings)
  _check_run(values, settings)
  check_algorithm(values, settings)
  _check_strategy(settings)
  return settings


def _settings(
  values: Mapping[str, object],
  arguments: Mapping[str, Arguments],
  texts: Mapping[str, str],
) -> Settings:
  rule = signatures()["aggregator"][values["aggregator"]]
  derived = {
    **{f"{kind}_arguments": given for kind, given in arguments.items()},
    "algorithm_arguments": complete_arguments(
      values["algorithm"], arguments["algorithm"], arguments["staleness"]
    ),
    "takes_loss": "loss" in rule,
    "flags": texts,
    "byzantine": tuple(values["byzantine"] or ()),
    "decay_steps": tuple(values["decay_steps"] or ()),
    "optimizer_arguments": {
      name: values[name]
      for name in OPTIMIZERS[values["optimizer"]]
      if values[name] is not None
    },
    "has_local_models": values["optimizer"] in LOCAL,
  }
  zeno_plus_plus = values["algorithm"] == "zeno_plus_plus"
  defaults = {
    "validation_batch_size": 100 if zeno_plus_plus else 4,
    "max_restarts": 10,
    "cluster_timeout_s": 60.0,
    "checkpoint_every": values["evaluate_every"],
    "decay_factor": 0.1,
  }
  names = {field.name for field in dataclasses.fields(Settings)}
  plain = {name: values[name] for name in names - derived.keys()}
  unset = {name: x for name, x in defaults.items() if values[name] is None}
  derived.pop("staleness_arguments")
  return Settings(**{**plain, **derived, **unset})


def _check_numbers(values: Mapping[str, object]) -> None:
  for name, value in values.items():
    # What non-finite attackers send is the one that may be.
    if isinstance(value, float) and not math.isfinite(value):
      if name != "value":
        raise ValueError(f"--{name}={value} must be a finite number")
  if values["learning_rate"] <= 0:
    raise ValueError(
      f"--learning_rate={values['learning_rate']} must be above 0"
    )


def _check_attack(settings: Settings) -> None:
  attack, workers = settings.attack, settings.workers
  if attack is None:
    if settings.byzantine or settings.attack_start_step:
      given = "byzantine" if settings.byzantine else "attack_start_step"
      raise ValueError(f"--{given} needs --attack, what Byzantine workers do")
    return
  if not settings.byzantine:
    raise ValueError(
      f"--attack={attack} needs --byzantine, the workers that attack, such as"
      " 0,3,5 or 0-5"
    )
  for worker in settings.byzantine:
    if worker >= workers:
      raise ValueError(
        f"--byzantine: there is no worker {worker}; --workers={workers} makes"
        f" workers 0 to {workers - 1}"
      )
    if settings.byzantine.count(worker) > 1:
      raise ValueError(f"--byzantine names worker {worker} more than once")
  if settings.attack_start_step >= settings.steps:
    raise ValueError(
      f"--attack_start_step={settings.attack_start_step} is never reached; with"
      f" --steps={settings.steps} it must be below {settings.steps}"
    )


def _check_scoring(values: Mapping[str, object], settings: Settings) -> None:
  if settings.algorithm == "zeno_plus_plus":
    return
  if values["validation_batch_size"] is not None and not settings.takes_loss:
    raise ValueError(
      f"--validation_batch_size is not for --aggregator={settings.aggregator},"
      " which takes no loss"
    )


def _check_optimizer(values: Mapping[str, object], settings: Settings) -> None:
  for name in sorted({x for taken in OPTIMIZERS.values() for x in taken}):
    takers = [x for x, taken in OPTIMIZERS.items() if name in taken]
    if values[name] is not None and settings.optimizer not in takers:
      raise ValueError(
        f"--{name} is not for --optimizer={settings.optimizer}; it is taken by"
        f" --optimizer={' or '.join(takers)}"
      )
  momentum = values["momentum"]
  if momentum is not None and not 0 <= momentum < 1:
    raise ValueError(f"--momentum={momentum} must be at least 0 and below 1")
  steps = settings.decay_steps
  if values["decay_factor"] is not None and not steps:
    raise ValueError("--decay_factor needs --decay_steps")
  if settings.decay_factor <= 0:
    raise ValueError(f"--decay_factor={settings.decay_factor} must be above 0")
  if list(steps) != sorted(set(steps)) or 0 in steps:
    raise ValueError(
      f"--decay_steps={','.join(map(str, steps))} must ascend, from 1 on"
    )


def _check_local_models(settings: Settings) -> None:
  if not settings.has_local_models:
    return
  if settings.aggregator != "mean":
    raise ValueError(
      f"--aggregator={settings.aggregator} is not for --optimizer="
      f"{settings.optimizer}, which averages what the workers send: take one of"
      " them"
    )
  if settings.attack not in (None, LABEL_FLIP):
    raise ValueError(
      f"--attack={settings.attack} is on the updates that a rule aggregates,"
      f" and with --optimizer={settings.optimizer} none does: {LABEL_FLIP}, on"
      " the examples, is the attack that works with it"
    )


def _check_run(values: Mapping[str, object], settings: Settings) -> None:
  if settings.workers < 2:
    raise ValueError(f"--workers={settings.workers} must be at least 2")
  every = settings.evaluate_every
  if settings.checkpoint_every % every:
    lower = max(settings.checkpoint_every // every, 1) * every
    raise ValueError(
      f"--checkpoint_every={settings.checkpoint_every} is not a multiple of"
      f" --evaluate_every={every}: checkpoints are made at evaluations; try"
      f" {lower} or {lower + every}"
    )
  for name in ("checkpoint_every", "overwrite"):
    if values[name] and not settings.output:
      raise ValueError(f"--{name} needs --output")


def _check_strategy(settings: Settings) -> None:
  if settings.replicas and settings.strategy != "mirrored":
    raise ValueError(
      f"--replicas is not for --strategy={settings.strategy}; it is taken by"
      " --strategy=mirrored"
    )
  patience = settings.heartbeat_timeout_s
  if patience is not None and settings.strategy != "multi_worker":
    raise ValueError(
      f"--heartbeat_timeout_s is not for --strategy={settings.strategy}; it is"
      " taken by --strategy=multi_worker"
    )
  if patience is not None and patience <= 0:
    raise ValueError(f"--heartbeat_timeout_s={patience} must be above 0")
  if settings.replicas and settings.workers % settings.replicas:
    raise ValueError(
      f"--workers={settings.workers} cannot be spread evenly over"
      f" --replicas={settings.replicas}"
    )
