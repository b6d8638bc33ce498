"""Methods that send less as text and as JSON."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tools import markdown
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
