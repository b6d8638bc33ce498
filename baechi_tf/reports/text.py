"""A summary as text that a person reads; the same plan, the same bytes."""

from collections.abc import Sequence

from baechi_tf.planner import APART
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import percent
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table
from baechi_tf.reports.summary import Summary

_PROCESSOR_COLUMNS = {
  "transfers": "transfer_work_us",
  "dispatch": "dispatch_us",
}


def report(summary: Summary) -> str:
  """Returns the whole report of a placement."""
  summary = printable(summary)
  parts = [_headline(summary), _figures(summary), _devices(summary)]
  if summary.candidates:
    parts.append(candidates(summary))
  parts.append(_footnotes(summary))
  return "\n".join(part for part in parts if part)


def candidates(
  summary: Summary, seconds: dict[str, float] | None = None
) -> str:
  """Returns the table of all that was tried, the chosen one marked.

  Args:
    summary: of `reports.summary`.
    seconds: how long each placer took, shown if given.
  """
  summary = printable(summary)
  devices = summary.devices
  header = ["placer", "co-placed", "makespan", "speed-up", "gap", "moved"]
  header += [f"peak {x}" for x in short_names([x.name for x in devices])]
  header += ["seconds"] if seconds else []
  chosen = (summary.placer, summary.coplacement)
  rows = []
  for x in summary.candidates:
    name = (x.placer, x.coplacement)
    row = [
      ("* " if name == chosen else "  ") + x.placer,
      x.coplacement,
    ]
    if x.error is not None:
      row += ["none", *["-"] * (len(devices) + 3)]
    else:
      row += [
        duration(x.makespan_us),
        f"{x.speedup:.2f} x",
        percent(x.gap),
        size(x.bytes_moved),
        *map(size, x.peak_memory_bytes),
      ]
    if seconds:
      row.append(f"{seconds[x.placer]:.2f}")
    rows.append(row)
  return table(header, rows) + "".join(_errors(summary))


def _errors(summary: Summary) -> Sequence[str]:
  """One line per reason: co-placement seldom changes it."""
  lines = {}
  for x in summary.candidates:
    if x.error is not None:
      lines[f"{x.placer}: {x.error}\n"] = None
  return list(lines)


def _headline(summary: Summary) -> str:
  devices = len(summary.devices)
  placed = f"placed by {summary.placer}" if summary.placer else "as given"
  if summary.coplacement not in (None, APART):
    placed += ", co-placed ops kept together"
  return (
    f"{summary.model}: {summary.num_ops:,} ops in"
    f" {summary.num_groups:,} groups on {devices}"
    f" device{'' if devices == 1 else 's'}, {placed}\n"
  )


def _figures(summary: Summary) -> str:
  one = summary.one_device
  on_one = f"{summary.speedup:.2f} x the predicted step, {one.name}"
  if not one.fits:
    on_one += f", where it does not fit ({size(one.peak_memory_bytes)})"
  bound = f"{summary.lower_bound}: {summary.lower_bound_witness}"
  lines = [
    ("predicted step", duration(summary.makespan_us), ""),
    *_unordered(summary),
    ("on one device", duration(one.makespan_us), on_one),
    ("lower bound", duration(summary.lower_bound_us), bound),
    (
      "gap to lower bound",
      percent(summary.gap),
      "optimal under the cost model" if summary.is_optimal else "",
    ),
    (
      "moved",
      size(summary.bytes_moved),
      f"in {summary.num_transfers:,} transfers between devices",
    ),
  ]
  return "".join(
    f"{label:<18}  {value:>10}  {remark}".rstrip() + "\n"
    for label, value, remark in lines
  )


def _unordered(summary: Summary) -> list[tuple[str, str, str]]:
  """Returns a line on the step without the plan's order, if it differs."""
  unordered = summary.unordered_makespan_us
  if unordered == summary.makespan_us:
    return []
  remark = "if TensorFlow chooses which of its ready ops a device runs"
  return [("unordered", duration(unordered), remark)]


def _devices(summary: Summary) -> str:
  step_us, devices = summary.makespan_us, summary.devices
  # Shown where there is some.
  work = {
    title: key
    for title, key in _PROCESSOR_COLUMNS.items()
    if any(getattr(x, key) for x in devices)
  }
  return table(
    ["device", "type", "ops", "busy", "of step"]
    + [*work, "peak memory", "limit"],
    [
      [
        x.name,
        x.type,
        f"{x.num_ops:,}",
        duration(x.busy_time_us),
        percent(x.busy_time_us / step_us if step_us else 0.0),
        *(duration(getattr(x, key)) for key in work.values()),
        size(x.peak_memory_bytes),
        size(x.memory_bytes),
        *(["over"] if x.peak_memory_bytes > x.memory_bytes else []),
      ]
      for x in devices
    ],
  )


def _footnotes(summary: Summary) -> str:
  lines = [
    f"op costs on {x.device_type}: {x.num_measured:,} measured,"
    f" {x.num_estimated:,} estimated\n"
    for x in summary.costs
  ]
  return "".join(lines + [f"note: {x}\n" for x in summary.notes])


def short_names(names: Sequence[str]) -> Sequence[str]:
  """Returns the last parts of devices' names, such as "GPU:0".

  Or "1/GPU:0", with the task, if that alone is not theirs alone.
  """
  short = [x.rsplit("/device:", 1)[-1] for x in names]
  if len(set(short)) < len(short):
    short = [x.rsplit("/task:", 1)[-1].replace("/device:", "/") for x in names]
  return short
