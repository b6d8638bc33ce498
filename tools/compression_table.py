r"""Trains with all methods that send less, and says what each loses.

Small models learn the digits, with 8 workers, or, with `--data=PATH/mnist.npz`,
a small convolutional network images of 28 x 28; and another one the characters
of a text that ships with Python:

    python -m tools.compression_table --pictures=demo_output/compression

The command fails, with a line for each, if the digits miss the bars that were
set for them. A part of the tables:

    python -m tools.compression_table --tables=ratios --methods=sgd \
        --methods=cser --ratios=256 --rates=0.5
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import app
from absl import flags

from robust_tf.training.data import load
from tools import compression_bars
from tools import compression_pictures
from tools import compression_report
from tools.compression_report import Results
from tools.compression_runs import common_model_spread
from tools.compression_runs import Part
from tools.compression_runs import run
from tools.compression_tables import Table
from tools.compression_tables import TABLES
from tools.compression_training import NUM_POINTS
from tools.json_file import write_json

_DIGITS = "digits"
# What is run by default on other data, whose steps take longer.
_OTHER_METHODS = ("sgd", "ef_sgd", "qsparse", "cser")
_OTHER_RATIOS = (1, 16, 256)
_OTHER_RATES = (0.01, 0.05, 0.1)
_OTHER_STEPS = 640


def _chosen_tables() -> list[Table]:
  """Returns the tables with the rows and rates that the flags choose."""
  chosen = flags.FLAGS
  is_other = chosen.data != _DIGITS
  names = chosen.tables or (["ratios"] if is_other else list(TABLES))
  methods = chosen.methods or (_OTHER_METHODS if is_other else None)
  ratios = chosen.ratios or (_OTHER_RATIOS if is_other else None)
  rates = chosen.rates or (_OTHER_RATES if is_other else None)
  num_steps = chosen.steps or (_OTHER_STEPS if is_other else None)
  tables = []
  for table in (TABLES[name] for name in names):
    rows = [
      row
      for row in table.rows
      if (methods is None or row.name in methods)
      and (ratios is None or row.ratio == 1 or row.ratio in ratios)
    ]
    if rows:
      tables.append(
        dataclasses.replace(
          table,
          rows=tuple(rows),
          rates=tuple(
            rates if rates and table.name == "ratios" else table.rates
          ),
          num_steps=num_steps or table.num_steps,
          seeds=chosen.seeds or table.seeds,
        )
      )
  return tables


def _results(tables: Sequence[Table]) -> list[Results]:
  """Returns what came of the tables."""
  parts = [
    Part(table, row, flags.FLAGS.data) for table in tables for row in table.rows
  ]
  outcomes = list(run(parts, flags.FLAGS.jobs))
  return [
    Results(table, [x for x in outcomes if x.table == table.name])
    for table in tables
  ]


def _missed_bars(results: Results) -> list[str]:
  """Returns a line for each bar that is missed."""
  table = results.table
  lines = []
  for row in table.rows:
    promised = row.method.compression_ratio
    worst = max(
      (
        x.counted_ratio
        for x in results.outcomes
        if (x.method, x.ratio) == (row.name, row.ratio)
      ),
      key=lambda counted: abs(counted / promised - 1),
    )
    lines += compression_bars.missed_bytes(
      worst, promised, f"{row.name}, {row.ratio}"
    )
  if flags.FLAGS.data == _DIGITS and table.num_steps == (
    TABLES[table.name].num_steps
  ):
    lines += _missed_claims(results)
  return [f"{table.name}: bar {line}" for line in lines]


def _missed_claims(results: Results) -> list[str]:
  table = results.table
  accuracies, losses = {}, {}
  for row in table.rows:
    for partition in table.partitions:
      for rate in table.rates:
        key = (
          (row.name, row.ratio, rate)
          if table.name == "ratios"
          else (row.name, partition)
        )
        cell = row, rate, partition
        accuracies[key] = results.mean(*cell, "test_accuracy")
        losses[key] = results.mean(*cell, "train_loss")
  if table.name == "ratios":
    return compression_bars.missed_ratios(accuracies) + _missed_spread(table)
  if table.name == "adaalter":
    return compression_bars.missed_adaalter(losses, accuracies)
  if table.name == "adaalter_small":
    return compression_bars.missed_adaalter_small(losses)
  return []


def _missed_spread(table: Table) -> list[str]:
  if all(row.name != "cser" for row in table.rows):
    return []
  spread = common_model_spread(flags.FLAGS.data, table.num_steps)
  print(f"CSER with top-k: x - e differs by {spread:.2g} at most.\n")
  return compression_bars.missed_spread(spread)


def _write_json(path: str, all_results: Sequence[Results], lines) -> None:
  content = {
    "data": os.path.basename(flags.FLAGS.data),
    "tables": [compression_report.as_json(x) for x in all_results],
    "missed_bars": lines,
  }
  write_json(path, content)


def _write_pictures(prefix: str, all_results: Sequence[Results]) -> None:
  data = os.path.splitext(os.path.basename(flags.FLAGS.data))[0]
  for results in all_results:
    if results.table.name == "ratios":
      compression_pictures.draw_ratios(
        results, f"{data}: what sending less costs", f"{prefix}_{data}.svg"
      )
    elif results.table.is_text:
      compression_pictures.draw_perplexity(
        results, "perplexity against bytes", f"{prefix}_text.svg"
      )


def main(argv: list[str]) -> int:
  """Runs what the flags choose; returns 1 if a bar is missed."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  chosen = flags.FLAGS
  if chosen.steps is not None and chosen.steps % NUM_POINTS:
    raise app.UsageError(
      f"--steps={chosen.steps} must be a multiple of {NUM_POINTS}"
    )
  for rate in chosen.rates or ():
    if not rate > 0:
      raise app.UsageError(f"--rates={rate} must be above 0")
  tables = _chosen_tables()
  if not tables:
    raise app.UsageError("no table has the chosen methods and ratios")
  try:
    load(chosen.data)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  all_results = _results(tables)
  lines = []
  for results in all_results:
    print(compression_report.as_text(results), end="\n\n", flush=True)
    lines += _missed_bars(results)
  print("\n".join(lines), file=sys.stderr)
  if chosen.json:
    _write_json(chosen.json, all_results, lines)
  if chosen.pictures:
    _write_pictures(chosen.pictures, all_results)
  return 1 if lines else 0


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  rows = [row for table in TABLES.values() for row in table.rows]
  methods = list(dict.fromkeys(row.name for row in rows))
  flags.DEFINE_string("data", _DIGITS, "digits, or the path of an .npz file.")
  flags.DEFINE_multi_enum(
    "tables",
    None,
    list(TABLES),
    "Which tables; may be repeated. By default all, with other data than the"
    " digits `ratios`.",
  )
  flags.DEFINE_multi_enum(
    "methods",
    None,
    methods,
    "Which methods; may be repeated. By default all, with other data"
    f" {', '.join(_OTHER_METHODS)}.",
  )
  flags.DEFINE_multi_integer(
    "ratios",
    None,
    "R_C, of 16, 64, 256 and 1024; may be repeated. By default all, with other"
    " data 16 and 256.",
  )
  flags.DEFINE_multi_float(
    "rates",
    None,
    "Learning rates of `ratios`; may be repeated. By default 0.05, 0.1, 0.5 and"
    " 1, with other data 0.01, 0.05 and 0.1.",
  )
  flags.DEFINE_integer(
    "seeds", None, "In place of a table's own: the result is the mean.", 1
  )
  flags.DEFINE_integer(
    "steps",
    None,
    "In place of a table's own; what is claimed of the digits is then not"
    " checked.",
    1,
  )
  flags.DEFINE_integer("jobs", 2, "Processes at a time.", 1)
  flags.DEFINE_string("json", None, "A file for the results.")
  flags.DEFINE_string(
    "pictures", None, "How the names of files with pictures begin."
  )


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
