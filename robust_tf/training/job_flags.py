"""The flags of `robust-train`.

A flag has the name of the argument that it sets. Those that rules, attacks and
partitions take are unset by default, and then the function's own default holds;
which function takes which is read from the functions, see `choices`.
"""

import dataclasses
import re
from collections.abc import Sequence

from absl import flags

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training import data
from robust_tf.training.choices import near
from robust_tf.training.federated_flags import define_cluster_flags
from robust_tf.training.federated_flags import define_federated_flags

TASK = "what is learned"
WORKERS = "the workers"
AGGREGATOR = "the aggregation rule"
ATTACK = "the attack"
OPTIMIZER = "the optimizer"
RUN = "the run"

MODELS = ("mlp", "cnn")
STRATEGIES = ("none", "mirrored", "multi_worker", "parameter_server")
# Flags that say where a run's files go and how its processes talk, and
# nothing about the run.
PLACE = frozenset(
  {"output", "overwrite", "heartbeat_timeout_s", "listen_on_network"}
)

# Of absl's own, which are no settings.
_ABSL = frozenset({"flagfile", "undefok"})

# The flags that each optimizer takes, beside the learning rate. The first take
# the aggregated update, each once for all workers.
AGGREGATING = {
  "sgd": (),
  "momentum": ("momentum",),
  "adam": (),
  "adagrad": (),
  "rmsprop": (),
}
# With these each worker has a model of its own, or sends a part of its step.
LOCAL = {
  "cser": (
    "momentum",
    "sync_period",
    "reset_compressor",
    "gradient_compressor",
  ),
  "csea": ("momentum", "compressor"),
  "cser_pl": ("momentum", "sync_period", "compressor"),
  "local_sgd": ("momentum", "sync_period"),
  "error_feedback_sgd": ("momentum", "compressor"),
  "qsparse_local_sgd": ("momentum", "sync_period", "compressor"),
  "adaalter": (),
  "local_adaalter": ("sync_period",),
}
OPTIMIZERS = {**AGGREGATING, **LOCAL}

# The argument of each compressor that its flag gives after a colon.
COMPRESSORS = {
  "identity": None,
  "zero": None,
  "grbs": "ratio",
  "random_k": "ratio",
  "top_k": "ratio",
  "scaled_sign": None,
  "qsgd": "levels",
}


class IntegerListParser(flags.ArgumentParser):
  """Parses integers and ranges: "0,3,5" or "0-5,8"."""

  syntactic_help = "integers and ranges, such as 0,3,5 or 0-5"
  _ITEM = re.compile(r"(\d+)(?:-(\d+))?")

  def parse(self, argument: str | Sequence[int]) -> list[int]:
    """Returns the integers, in the order given.

    Raises:
      ValueError: it is no such list.
    """
    if not isinstance(argument, str):
      return list(argument)
    numbers = []
    for item in argument.split(","):
      match = self._ITEM.fullmatch(item.strip())
      if not match:
        raise ValueError(f"{item!r} is not one of {self.syntactic_help}")
      first, last = int(match[1]), int(match[2] or match[1])
      if last < first:
        raise ValueError(f"the range {item!r} ends before it begins")
      numbers.extend(range(first, last + 1))
    return numbers

  def flag_type(self) -> str:
    """Returns the type's name."""
    return "list of integers"


@dataclasses.dataclass(frozen=True)
class CompressorChoice:
  """A compressor that a flag names.

  Attributes:
    name: of `COMPRESSORS`.
    number: its ratio or levels; None for its default, or where it takes none.
  """

  name: str
  number: float | None = None

  def __str__(self) -> str:
    return self.name if self.number is None else f"{self.name}:{self.number:g}"


class CompressorParser(flags.ArgumentParser):
  """Parses a compressor: "grbs:32", "top_k:16", "scaled_sign"."""

  syntactic_help = "a compressor, such as grbs:32, top_k:16 or scaled_sign"

  def parse(self, argument: str | CompressorChoice) -> CompressorChoice:
    """Returns the compressor's name and number.

    Raises:
      ValueError: there is no such compressor, or it has no such number.
    """
    if isinstance(argument, CompressorChoice):
      return argument
    name, colon, text = argument.partition(":")
    if name not in COMPRESSORS:
      raise ValueError(
        f"{name!r} is no compressor{near(name, COMPRESSORS)}; there are:"
        f" {', '.join(COMPRESSORS)}"
      )
    argument_name = COMPRESSORS[name]
    if not colon and argument_name != "ratio":
      return CompressorChoice(name)
    if argument_name is None:
      raise ValueError(f"{name} takes no number")
    try:
      number = int(text) if argument_name == "levels" else float(text)
    except ValueError:
      raise ValueError(
        f"{argument!r} needs a number after the colon, as {name}:16, its"
        f" {argument_name}"
      ) from None
    return CompressorChoice(name, number)

  def flag_type(self) -> str:
    """Returns the type's name."""
    return "compressor"


