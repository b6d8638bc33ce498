"""Pictures of methods that send less: what they learn from how many bytes."""

import math

import matplotlib.pyplot as plt

from tools import pictures
from tools.compression_report import Results
from tools.compression_tables import Row
from tools.compression_tables import TABLES

_SHOWN_RATIO = 256


def draw_ratios(results: Results, title: str, path: str) -> None:
  """Writes three pictures of accuracy: by bytes, while learning, by rate.

  Args:
    results: of the table `ratios`.
    title: above them.
    path: of the file.
  """
  table = results.table
  largest = max(row.ratio for row in table.rows)
  has_shown = any(row.ratio == _SHOWN_RATIO for row in table.rows)
  ratio = _SHOWN_RATIO if has_shown else largest
  figure, (final, learning, rates) = plt.subplots(
    1, 3, figsize=(14, 4.2), sharey=True, layout="constrained"
  )
  # A method looks the same in all pictures, whichever others are in them.
  names = dict.fromkeys(row.name for row in TABLES[table.name].rows)
  for name, color, marker in zip(
    names, pictures.COLORS, pictures.MARKERS, strict=False
  ):
    rows = [row for row in table.rows if row.name == name]
    if not rows:
      continue
    style = {"color": color, "marker": marker, "label": rows[0].method.title}
    _plot_final(final, results, rows, style)
    for row in rows:
      if row.ratio in (1, ratio):
        _plot_learning(learning, results, row, style)
        _plot_rates(rates, results, row, style)
  final.set_title("at the end, best learning rate")
  final.set_ylabel("test accuracy")
  learning.set_title(f"while learning, R_C = {ratio}, best rate")
  for axes in (final, learning):
    axes.set_xlabel("kB that a worker sent")
  rates.set_title(f"by learning rate, R_C = {ratio}")
  rates.set_xlabel("learning rate")
  rates.set_xticks(table.rates, [f"{rate:g}" for rate in table.rates])
  rates.minorticks_off()
  for axes in (final, learning, rates):
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
  figure.legend(*final.get_legend_handles_labels(), loc="outside right center")
  figure.suptitle(title)
  pictures.save(figure, path)


def _plot_final(axes, results: Results, rows: list[Row], style: dict) -> None:
  (partition,) = results.table.partitions
  cells = [(row, results.best_rate(row, partition), partition) for row in rows]
  axes.semilogx(
    [results.mean(*cell, "bytes_sent") / 1e3 for cell in cells],
    [results.mean(*cell, "test_accuracy") for cell in cells],
    **style,
  )


def _plot_learning(axes, results: Results, row: Row, style: dict) -> None:
  (partition,) = results.table.partitions
  rate = results.best_rate(row, partition)
  points = range(len(results.of(row, rate, partition)[0].curve))
  cell = row, rate, partition
  axes.semilogx(
    [results.mean(*cell, "bytes_sent", k) / 1e3 for k in points],
    [results.mean(*cell, "test_accuracy", k) for k in points],
    **{**style, "markersize": 4},
  )


def _plot_rates(axes, results: Results, row: Row, style: dict) -> None:
  (partition,) = results.table.partitions
  axes.semilogx(
    results.table.rates,
    [
      results.mean(row, rate, partition, "test_accuracy")
      for rate in results.table.rates
    ],
    **style,
  )


def draw_perplexity(results: Results, title: str, path: str) -> None:
  """Writes a picture of perplexity against bytes while a model learns.

  Args:
    results: of the table `text`.
    title: above it.
    path: of the file.
  """
  table = results.table
  (rate,), (partition,) = table.rates, table.partitions
  figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
  for row, color, marker in zip(
    table.rows, pictures.COLORS, pictures.MARKERS, strict=False
  ):
    curve = results.of(row, rate, partition)[0].curve
    axes.loglog(
      [point.bytes_sent / 1e6 for point in curve],
      [math.exp(point.test_loss) for point in curve],
      color=color,
      marker=marker,
      markersize=4,
      label=row.method.title,
    )
  axes.set_xlabel("MB that a worker sent")
  axes.set_ylabel("perplexity of a character")
  axes.grid(alpha=0.3, which="both")
  axes.legend()
  axes.set_title(title)
  pictures.save(figure, path)
