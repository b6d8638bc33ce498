"""The flags of `robust-train` for few devices at a time, and for clusters.

Which algorithm takes which is in `algorithms`.
"""

import dataclasses
import re

from absl import flags

from robust_tf.federated.sampling import SAMPLINGS
from robust_tf.federated.staleness import STALENESS
from robust_tf.training.algorithms import ALGORITHMS
from robust_tf.training.algorithms import SYNCHRONOUS

FEDERATED = "few devices at a time"
CLUSTER = "a cluster of processes"

# Flags that say how a run is carried out, which may change when it goes on.
MAY_CHANGE = frozenset({"cluster_timeout_s", "local_cluster", "max_restarts"})


class LocalStepsParser(flags.ArgumentParser):
  """Parses how many local steps a device takes: "10", or a range "5-15"."""

  syntactic_help = "a number, such as 10, or a range, such as 5-15"
  _RANGE = re.compile(r"(\d+)(?:-(\d+))?")

  def parse(self, argument: str | int | tuple[int, int]):
    """Returns the number, or the smallest and the largest.

    Raises:
      ValueError: it is neither, or not above 0.
    """
    if not isinstance(argument, str):
      return argument
    match = self._RANGE.fullmatch(argument.strip())
    if not match:
      raise ValueError(f"{argument!r} is not {self.syntactic_help}")
    fewest, most = int(match[1]), int(match[2] or match[1])
    if not 1 <= fewest <= most:
      raise ValueError(
        f"{argument} must be at least 1, and a range must ascend"
      )
    return (fewest, most) if match[2] else fewest

  def flag_type(self) -> str:
    """Returns the type's name."""
    return "number or range"


class LocalStepsSerializer(flags.ArgumentSerializer):
  """Writes what `LocalStepsParser` reads."""

  def serialize(self, value: int | tuple[int, int]) -> str:
    """Returns the text of a number, or of a range."""
    return str(value) if isinstance(value, int) else f"{value[0]}-{value[1]}"


@dataclasses.dataclass(frozen=True)
class ClusterSize:
  """How many processes a local cluster has, beside the coordinator.

  Attributes:
    workers: those that run devices' tasks.
    ps: parameter servers, which hold the published model.
  """

  workers: int
  ps: int

  def __str__(self) -> str:
    return f"workers:{self.workers},ps:{self.ps}"


class ClusterSizeParser(flags.ArgumentParser):
  """Parses the size of a cluster: "workers:4,ps:2"."""

  syntactic_help = "numbers of processes of at least 1, such as workers:4,ps:2"
  _SIZE = re.compile(r"workers:([1-9]\d*),ps:([1-9]\d*)")

  def parse(self, argument: str | ClusterSize) -> ClusterSize | None:
    """Returns the numbers; None for "none", which a flagfile's gives way to.

    Raises:
      ValueError: it is no such size.
    """
    if isinstance(argument, ClusterSize):
      return argument
    if argument == "none":
      return None
    match = self._SIZE.fullmatch(argument.replace(" ", ""))
    if not match:
      raise ValueError(f"{argument!r} is not {self.syntactic_help}")
    return ClusterSize(int(match[1]), int(match[2]))

  def flag_type(self) -> str:
    """Returns the type's name."""
    return "size of a cluster"


class ClusterSizeSerializer(flags.ArgumentSerializer):
  """Writes what `ClusterSizeParser` reads."""

  def serialize(self, value: ClusterSize) -> str:
    """Returns the text of a size."""
    return str(value)


def define_federated_flags(values: flags.FlagValues, list_parser) -> None:
  """Defines the flags of what few devices at a time do.

  Args:
    values: gets them.
    list_parser: reads lists of integers.
  """
  group = {"flag_values": values, "module_name": FEDERATED}
  flags.DEFINE_enum(
    "algorithm",
    SYNCHRONOUS,
    [*ALGORITHMS],
    "synchronous: all workers take part in every step. With the others"
    " --workers is the number of devices, of which few train at a time, each"
    " for some steps of --optimizer on its own examples, and --steps is the"
    " number of updates of the server's model. fed_async mixes each device's"
    " model in as it comes. slsgd mixes in what --aggregator makes of a round;"
    " fed_avg puts it in place of the model, and with --local_steps=1 is"
    " synchronous training on the first of a round to arrive. zeno_plus_plus"
    " takes each update that the server's own examples speak for. Of attacks,"
    " label_flip goes with all, those on updates with rounds.",
    **group,
  )
  _define_local(values, group)
  _define_rounds(group)
  _define_mixing(group, list_parser)
  _define_staleness(group)
  flags.DEFINE_integer(
    "refresh_every",
    None,
    "Versions after which the server computes the gradient anew that updates"
    " are compared with, on --validation_batch_size examples.",
    lower_bound=1,
    **group,
  )
  flags.DEFINE_float(
    "zeno_epsilon",
    None,
    "How much the loss may rise by an update that is accepted.",
    **group,
  )


