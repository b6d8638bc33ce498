"""Times, sizes and tables as a person reads them."""

from collections.abc import Sequence


def duration(time_us: float) -> str:
  """Returns microseconds with the unit that suits them: "12.35 ms"."""
  for unit, scale in (("s", 1e6), ("ms", 1e3)):
    if time_us >= scale:
      return f"{time_us / scale:,.2f} {unit}"
  return f"{time_us:.2f} us"


def size(num_bytes: int) -> str:
  """Returns bytes with the unit that suits them: "1.50 GiB"."""
  for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
    if num_bytes >= 2**power:
      return f"{num_bytes / 2**power:,.2f} {unit}"
  return f"{num_bytes} B"


def percent(fraction: float) -> str:
  """Returns a fraction as a percentage: "2.8 %"."""
  return f"{100 * fraction:,.1f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns aligned columns: the first to the left, the others to the right.

  What follows the last column of the header is free text at the row's end.
  """
  widths = [
    max(len(row[i]) for row in (header, *rows) if i < len(row))
    for i in range(len(header))
  ]
  lines = []
  for row in (header, ["-" * width for width in widths], *rows):
    cells = [
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=False))
    ]
    lines.append("  ".join([*cells, *row[len(header) :]]).rstrip())
  return "\n".join(lines) + "\n"
