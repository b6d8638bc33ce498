"""The Byzantine tables as text, as JSON and as pictures."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from tools import markdown
from tools import pictures
from tools.byzantine_cells import Table


@dataclasses.dataclass(frozen=True)
class Results:
  """Measured cells of one table.

  Attributes:
    table: what was run.
    num_steps: T, which a flag may have lowered.
    by_seed: the test accuracy of each seed, by (threat, rule).
  """

  table: Table
  num_steps: int
  by_seed: Mapping[tuple[str, str], Sequence[float]]

  @property
  def accuracies(self) -> dict[tuple[str, str], float]:
    """The mean over the seeds, by (threat, rule)."""
    return {cell: float(np.mean(x)) for cell, x in self.by_seed.items()}

  @property
  def threats(self) -> list:
    """The table's threats that were run, in its order."""
    run = {threat for threat, _ in self.by_seed}
    return [x for x in self.table.threats if x.name in run]

  @property
  def rules(self) -> list:
    """The table's rules that were run, in its order."""
    run = {rule for _, rule in self.by_seed}
    return [x for x in self.table.rules if x.name in run]


def as_text(results: Results) -> str:
  """Returns the accuracies as a table in Markdown."""
  accuracies = results.accuracies
  header = ["threat", *(rule.title for rule in results.rules)]
  rows = [
    [x.title, *(f"{accuracies[x.name, r.name]:.3f}" for r in results.rules)]
    for x in results.threats
  ]
  return "\n".join(
    [
      f"{results.table.title} ({results.num_steps} steps)",
      "",
      markdown.table(header, rows),
    ]
  )


def as_json(results: Results) -> dict:
  """Returns the results as plain data."""
  return {
    "table": results.table.name,
    "num_workers": results.table.num_workers,
    "num_steps": results.num_steps,
    "start_step": results.table.start_step,
    "accuracy": {
      threat.name: {
        rule.name: list(results.by_seed[threat.name, rule.name])
        for rule in results.rules
      }
      for threat in results.threats
    },
  }


def draw_heat_map(results: Results, title: str, path: str) -> None:
  """Writes a picture of threats by rules, with the accuracy in each cell."""
  threats, rules = results.threats, results.rules
  accuracies = results.accuracies
  values = np.array(
    [[accuracies[x.name, rule.name] for rule in rules] for x in threats]
  )
  figure, axes = plt.subplots(
    figsize=(2.4 + 0.8 * len(rules), 1.4 + 0.32 * len(threats)),
    layout="constrained",
  )
  image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
  axes.set_xticks(
    range(len(rules)),
    [x.title for x in rules],
    rotation=30,
    ha="left",
    rotation_mode="anchor",
  )
  axes.set_yticks(range(len(threats)), [x.title for x in threats])
  axes.tick_params(
    top=True, labeltop=True, bottom=False, labelbottom=False, length=0
  )
  for row, column in np.ndindex(values.shape):
    value = values[row, column]
    axes.text(
      column, row, f"{value:.2f}", ha="center", va="center", fontsize=9,
      color="black" if value > 0.5 else "white",
    )  # fmt: skip
  figure.colorbar(image, label="test accuracy", shrink=0.8)
  axes.set_title(title)
  pictures.save(figure, path)


def draw_strengths(tables: Sequence[Results], title: str, path: str) -> None:
  """Writes a picture of accuracy by the strength of inner product attacks."""
  figure, row = plt.subplots(
    1, len(tables), figsize=(5 * len(tables), 4), sharey=True,
    squeeze=False, layout="constrained",
  )  # fmt: skip
  for axes, results in zip(row[0], tables, strict=True):
    accuracies = results.accuracies
    threats = [x for x in results.threats if x.epsilon]
    for rule, color, marker in zip(
      results.rules, pictures.COLORS, pictures.MARKERS, strict=False
    ):
      axes.semilogx(
        [x.epsilon for x in threats],
        [accuracies[x.name, rule.name] for x in threats],
        color=color, marker=marker, label=rule.title,
      )  # fmt: skip
    axes.set_title(f"attack from step {results.table.start_step} on")
    axes.set_xlabel("epsilon")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
  row[0, 0].set_ylabel("test accuracy")
  figure.legend(
    *row[0, 0].get_legend_handles_labels(), loc="outside right center"
  )
  figure.suptitle(title)
  pictures.save(figure, path)