class CompressorSerializer(flags.ArgumentSerializer):
  """Writes what `CompressorParser` reads."""

  def serialize(self, value: CompressorChoice) -> str:
    """Returns the text of a compressor."""
    return str(value)


def define_flags(values: flags.FlagValues) -> None:
  """Defines all flags.

  Args:
    values: gets them, in groups that absl calls modules.
  """
  _define_task(values)
  _define_workers(values)
  _define_patience(values)
  _define_aggregator(values)
  _define_attack(values)
  _define_optimizer(values)
  define_federated_flags(values, IntegerListParser())
  _define_run(values)
  define_cluster_flags(values)


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
      f"{near(error.flagname, list(values), '--')}; see --help"
    ) from None
  except flags.Error as error:
    raise ValueError(str(error)) from None
  if rest:
    raise ValueError(f"{rest[0]!r} is not a flag; flags look like --steps=300")
  return values


def flag_texts(values: flags.FlagValues) -> dict[str, str]:
  """Returns the text of each flag that is set and bears on the run."""
  return {
    name: _text(values[name])
    for name in sorted(values)
    if name not in PLACE | _ABSL and values[name].value is not None
  }


def _text(flag: flags.Flag) -> str:
  if flag.boolean:
    return str(flag.value).lower()
  return flag.serialize().removeprefix(f"--{flag.name}=")


