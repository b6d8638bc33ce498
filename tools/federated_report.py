"""The federated tables as text, as JSON and as pictures."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tools import markdown
from tools import pictures
from tools.federated_cells import FedAsyncCell
from tools.federated_cells import FedAvgCell
from tools.federated_cells import SLSGDCell
from tools.federated_results import Result

_NONE = "–"


def as_text(results: Sequence[Result]) -> str:
  """Returns the tables that there are results for, in Markdown."""
  texts = [
    make(chosen)
    for make, table in ((_fed_async, "fed_async"), (_slsgd, "slsgd"))
    if (chosen := [x for x in results if x.cell.table == table])
  ]
  return "\n\n".join(texts)


def as_json(results: Iterable[Result]) -> list[dict]:
  """Returns the results as plain data."""
  return [
    {
      "table": x.cell.table,
      "cell": {"method": type(x.cell).__name__.removesuffix("Cell")}
      | dataclasses.asdict(x.cell),
      "summary": dataclasses.asdict(x.summary),
      "curves": [list(map(list, curve)) for curve in x.curves],
    }
    for x in results
  ]


def _fed_async(results: Sequence[Result]) -> str:
  """Returns a row for each method, two columns for each K."""
  staleness = sorted({x.cell.max_staleness for x in results})
  header = [
    "",
    *(f"K={k} {part}" for k in staleness for part in ("middle", "end")),
  ]
  rows = []
  for title in dict.fromkeys(x.cell.title for x in results):
    row = [title]
    for k in staleness:
      cells = [
        x.summary
        for x in results
        if (x.cell.title, x.cell.max_staleness) == (title, k)
      ]
      for s in cells:
        row += [_with_std(s.middle, s.middle_std), f"{s.end:.3f}"]
      if not cells:
        row += [_NONE, _NONE]
    rows.append(row)
  return markdown.table(header, rows)


def _slsgd(results: Sequence[Result]) -> str:
  """Returns a row for each rule and mixing weight, two columns for each q."""
  counts = sorted({x.cell.num_malicious for x in results})
  header = [
    "rule",
    "α",
    *(f"q={q} {y}" for q in counts for y in ("end", "min")),
  ]
  rows = []
  for rule, mixing in dict.fromkeys(
    (x.cell.rule, x.cell.mixing) for x in results
  ):
    row = [rule, mixing]
    for q in counts:
      cells = [
        x.summary
        for x in results
        if (x.cell.rule, x.cell.mixing, x.cell.num_malicious)
        == (rule, mixing, q)
      ]
      for s in cells:
        row += [_with_std(s.end, s.end_std), f"{s.end_min:.3f}"]
      if not cells:
        row += [_NONE, _NONE]
    rows.append(row)
  return markdown.table(header, rows, num_left=2)


def _with_std(mean: float, std: float) -> str:
  return f"{mean:.3f} ± {std:.3f}"


def draw_fed_async(results: Sequence[Result], title: str, path: str) -> None:
  """Writes a picture of accuracy over updates, one part for each K above 0."""
  chosen = [
    x
    for x in results
    if isinstance(x.cell, FedAsyncCell)
    and x.cell.mixing_weight == 0.9
    and x.cell.max_staleness
  ]
  baseline = [x for x in results if isinstance(x.cell, FedAvgCell)]
  parts = {
    f"staleness up to {k}": [
      *((x.cell.staleness, x) for x in chosen if x.cell.max_staleness == k),
      *((x.cell.title, x) for x in baseline),
    ]
    for k in sorted({x.cell.max_staleness for x in chosen})
  }
  _draw(parts, title, "updates of devices", path)


def draw_slsgd(results: Sequence[Result], title: str, path: str) -> None:
  """Writes a picture of accuracy over updates, one part for each q."""
  chosen = [
    x
    for x in results
    if isinstance(x.cell, SLSGDCell)
    and x.cell.mixing_weight == 1
    and (x.cell.late_mixing_weight == 1 or x.cell.trim == 4)
  ]
  parts = {
    f"{q} of 10 malicious": [
      (
        x.cell.rule
        + ("" if x.cell.late_mixing_weight == 1 else f", α={x.cell.mixing}"),
        x,
      )
      for x in chosen
      if x.cell.num_malicious == q
    ]
    for q in sorted({x.cell.num_malicious for x in chosen})
  }
  _draw(parts, title, "updates of devices", path)


def _draw(
  parts: dict[str, list[tuple[str, Result]]], title: str, label: str, path: str
) -> None:
  """Writes a picture of several parts side by side; none if there are none."""
  if not parts:
    return
  figure, row = plt.subplots(
    1, len(parts), figsize=(1.5 + 3.6 * len(parts), 3.8), sharey=True,
    squeeze=False, layout="constrained",
  )  # fmt: skip
  names = dict.fromkeys(name for lines in parts.values() for name, _ in lines)
  colors = dict(zip(names, pictures.COLORS, strict=False))
  for axes, (part, lines) in zip(row[0], parts.items(), strict=True):
    for name, result in lines:
      _draw_line(axes, name, result, colors[name])
    axes.set(title=part, xlabel=label, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
  row[0, 0].set_ylabel("test accuracy")
  figure.legend(
    *row[0, 0].get_legend_handles_labels(), loc="outside right center"
  )
  figure.suptitle(title)
  pictures.save(figure, path)


def _draw_line(axes: Axes, name: str, result: Result, color: str) -> None:
  """Draws the mean over seeds, and the range of the seeds behind it."""
  curves = np.array(result.curves)
  pushes, accuracies = curves[0, :, 0], curves[:, :, 1]
  axes.plot(pushes, accuracies.mean(0), color=color, label=name, linewidth=1.2)
  axes.fill_between(
    pushes, accuracies.min(0), accuracies.max(0), color=color, alpha=0.15,
    linewidth=0,
  )  # fmt: skip
