"""Memory that does not suffice, in words: the one text of every such error."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph

# A message names the devices that come nearest to fitting, and counts the rest.
_MAX_DEVICES = 4
KINDS = ("persistent", "outputs", "temporary", "received inputs")  # of memory
_ADVICE = "A smaller batch, more memory or another device would help"


@dataclasses.dataclass(frozen=True)
class Shortage:
  """Why one device cannot take an op, or all that a plan gives it.

  Attributes:
    device: index into the cluster's devices.
    needed_bytes: the bytes that the device would have to find, by their kind.
    available_bytes: the bytes that it has for them.
    at_op: name of the op at which the device would need the most, where the
      need is that of a whole plan; then all of the device's memory is
      available. Empty where the need is that of one more op.
    excluded: why the device is out of the question, whatever its memory. Empty
      if it is not.
  """

  device: int
  needed_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  available_bytes: int = 0
  at_op: str = ""
  excluded: str = ""

  @property
  def lacking_bytes(self) -> int:
    """How many bytes the device is short of."""
    return sum(self.needed_bytes.values()) - self.available_bytes


def memory_by_kind(
  persistent: int, outputs: int, temporary: int, received: int = 0
) -> dict[str, int]:
  """Returns bytes by kind, named as messages name them."""
  sizes = map(int, (persistent, outputs, temporary, received))
  return dict(zip(KINDS, sizes, strict=True))


def group_memory(graph: OpGraph, group: int) -> dict[str, int]:
  """Returns what a group takes on any device: its state and its largest op."""
  members = graph.order[graph.group[graph.order] == group]
  largest = members[graph.working_bytes[members].argmax()]
  return memory_by_kind(
    graph.group_persistent_bytes[group],
    graph.output_held_bytes[largest],
    graph.temporary_bytes[largest],
  )


def op_fits_nowhere(
  graph: OpGraph, cluster: Cluster, op: int, shortages: Sequence[Shortage]
) -> str:
  """Returns why an op fits on no device: a shortage for each of them."""
  others = int((graph.group == graph.group[op]).sum()) - 1
  group = f" (with {others} ops that must share its device)" if others else ""
  return (
    f"op {graph.names[op]!r}{group} fits on no device:"
    f" {shortage_message(cluster, shortages)}"
  )


def shortage_message(cluster: Cluster, shortages: Sequence[Shortage]) -> str:
  """Returns what each device lacks, or why it is excluded, and what may help.

  The devices that lack least come first; of many, the rest is only counted.
  """
  candidates = [x for x in shortages if not x.excluded]
  candidates.sort(key=lambda x: (x.lacking_bytes, x.device))
  parts = [_lack(cluster, x) for x in candidates[:_MAX_DEVICES]]
  if len(candidates) > _MAX_DEVICES:
    parts.append(f"{len(candidates) - _MAX_DEVICES} more devices lack no less")
  reasons = {}
  for shortage in shortages:
    if shortage.excluded:
      name = cluster.device_names[shortage.device]
      reasons.setdefault(shortage.excluded, []).append(name)
  for reason, names in reasons.items():
    few = ", ".join(names[:_MAX_DEVICES])
    if len(names) > _MAX_DEVICES:
      few += f" and {len(names) - _MAX_DEVICES} more"
    parts.append(f"not on {few}: {reason}")
  return f"{'; '.join(parts)}. {_ADVICE}"


def _lack(cluster: Cluster, shortage: Shortage) -> str:
  kinds = " + ".join(
    f"{size:,} {kind}" for kind, size in shortage.needed_bytes.items() if size
  )
  needed = f"{sum(shortage.needed_bytes.values()):,} bytes"
  name = cluster.device_names[shortage.device]
  has = f"has {max(shortage.available_bytes, 0):,}"
  if shortage.at_op:
    needed += f" at op {shortage.at_op!r}"
  else:
    has += " left"
  return f"{name} would need {needed} ({kinds}) and {has}"