def _define_task(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": TASK}
  flags.DEFINE_enum("model", "mlp", MODELS, "The network.", **group)
  flags.DEFINE_string(
    "data",
    "digits",
    f"The examples: {', '.join(data.NAMES)}, or an .npz file in Keras' layout"
    " (x_train, y_train, x_test, y_test).",
    **group,
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Of all that is random: weights, splits, batches, attacks.",
    lower_bound=0,
    upper_bound=2**31 - 1,
    **group,
  )


def _define_workers(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": WORKERS}
  flags.DEFINE_integer("workers", 20, "How many, n.", lower_bound=1, **group)
  flags.DEFINE_integer(
    "batch_size", 32, "Examples per worker and step.", lower_bound=1, **group
  )
  flags.DEFINE_enum(
    "partition", "iid", [*PARTITIONS], "Who holds which examples.", **group
  )
  flags.DEFINE_float(
    "dirichlet_alpha", None, "Small: few classes a worker.", **group
  )
  flags.DEFINE_integer(
    "shards_per_worker", None, "Of examples sorted by label.", **group
  )
  flags.DEFINE_bool(
    "balanced", None, "Whether all hold equally many examples.", **group
  )
  flags.DEFINE_enum(
    "strategy",
    "none",
    STRATEGIES,
    "none: all workers on one device, in one vectorised step. mirrored: over"
    " the devices of this process. multi_worker: over the processes of"
    " TF_CONFIG. Workers are spread evenly over the devices. parameter_server:"
    " devices' tasks go to whichever process is free, see --algorithm and"
    " --local_cluster.",
    **group,
  )
  flags.DEFINE_integer(
    "replicas",
    None,
    "Devices of --strategy=mirrored. Default: all GPUs; without any, one CPU"
    " device per worker.",
    lower_bound=1,
    **group,
  )


def _define_patience(values: flags.FlagValues) -> None:
  flags.DEFINE_float(
    "heartbeat_timeout_s",
    None,
    "After how long without a sign of life --strategy=multi_worker takes a"
    " process for dead; on slow links such signs wait behind the gradients."
    " Default: TensorFlow's 10.",
    flag_values=values,
    module_name=WORKERS,
  )


def _define_aggregator(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": AGGREGATOR}
  flags.DEFINE_string("aggregator", "mean", "The rule.", **group)
  flags.DEFINE_integer("trim", None, "Values cut off on each side.", **group)
  flags.DEFINE_integer(
    "num_byzantine", None, "Byzantine workers that the rule expects.", **group
  )
  flags.DEFINE_integer("num_selected", None, "Updates averaged.", **group)
  flags.DEFINE_integer("num_suspected", None, "Updates dropped.", **group)
  flags.DEFINE_float("rho", None, "Weight of the norm's penalty.", **group)
  flags.DEFINE_string(
    "penalty", None, "On the sum or the mean of squares.", **group
  )
  flags.DEFINE_float("tolerance", None, "Where iterations end.", **group)
  flags.DEFINE_integer("max_iterations", None, "And at the latest.", **group)
  flags.DEFINE_integer(
    "validation_batch_size",
    None,
    "Training examples on which the server scores updates at each step, for"
    " rules that take a loss; default: 4. With zeno_plus_plus: on which it"
    " computes its gradient; default: 100.",
    lower_bound=1,
    **group,
  )


def _define_attack(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": ATTACK}
  flags.DEFINE_string("attack", None, "What Byzantine workers do.", **group)
  flags.DEFINE(
    IntegerListParser(),
    "byzantine",
    None,
    "Which workers attack, such as 0,3,5 or 0-5.",
    serializer=flags.ListSerializer(","),
    **group,
  )
  flags.DEFINE_integer(
    "attack_start_step", 0, "Before it all are honest.", lower_bound=0, **group
  )
  flags.DEFINE_float("epsilon", None, "Times minus the honest mean.", **group)
  flags.DEFINE_float("z", None, "Deviations from the honest mean.", **group)
  flags.DEFINE_float("stddev", None, "Of the noise.", **group)
  flags.DEFINE_float("scale", None, "Factor of what is sent.", **group)
  flags.DEFINE_bool("copies", None, "Whether all send the same.", **group)
  flags.DEFINE_integer("num_coordinates", None, "How many are hit.", **group)
  flags.DEFINE(
    IntegerListParser(),
    "bits",
    None,
    "Bits of a float32 that are flipped, 0 the lowest.",
    serializer=flags.ListSerializer(","),
    **group,
  )
  flags.DEFINE_float("probability", None, "Of a value to be hit.", **group)
  flags.DEFINE_integer("num_servers", None, "One of them is hit.", **group)
  flags.DEFINE_integer("target", None, "The worker that is copied.", **group)
  flags.DEFINE_float("value", None, "What is sent: nan, inf, -inf.", **group)
  flags.DEFINE_float("weakest", None, "Lowest strength tried.", **group)
  flags.DEFINE_float("strongest", None, "Highest strength tried.", **group)
  flags.DEFINE_integer("num_evaluations", None, "Strengths tried.", **group)


def _define_optimizer(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": OPTIMIZER}
  flags.DEFINE_enum(
    "optimizer",
    "sgd",
    list(OPTIMIZERS),
    f"{', '.join(AGGREGATING)} take the aggregated update. With"
    f" {', '.join(LOCAL)} each worker has a model of its own, or sends a part"
    " of its step.",
    **group,
  )
  flags.DEFINE_float("learning_rate", 0.1, "At the start.", **group)
  flags.DEFINE_float("momentum", None, "Default: 0.9.", **group)
  flags.DEFINE_integer(
    "sync_period",
    None,
    "Steps from one synchronisation to the next, H.",
    lower_bound=1,
    **group,
  )
  for name, sent in (
    ("compressor", "is sent"),
    ("reset_compressor", "of the error is averaged every H steps"),
    ("gradient_compressor", "of each step is sent"),
  ):
    flags.DEFINE(
      CompressorParser(),
      name,
      None,
      f"What {sent}: {', '.join(COMPRESSORS)}, with its ratio or levels after a"
      " colon, as grbs:32.",
      serializer=CompressorSerializer(),
      **group,
    )
  flags.DEFINE(
    IntegerListParser(),
    "decay_steps",
    None,
    "Steps at which the learning rate is multiplied by --decay_factor.",
    serializer=flags.ListSerializer(","),
    **group,
  )
  flags.DEFINE_float(
    "decay_factor", None, "See --decay_steps. Default: 0.1.", **group
  )


def _define_run(values: flags.FlagValues) -> None:
  group = {"flag_values": values, "module_name": RUN}
  flags.DEFINE_integer(
    "steps", 300, "Updates of the model.", lower_bound=1, **group
  )
  flags.DEFINE_integer(
    "evaluate_every", 50, "Steps between evaluations.", lower_bound=1, **group
  )
  flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Steps between checkpoints, a multiple of --evaluate_every. Default: at"
    " each evaluation.",
    lower_bound=1,
    **group,
  )
  flags.DEFINE_string(
    "output",
    None,
    "Folder for results, logs and checkpoints. If it holds a checkpoint of"
    " this run, the run goes on from there. Default: nothing is written.",
    **group,
  )
  flags.DEFINE_bool(
    "overwrite", False, "Replaces another run in --output.", **group
  )
