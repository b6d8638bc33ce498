"""Methods that send less as text, as JSON and as pictures."""

import dataclasses
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from tools import markdown
from tools import pictures
from tools.compression_runs import Outcome
from tools.compression_tables import Row
from tools.compression_tables import Table


@dataclasses.dataclass(frozen=True)
class Results:
  """What was measured of one table.

  Attributes:
    table: what was run; its flags' values are in it.
    outcomes: of each training.
  """

  table: Table
  outcomes: Sequence[Outcome]

  def of(self, row: Row, rate: float, partition: str) -> list[Outcome]:
    """Returns the outcomes of a cell, one a seed."""
    key = (row.name, row.ratio, rate, partition)
    return [
      x
      for x in self.outcomes
      if (x.method, x.ratio, x.rate, x.partition) == key
    ]

  def mean(
    self, row: Row, rate: float, partition: str, field: str, point: int = -1
  ) -> float:
    """Returns the mean of a field of a cell's curves over the seeds."""
    outcomes = self.of(row, rate, partition)
    return float(np.mean([getattr(x.curve[point], field) for x in outcomes]))

  def best_rate(self, row: Row, partition: str) -> float:
    """Returns the rate with the best accuracy; of equals the first."""
    return max(
      self.table.rates,
      key=lambda rate: self.mean(row, rate, partition, "test_accuracy"),
    )


def number(value: float) -> str:
  """Returns a loss with three decimals, or its power of ten."""
  if not math.isfinite(value):
    return "inf" if value > 0 else "nan"
  return f"{value:.3f}" if value < 1000 else f"{value:.0e}".replace("e+", "e")


def as_text(results: Results) -> str:
  """Returns the results as a table in Markdown."""
  table = results.table
  by = _by_rate if table.name == "ratios" else _by_partition
  header, rows = by(results)
  title = f"{table.title} ({table.num_steps} steps)"
  return "\n".join([title, "", markdown.table(header, rows, num_left=2)])


def _by_rate(results: Results):
  table = results.table
  (partition,) = table.partitions
  header = ["method", "settings", "R_C", "counted"]
  header += [f"{rate:g}" for rate in table.rates]
  rows = []
  for row in table.rows:
    outcomes = results.of(row, table.rates[0], partition)
    cells = [
      f"{results.mean(row, rate, partition, 'test_accuracy'):.3f}"
      f" ({number(results.mean(row, rate, partition, 'train_loss'))})"
      for rate in table.rates
    ]
    rows.append(
      [
        row.method.title,
        _short(row.method.settings()),
        f"{row.method.compression_ratio:.4g}",
        f"{outcomes[0].counted_ratio:.4g}",
        *cells,
      ]
    )
  return header, rows


def _short(settings: str) -> str:
  """Returns settings in the paper's letters."""
  for name, letter in (
    ("sync_period", "H"),
    ("reset_compressor=GRBS", "R₁="),
    ("gradient_compressor=GRBS", "R₂="),
    ("compressor=GRBS", "R="),
    ("(", ""),
    (")", ""),
  ):
    settings = settings.replace(name, letter)
  return settings


def _by_partition(results: Results):
  table = results.table
  (rate,) = table.rates
  header = ["method", "examples", "R_C", "counted"]
  header += [f"loss at {part}" for part in ("T/4", "T/2", "3T/4", "T")]
  header += ["perplexity"] if table.is_text else []
  header += ["accuracy"]
  rows = []
  for partition in table.partitions:
    for row in table.rows:
      outcomes = results.of(row, rate, partition)
      points = len(outcomes[0].curve)
      losses = [
        number(
          results.mean(
            row, rate, partition, "train_loss", points * quarter // 4 - 1
          )
        )
        for quarter in (1, 2, 3, 4)
      ]
      loss = results.mean(row, rate, partition, "test_loss")
      rows.append(
        [
          row.method.title,
          partition,
          f"{row.method.compression_ratio:g}",
          f"{outcomes[0].counted_ratio:.4g}",
          *losses,
          *([f"{math.exp(loss):.3f}"] if table.is_text else []),
          f"{results.mean(row, rate, partition, 'test_accuracy'):.3f}",
        ]
      )
  return header, rows


def as_json(results: Results) -> dict:
  """Returns the results as plain data; null stands for what is not finite."""
  fields = dataclasses.fields(results.outcomes[0].curve[0])
  return {
    "table": results.table.name,
    "num_steps": results.table.num_steps,
    "trainings": [
      {
        "method": x.method,
        "ratio": x.ratio,
        "rate": x.rate,
        "partition": x.partition,
        "seed": x.seed,
        "counted_ratio": _finite(x.counted_ratio),
        "curve": {
          field.name: [_finite(getattr(p, field.name)) for p in x.curve]
          for field in fields
        },
      }
      for x in results.outcomes
    ],
  }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def draw_ratios(results: Results, title: str, path: str) -> None:
  """Writes a picture of accuracy against bytes, and by learning rate."""
  table = results.table
  (partition,) = table.partitions
  figure, (final, rates) = plt.subplots(
    1, 2, figsize=(11, 4.2), sharey=True, layout="constrained"
  )
  names = list(dict.fromkeys(row.name for row in table.rows))
  for name, color, marker in zip(
    names, pictures.COLORS, pictures.MARKERS, strict=False
  ):
    rows = [row for row in table.rows if row.name == name]
    style = {"color": color, "marker": marker, "label": rows[0].method.title}
    best = [results.best_rate(row, partition) for row in rows]
    final.semilogx(
      [
        results.mean(row, rate, partition, "bytes_sent") / 1e3
        for row, rate in zip(rows, best, strict=True)
      ],
      [
        results.mean(row, rate, partition, "test_accuracy")
        for row, rate in zip(rows, best, strict=True)
      ],
      **style,
    )
    ratio = 256 if any(row.ratio == 256 for row in rows) else rows[-1].ratio
    (row,) = (row for row in rows if row.ratio == ratio)
    rates.semilogx(
      table.rates,
      [
        results.mean(row, rate, partition, "test_accuracy")
        for rate in table.rates
      ],
      **style,
    )
  final.set_xlabel("kB that a worker sent")
  final.set_ylabel("test accuracy")
  final.set_title("the best learning rate of each")
  largest = sorted({row.ratio for row in table.rows})[-1]
  shown = 256 if any(row.ratio == 256 for row in table.rows) else largest
  rates.set_title(f"R_C = {shown}, by learning rate")
  rates.set_xlabel("learning rate")
  rates.set_xticks(table.rates, [f"{rate:g}" for rate in table.rates])
  rates.minorticks_off()
  for axes in (final, rates):
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
  figure.legend(*final.get_legend_handles_labels(), loc="outside right center")
  figure.suptitle(title)
  pictures.save(figure, path)


def draw_perplexity(results: Results, title: str, path: str) -> None:
  """Writes a picture of perplexity against bytes while a model learns."""
  table = results.table
  (rate,), (partition,) = table.rates, table.partitions
  figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
  for row, color, marker in zip(
    table.rows, pictures.COLORS, pictures.MARKERS, strict=False
  ):
    curve = results.of(row, rate, partition)[0].curve
    axes.loglog(
      [point.bytes_sent / 1e6 for point in curve if point.bytes_sent],
      [math.exp(point.test_loss) for point in curve if point.bytes_sent],
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
