r"""Trains under every rule and every attack, and says what each rule survives.

A small perceptron learns the digits, or, with `--data=PATH/mnist.npz`, a small
convolutional network images of 28 x 28, with 20 or 25 workers of which some
are Byzantine:

    python -m tools.byzantine_table --pictures=demo_output/byzantine

The command fails, with a line for each, if cells miss the bars that were set
for the digits. A part of the tables:

    python -m tools.byzantine_table --tables=attacks --rules=krum \
        --rules=zeno --attacks=none --attacks=sign_flip_8 --seeds=0
"""

import collections
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence

from absl import app
from absl import flags

from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from tools import byzantine_report
from tools.byzantine_bars import missed
from tools.byzantine_cells import Rule
from tools.byzantine_cells import Table
from tools.byzantine_cells import TABLES
from tools.byzantine_cells import Threat
from tools.byzantine_report import Results
from tools.byzantine_training import train_and_test
from tools.processes import mapping


@dataclasses.dataclass(frozen=True)
class Part:
  """What is computed at a time: one seed of some cells of a table's column.

  Attributes:
    data: a name or a path, see `robust_tf.training.data`.
    table: where the cells are.
    rule: their column.
    threats: their rows.
    seed: of the run.
    num_steps: T.
  """

  data: str
  table: Table
  rule: Rule
  threats: tuple[Threat, ...]
  seed: int
  num_steps: int


def run(parts: Sequence[Part], jobs: int) -> list[Results]:
  """Returns the results of all parts, table by table.

  Args:
    parts: what to run.
    jobs: how many processes run them; 1 is this one alone.
  """
  cells = collections.defaultdict(lambda: collections.defaultdict(list))
  of_table = {}
  for part, accuracies in zip(parts, _outcomes(parts, jobs), strict=True):
    of_table[part.table.name] = part
    for threat, accuracy in accuracies.items():
      cells[part.table.name][threat, part.rule.name].append(accuracy)
  return [
    Results(part.table, part.num_steps, cells[name])
    for name, part in of_table.items()
  ]


def _outcomes(parts: Sequence[Part], jobs: int) -> Iterator[dict[str, float]]:
  """Yields the accuracies of each part, in order, and says how far it is."""
  begin = time.perf_counter()
  with mapping(jobs) as run_all:
    for number, (part, outcome) in enumerate(
      zip(parts, run_all(_run_part, parts), strict=True), start=1
    ):
      print(
        f"{number} of {len(parts)} parts after"
        f" {time.perf_counter() - begin:.0f} s: {part.table.name},"
        f" {part.rule.name}, seed {part.seed}",
        file=sys.stderr,
      )
      yield outcome


def _run_part(part: Part) -> dict[str, float]:
  return train_and_test(
    part.table,
    part.rule,
    part.threats,
    _load(part.data, part.seed),
    part.seed,
    part.num_steps,
  )


@functools.cache
def _load(data: str, seed: int) -> Dataset:
  return load(data, seed)


def _chosen_parts() -> list[Part]:
  """Returns the parts that the flags choose."""
  chosen = flags.FLAGS
  parts = []
  for table in TABLES:
    threats = tuple(x for x in table.threats if x.name in chosen.attacks)
    if table.name not in chosen.tables or not threats:
      continue
    num_steps = chosen.steps or table.num_steps
    parts += [
      Part(chosen.data, table, rule, threats, seed, num_steps)
      for rule in table.rules
      if rule.name in chosen.rules
      for seed in chosen.seeds
    ]
  return parts


def _missed_bars(results: Results, data: str) -> list[str]:
  """Returns a line for each cell below or above its bar, if bars apply."""
  table = results.table
  if data != "digits" or results.num_steps != table.num_steps:
    return []
  lines = missed(table.bars, results.accuracies)
  return [f"{table.name}: bar {line}" for line in lines]


def _write_json(path: str, all_results: Sequence[Results], lines) -> None:
  content = {
    "data": os.path.basename(flags.FLAGS.data),
    "seeds": flags.FLAGS.seeds,
    "tables": [byzantine_report.as_json(x) for x in all_results],
    "missed_bars": lines,
  }
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file, indent=1)
    file.write("\n")


def _write_pictures(prefix: str, all_results: Sequence[Results]) -> None:
  data = os.path.splitext(os.path.basename(flags.FLAGS.data))[0]
  curves = [x for x in all_results if x.table.name != "attacks"]
  for results in all_results:
    if results.table.name == "attacks":
      byzantine_report.draw_heat_map(
        results, f"{data}: test accuracy", f"{prefix}_attacks.svg"
      )
  if curves:
    byzantine_report.draw_strengths(
      curves,
      f"{data}: test accuracy, inner product manipulation by 11 of 25",
      f"{prefix}_empires.svg",
    )


def main(argv: list[str]) -> int:
  """Runs what the flags choose; returns 1 if a bar is missed."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  parts = _chosen_parts()
  if not parts:
    raise app.UsageError("no table has the chosen rules and attacks")
  try:
    _load(parts[0].data, parts[0].seed)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  all_results = run(parts, flags.FLAGS.jobs)
  lines = []
  for results in all_results:
    print(byzantine_report.as_text(results), end="\n\n")
    lines += _missed_bars(results, flags.FLAGS.data)
  print("\n".join(lines), file=sys.stderr)
  if flags.FLAGS.json:
    _write_json(flags.FLAGS.json, all_results, lines)
  if flags.FLAGS.pictures:
    _write_pictures(flags.FLAGS.pictures, all_results)
  return 1 if lines else 0


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  tables = [table.name for table in TABLES]
  rules = dict.fromkeys(x.name for table in TABLES for x in table.rules)
  attacks = dict.fromkeys(x.name for table in TABLES for x in table.threats)
  flags.DEFINE_string("data", "digits", "digits, or the path of an .npz file.")
  flags.DEFINE_multi_enum(
    "tables", tables, tables, "Which tables; may be repeated."
  )
  flags.DEFINE_multi_enum(
    "rules", list(rules), list(rules), "Which rules; may be repeated."
  )
  flags.DEFINE_multi_enum(
    "attacks", list(attacks), list(attacks), "Which rows; may be repeated."
  )
  flags.DEFINE_multi_integer(
    "seeds", [0, 1], "The accuracy is the mean over these; may be repeated."
  )
  flags.DEFINE_integer(
    "steps", None, "In place of a table's own; bars do not apply.", 1
  )
  flags.DEFINE_integer("jobs", 2, "Processes at a time.", 1)
  flags.DEFINE_string("json", None, "A file for the results.")
  flags.DEFINE_string(
    "pictures", None, "How the names of files with pictures begin."
  )


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