def _define_local(values: flags.FlagValues, group) -> None:
  flags.DEFINE(
    LocalStepsParser(),
    "local_steps",
    None,
    "Steps that a device takes, H; of a range, such as 5-15, a number is drawn"
    " for each task. Default: 10; with zeno_plus_plus 1.",
    serializer=LocalStepsSerializer(),
    **group,
  )
  flags.DEFINE_float(
    "proximal_weight",
    None,
    "How much a device is held to the model that it started from.",
    lower_bound=0,
    **group,
  )
  flags.DEFINE_enum(
    "sampling",
    None,
    [*SAMPLINGS],
    "How devices are drawn. permutation: none again before all others. uniform:"
    " whatever was drawn before.",
    **group,
  )
  flags.DEFINE_float(
    "deadline_s",
    None,
    "After how many seconds a device is not waited for any more. Default: it"
    " is waited for.",
    **group,
  )
  flags.DEFINE_integer(
    "concurrency",
    None,
    "Devices that train at the same time in a cluster. Default: as many as it"
    " has workers. In one process they take turns.",
    lower_bound=1,
    **group,
  )


def _define_rounds(group) -> None:
  flags.DEFINE_integer(
    "devices_per_round",
    None,
    "Devices that are asked in each round.",
    lower_bound=1,
    **group,
  )
  flags.DEFINE_integer(
    "arrivals_per_round",
    None,
    "In a cluster, the first so many to arrive make the round. Default: all.",
    lower_bound=1,
    **group,
  )


def _define_mixing(group, list_parser) -> None:
  flags.DEFINE_float(
    "mixing_weight",
    None,
    "Weight of what is new in the server's model, above 0 and at most 1.",
    **group,
  )
  flags.DEFINE(
    list_parser,
    "mixing_decay_steps",
    None,
    "Versions at which it is multiplied by --mixing_decay_factor.",
    serializer=flags.ListSerializer(","),
    **group,
  )
  flags.DEFINE_float(
    "mixing_decay_factor", None, "See --mixing_decay_steps.", **group
  )


def _define_staleness(group) -> None:
  flags.DEFINE_enum(
    "staleness",
    None,
    [*STALENESS],
    "How the mixing weight falls with the versions that the server has made"
    " since the device's start.",
    **group,
  )
  flags.DEFINE_float("staleness_decay", None, "How fast.", **group)
  flags.DEFINE_float(
    "staleness_tolerated", None, "Up to where it does not fall.", **group
  )
  flags.DEFINE_float("staleness_floor", None, "It ends at 1 / this.", **group)
  flags.DEFINE_integer(
    "max_staleness",
    None,
    "What is staler is refused. Default: nothing is.",
    lower_bound=0,
    **group,
  )
  flags.DEFINE_integer(
    "simulated_staleness",
    None,
    "In one process, devices start from the model of 0 to so many versions ago,"
    " drawn anew for each task.",
    lower_bound=0,
    **group,
  )


def define_cluster_flags(values: flags.FlagValues) -> None:
  """Defines the flags of `--strategy=parameter_server`."""
  group = {"flag_values": values, "module_name": CLUSTER}
  flags.DEFINE(
    ClusterSizeParser(),
    "local_cluster",
    None,
    "With --strategy=parameter_server: starts so many processes on this"
    " machine, such as workers:4,ps:2, and a coordinator, and starts them again"
    " if they die; without --output a coordinator begins anew. Default:"
    " TF_CONFIG says which of the processes, on whatever"
    " hosts, this one is.",
    serializer=ClusterSizeSerializer(),
    **group,
  )
  flags.DEFINE_bool(
    "listen_on_network",
    False,
    "With --local_cluster: lets other machines connect to the processes, which"
    " ask for no password. Default: they run in a network of their own.",
    **group,
  )
  flags.DEFINE_integer(
    "max_restarts",
    None,
    "With --local_cluster: how often, in all. Default: 10.",
    lower_bound=0,
    **group,
  )
  flags.DEFINE_float(
    "cluster_timeout_s",
    None,
    "With --strategy=parameter_server: how long the coordinator waits for the"
    " other processes to answer at the start, and for parameter servers later."
    " Default: 60.",
    **group,
  )
