"""Tables in Markdown."""

from collections.abc import Sequence


def table(
  header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1
) -> str:
  """Returns a table in Markdown, aligned for people too.

  Args:
    header: of the columns.
    rows: their cells.
    num_left: the columns that are aligned to the left; numbers to the right.
  """
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  rules = [
    f"{'-' * (w - 1)}{'-' if k < num_left else ':'}"
    for k, w in enumerate(widths)
  ]
  return "\n".join(
    "| "
    + " | ".join(
      cell.ljust(width) if k < num_left else cell.rjust(width)
      for k, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    + " |"
    for row in [header, rules, *rows]
  )
