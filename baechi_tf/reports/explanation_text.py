"""An explanation of an op's place as a person reads it."""

from collections.abc import Sequence

from baechi_tf.explanation import Explanation
from baechi_tf.explanation import Move
from baechi_tf.explanation import Neighbour
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table

_SAME = 5e-4  # a change of the step that is shown as none
_MAX_NAMES = 3
_MAX_NEIGHBOURS = 8


def explanation_text(explanation: Explanation) -> str:
  """Returns all that is known of an op's place."""
  x = explanation
  parts = [
    f"{printable(x.op)} is on {x.device}, from {duration(x.start_us)} to"
    f" {duration(x.finish_us)} of a step of {duration(x.makespan_us)}\n",
    "".join(f"  {reason}\n" for reason in reasons(x)),
  ]
  for title, neighbours in (("takes", x.inputs), ("gives", x.outputs)):
    if neighbours:
      parts.append(_neighbours(title, neighbours, x.device))
  if x.moves:
    parts.append(_moves(x))
  return "\n".join(parts)


def reasons(explanation: Explanation) -> list[str]:
  """Returns why an op is where it is, the strongest reason first."""
  x = explanation
  if x.is_on_client:
    return [
      f"it is, or must be with, an input of the step, which the caller has on"
      f" {x.device}"
    ]
  found = []
  if x.group:
    found.append(f"it must be with {_names(x.group)}")
  if x.group_persistent_bytes:
    whose = "they hold" if x.group else "it holds"
    found.append(f"{whose} {size(x.group_persistent_bytes)} all the time")
  found.extend(_of_moves(x))
  here = [y for y in x.inputs if y.device == x.device and y.num_bytes]
  there = [y for y in x.inputs if y.device != x.device and y.num_bytes]
  if here or there:
    found.append(
      f"of its inputs, {_bytes_of(here)} are made on {x.device},"
      f" {_bytes_of(there)} are sent to it"
    )
  return found


def _of_moves(x: Explanation) -> list[str]:
  """Returns what the other devices would do to the step, in words."""
  roomy = [y for y in x.moves if not y.lacking_bytes]
  if x.moves and not roomy:
    return ["no other device has the memory for it"]
  if not roomy:
    return ["there is no other device"]
  best = min(roomy, key=lambda y: (y.makespan_us, y.device))
  change = _change(best, x.makespan_us)
  if change == "the same":
    return [f"on {best.device} the step would be the same"]
  beats = "the best other device" if len(roomy) > 1 else "the other device"
  return [f"on {best.device}, {beats}, the step would be {change}"]


def _change(move: Move, makespan_us: float) -> str:
  ratio = move.makespan_us / makespan_us - 1 if makespan_us else 0.0
  if abs(ratio) < _SAME:
    return "the same"
  return f"{abs(ratio):.1%} {'longer' if ratio > 0 else 'shorter'}".replace(
    "%", " %"
  )


def _bytes_of(neighbours: Sequence[Neighbour]) -> str:
  return size(sum(x.num_bytes for x in neighbours))


def _names(names: Sequence[str]) -> str:
  few = ", ".join(printable(list(names[:_MAX_NAMES])))
  more = len(names) - _MAX_NAMES
  return f"{few} and {more:,} more" if more > 0 else few


def _neighbours(
  title: str, neighbours: Sequence[Neighbour], device: str
) -> str:
  text = table(
    [title, "bytes", "there at", "device"],
    [
      [
        printable(x.name),
        size(x.num_bytes) if x.num_bytes else "control",
        duration(x.arrives_us),
        x.device if x.device != device else "same",
      ]
      for x in neighbours[:_MAX_NEIGHBOURS]
    ],
  )
  more = len(neighbours) - _MAX_NEIGHBOURS
  return text + (f"and {more:,} more\n" if more > 0 else "")


def _moves(x: Explanation) -> str:
  return table(
    ["moved to", "step", "change"],
    [
      [
        move.device,
        duration(move.makespan_us),
        _change(move, x.makespan_us),
        *(
          f"{name} would lack {size(lacking)}"
          for name, lacking in move.lacking_bytes.items()
        ),
      ]
      for move in x.moves
    ],
  )
