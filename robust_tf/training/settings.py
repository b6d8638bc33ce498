"""What a run is to do: the flags, checked against each other.

Everything that can be known to be wrong without TensorFlow and without the
examples is found here.
"""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence

from absl import flags

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training.job_flags import define_flags
from robust_tf.training.signatures import read_signatures

# Attacks on a worker's examples, beside the attacks on its update.
LABEL_FLIP = "label_flip"

# Arguments that the job itself gives to rules, attacks and partitions.
SUPPLIED = frozenset(
  {
    "aggregator", "attack", "byzantine", "labels", "learning_rate", "loss",
    "num_workers", "seed", "updates",
  }
)  # fmt: skip

# Flags that say where a run's files go, and nothing about the run.
PLACE = frozenset({"output", "overwrite"})

# Of absl's own, which name no setting.
_ABSL = frozenset({"flagfile", "undefok"})

Arguments = Mapping[str, object]
Signatures = Mapping[str, Mapping[str, str | None]]


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags of a run, see `job_flags`.

  `partition_arguments`, `aggregator_arguments` and `attack_arguments` hold
  those that the chosen function takes; `takes_loss` says whether the rule
  scores updates by a loss. `flags` has the text of each flag that is set and
  bears on the run, as it stands in a flagfile.
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
  aggregator: str
  aggregator_arguments: Arguments
  takes_loss: bool
  validation_batch_size: int
  attack: str | None
  attack_arguments: Arguments
  byzantine: tuple[int, ...]
  attack_start_step: int
  optimizer: str
  learning_rate: float
  momentum: float
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
  values = parse_flags(argv)
  tables = choice_signatures()
  chosen = {kind: values[kind].value for kind in tables}
  for kind, table in tables.items():
    if chosen[kind] is not None:
      _check_name(kind, chosen[kind], table)
  _check_parameters_taken(values, tables, chosen)
  arguments = {
    kind: _arguments(values, kind, chosen[kind], tables[kind])
    for kind in tables
  }
  rule = tables["aggregator"][chosen["aggregator"]]
  settings = _settings(values, arguments, takes_loss="loss" in rule)
  _check_numbers(values)
  _check_attack(settings)
  _check_optimizer(values, settings)
  _check_run(values, settings)
  return settings


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
  """Returns the flags' values.

  Raises:
    ValueError: an argument is no flag, or its value is not of its type.
  """
  values = flags.FlagValues()
  define_flags(values)
  try:
    rest = values(["robust-train", *argv])[1:]
  except flags.CantOpenFlagFileError as error:
    cause = error.__context__
    raise ValueError(f"--flagfile={cause.filename}: {cause.strerror}") from None
  except flags.UnrecognizedFlagError as error:
    raise ValueError(
      f"there is no flag --{error.flagname}"
      f"{_near(error.flagname, list(values), '--')}; see --help"
    ) from None
  except flags.Error as error:
    raise ValueError(str(error)) from None
  if rest:
    raise ValueError(f"{rest[0]!r} is not a flag; flags look like --steps=300")
  return values


def choice_signatures() -> dict[str, Signatures]:
  """Returns what can be chosen, by flag and name, with its parameters."""
  attacks = read_signatures("robust_tf.attacks", "ATTACKS")
  return {
    "partition": {
      name: {
        parameter.name: None
        if parameter.default is parameter.empty
        else repr(parameter.default)
        for parameter in inspect.signature(function).parameters.values()
      }
      for name, function in PARTITIONS.items()
    },
    "aggregator": read_signatures("robust_tf.aggregators", "AGGREGATORS"),
    "attack": {**attacks, LABEL_FLIP: {}},
  }


def _check_name(kind: str, name: str, table: Collection[str]) -> None:
  if name not in table:
    raise ValueError(
      f"--{kind}={name} is unknown{_near(name, table)}; there are:"
      f" {', '.join(sorted(table))}"
    )


def _near(name: str, names: Collection[str], prefix: str = "") -> str:
  """Returns a question, if there is a name that resembles this one."""
  found = difflib.get_close_matches(name, sorted(names), n=1)
  return f" (did you mean {prefix}{found[0]}?)" if found else ""


def _check_parameters_taken(
  values: flags.FlagValues,
  tables: Mapping[str, Signatures],
  chosen: Mapping[str, str | None],
) -> None:
  """Refuses a parameter that nothing takes that was chosen."""
  taken = {
    parameter
    for kind, name in chosen.items()
    for parameter in tables[kind].get(name, ())
  }
  for kind, table in tables.items():
    for parameter in _flags_of(table):
      if values[parameter].value is None or parameter in taken:
        continue
      takers = [name for name, names in table.items() if parameter in names]
      what = f"--{kind}={chosen[kind]}" if chosen[kind] else f"no --{kind}"
      raise ValueError(
        f"--{parameter} is not for {what}; it is taken by"
        f" --{kind}={' and '.join(takers)}"
      )


