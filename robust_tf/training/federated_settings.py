"""What is wrong with flags for few devices at a time, found without TensorFlow.

Each function returns nothing, or raises the one error that says what to do.
"""

from collections.abc import Mapping

from robust_tf.federated.staleness import STALENESS
from robust_tf.training.algorithms import ALGORITHMS
from robust_tf.training.algorithms import ASYNCHRONOUS
from robust_tf.training.algorithms import ROUNDS
from robust_tf.training.algorithms import STALENESS_PREFIX
from robust_tf.training.algorithms import SYNCHRONOUS
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.job_flags import LOCAL

_CLUSTER_FLAGS = (
  "local_cluster",
  "cluster_timeout_s",
  "deadline_s",
  "concurrency",
  "arrivals_per_round",
)


def complete_arguments(
  algorithm: str,
  given: Mapping[str, object],
  staleness_given: Mapping[str, object],
) -> dict[str, object]:
  """Returns all arguments of an algorithm.

  Args:
    algorithm: a key of `ALGORITHMS`.
    given: those whose flags are set.
    staleness_given: the flags that are set of the staleness function's.

  Returns:
    By flag; `staleness` is the function of that name, with its parameters.

  Raises:
    ValueError: the staleness function refuses its parameters.
  """
  arguments = {**ALGORITHMS[algorithm], **given}
  for name in ("staleness", "mixing_decay_steps"):
    if name not in arguments:
      continue
    if name == "mixing_decay_steps":
      arguments[name] = tuple(arguments[name])
      continue
    try:
      arguments[name] = STALENESS[arguments[name]](
        **{
          flag.removeprefix(STALENESS_PREFIX): value
          for flag, value in staleness_given.items()
        }
      )
    except ValueError as error:
      raise ValueError(
        f"--staleness={arguments[name]}: {STALENESS_PREFIX}{error}"
      ) from None
  return arguments


def check_algorithm(values: Mapping[str, object], settings) -> None:
  """Checks what goes with an algorithm, and what it takes.

  Args:
    values: of all flags, by name; None where one is not set.
    settings: what they stand for, a `settings.Settings`.

  Raises:
    ValueError: they do not go together.
  """
  _check_strategy(values, settings)
  if settings.algorithm == SYNCHRONOUS:
    return
  _check_optimizer(settings)
  _check_devices(settings)
  _check_mixing(values, settings)
  if settings.algorithm in ASYNCHRONOUS:
    _check_one_at_a_time(settings)


def _check_strategy(values: Mapping[str, object], settings) -> None:
  algorithm, strategy = settings.algorithm, settings.strategy
  if strategy == "parameter_server" and algorithm == SYNCHRONOUS:
    raise ValueError(
      "--strategy=parameter_server is not for --algorithm=synchronous: an"
      " optimizer there sees the gradients of one worker at a time, and has"
      " nothing to aggregate; take --algorithm=fed_avg with --local_steps=1 and"
      " --devices_per_round, where the coordinator applies the rule to the"
      " first --arrivals_per_round"
    )
  if strategy in ("mirrored", "multi_worker") and algorithm != SYNCHRONOUS:
    raise ValueError(
      f"--strategy={strategy} is not for --algorithm={algorithm}; take none, or"
      " parameter_server"
    )
  if strategy != "parameter_server":
    for name in _CLUSTER_FLAGS:
      if values[name] is not None:
        raise ValueError(
          f"--{name} is not for --strategy={strategy}; it is taken by"
          " --strategy=parameter_server"
        )
  for name in ("max_restarts", "listen_on_network"):
    if values[name] not in (None, False) and values["local_cluster"] is None:
      raise ValueError(f"--{name} needs --local_cluster")
  for name in ("deadline_s", "cluster_timeout_s"):
    if values[name] is not None and values[name] <= 0:
      raise ValueError(f"--{name}={values[name]} must be above 0")
  if strategy == "parameter_server" and values["simulated_staleness"]:
    raise ValueError(
      "--simulated_staleness is for --strategy=none; with parameter_server"
      " staleness is what it is"
    )


def _check_optimizer(settings) -> None:
  if settings.optimizer in LOCAL:
    raise ValueError(
      f"--optimizer={settings.optimizer} is for --algorithm=synchronous; a"
      " device's local steps are of sgd, momentum, adam, adagrad or rmsprop"
    )
  if settings.decay_steps:
    takes = "mixing_decay_steps" in settings.algorithm_arguments
    raise ValueError(
      "--decay_steps is for --algorithm=synchronous: here an optimizer begins"
      f" anew with each task{'; take --mixing_decay_steps' if takes else ''}"
    )


def _check_devices(settings) -> None:
  """Checks how many devices train at a time, of those that there are."""
  arguments, devices = settings.algorithm_arguments, settings.workers
  for name in ("concurrency", "devices_per_round"):
    count = arguments.get(name)
    if count is not None and count > devices:
      raise ValueError(
        f"--{name}={count} is more than the --workers={devices} devices"
      )
  if settings.algorithm in ROUNDS:
    arrivals, asked = (
      arguments["arrivals_per_round"],
      arguments["devices_per_round"],
    )
    if arrivals is not None and arrivals > asked:
      raise ValueError(
        f"--arrivals_per_round={arrivals} is more than"
        f" --devices_per_round={asked}"
      )
    trim = settings.aggregator_arguments.get("trim")
    # Where not all take part in a round, it is chance how many attack.
    if asked == devices and trim is not None and len(settings.byzantine) > trim:
      raise ValueError(
        f"--byzantine names {len(settings.byzantine)} devices, and all of them"
        f" take part in each round: --trim={trim} withstands {trim} at most;"
        " raise it, or take fewer --devices_per_round"
      )


def _check_mixing(values: Mapping[str, object], settings) -> None:
  arguments = settings.algorithm_arguments
  if "mixing_weight" not in arguments:
    return
  weight = arguments["mixing_weight"]
  if not 0 < weight <= 1:
    raise ValueError(f"--mixing_weight={weight} must be above 0 and at most 1")
  steps = arguments["mixing_decay_steps"]
  if values["mixing_decay_factor"] is not None and not steps:
    raise ValueError("--mixing_decay_factor needs --mixing_decay_steps")
  factor = arguments["mixing_decay_factor"]
  if not 0 < factor <= 1:
    raise ValueError(
      f"--mixing_decay_factor={factor} must be above 0 and at most 1"
    )
  if list(steps) != sorted(set(steps)) or 0 in steps:
    raise ValueError(
      f"--mixing_decay_steps={','.join(map(str, steps))} must ascend, from 1 on"
    )


def _check_one_at_a_time(settings) -> None:
  """Checks what is for rounds of several devices."""
  if settings.aggregator != "mean":
    raise ValueError(
      f"--aggregator={settings.aggregator} makes one update of several, and"
      f" with --algorithm={settings.algorithm} they come one at a time; take"
      f" --algorithm={' or '.join(ROUNDS)}"
    )
  if settings.attack not in (None, LABEL_FLIP):
    raise ValueError(
      f"--attack={settings.attack} replaces updates of a round, and with"
      f" --algorithm={settings.algorithm} there are none; {LABEL_FLIP}, on the"
      " examples, is the attack that works with it"
    )