def _flags_of(table: Signatures) -> list[str]:
  return sorted({x for names in table.values() for x in names} - SUPPLIED)


def _arguments(
  values: flags.FlagValues, kind: str, name: str | None, table: Signatures
) -> dict[str, object]:
  """Returns the arguments of the chosen function that are given."""
  given = {}
  for parameter, default in table.get(name, {}).items():
    if parameter in SUPPLIED:
      continue
    value = values[parameter].value
    if value is not None:
      given[parameter] = value
    elif default is None:
      raise ValueError(f"--{kind}={name} needs --{parameter}")
  return given


def _settings(
  values: flags.FlagValues,
  arguments: Mapping[str, Arguments],
  takes_loss: bool,
) -> Settings:
  derived = {
    **{f"{kind}_arguments": given for kind, given in arguments.items()},
    "takes_loss": takes_loss,
    "flags": flag_texts(values),
    "byzantine": tuple(values.byzantine or ()),
    "decay_steps": tuple(values.decay_steps or ()),
    "validation_batch_size": values.validation_batch_size or 4,
    "checkpoint_every": values.checkpoint_every or values.evaluate_every,
    "momentum": 0.9 if values.momentum is None else values.momentum,
    "decay_factor": (
      0.1 if values.decay_factor is None else values.decay_factor
    ),
  }
  names = [field.name for field in dataclasses.fields(Settings)]
  plain = {x: values[x].value for x in names if x not in derived}
  return Settings(**plain, **derived)


def flag_texts(values: flags.FlagValues) -> dict[str, str]:
  """Returns the text of each flag that is set and bears on the run."""
  return {
    name: values[name].serialize().removeprefix(f"--{name}=")
    for name in sorted(values)
    if name not in PLACE | _ABSL and values[name].value is not None
  }


def _check_numbers(values: flags.FlagValues) -> None:
  for name in values:
    value = values[name].value
    # What non-finite attackers send is the one that may be.
    if isinstance(value, float) and not math.isfinite(value):
      if name != "value":
        raise ValueError(f"--{name}={value} must be a finite number")
  if values.learning_rate <= 0:
    raise ValueError(f"--learning_rate={values.learning_rate} must be above 0")


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


def _check_optimizer(values: flags.FlagValues, settings: Settings) -> None:
  if values.validation_batch_size is not None and not settings.takes_loss:
    raise ValueError(
      f"--validation_batch_size is not for --aggregator={settings.aggregator},"
      " which takes no loss"
    )
  if values.momentum is not None and settings.optimizer != "momentum":
    raise ValueError(
      f"--momentum is not for --optimizer={settings.optimizer}; it is taken by"
      " --optimizer=momentum"
    )
  if not 0 <= settings.momentum < 1:
    raise ValueError(
      f"--momentum={settings.momentum} must be at least 0 and below 1"
    )
  steps = settings.decay_steps
  if values.decay_factor is not None and not steps:
    raise ValueError("--decay_factor needs --decay_steps")
  if settings.decay_factor <= 0:
    raise ValueError(f"--decay_factor={settings.decay_factor} must be above 0")
  if list(steps) != sorted(set(steps)) or 0 in steps:
    raise ValueError(
      f"--decay_steps={','.join(map(str, steps))} must ascend, from 1 on"
    )


def _check_run(values: flags.FlagValues, settings: Settings) -> None:
  every = settings.evaluate_every
  if settings.checkpoint_every % every:
    lower = settings.checkpoint_every // every * every
    raise ValueError(
      f"--checkpoint_every={settings.checkpoint_every} is not a multiple of"
      f" --evaluate_every={every}: checkpoints are made at evaluations; try"
      f" {lower or every} or {lower + every}"
    )
  for name in ("checkpoint_every", "overwrite"):
    if values[name].present and not settings.output:
      raise ValueError(f"--{name} needs --output")
  if settings.strategy == "parameter_server":
    raise ValueError(
      "--strategy=parameter_server comes with the asynchronous algorithms and"
      " is not there yet; take none, mirrored or multi_worker"
    )
  if settings.replicas and settings.strategy != "mirrored":
    raise ValueError(
      f"--replicas is not for --strategy={settings.strategy}; it is taken by"
      " --strategy=mirrored"
    )
  if settings.replicas and settings.workers % settings.replicas:
    raise ValueError(
      f"--workers={settings.workers} cannot be spread evenly over"
      f" --replicas={settings.replicas}"
    )
