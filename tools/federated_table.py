r"""Trains with FedAsync and SLSGD, and says what stale or bad models cost.

A small perceptron learns the digits on 50 devices of few labels each, or, with
`--data=PATH/mnist.npz`, a small convolutional network images of 28 x 28 on 100
devices of 500 images:

    python -m tools.federated_table --pictures=demo_output/federated

The command fails, with a line for each, if cells miss the bars that were set
for the digits. A part of the tables:

    python -m tools.federated_table --tables=slsgd --seeds=0
"""

import collections
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Sequence

from absl import app
from absl import flags

from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from tools import federated_bars
from tools import federated_report
from tools.federated_cells import Cell
from tools.federated_cells import DEVICES_PER_ROUND
from tools.federated_cells import DIGITS
from tools.federated_cells import digits_cells
from tools.federated_cells import Experiment
from tools.federated_cells import image_cells
from tools.federated_cells import IMAGES
from tools.federated_results import Curve
from tools.federated_results import Result
from tools.federated_training import train
from tools.json_file import write_json
from tools.processes import mapping

_DIGITS = "digits"
_TABLES = ("fed_async", "slsgd")


@dataclasses.dataclass(frozen=True)
class Part:
  """What is computed at a time: one run.

  Attributes:
    data: a name or a path, see `robust_tf.training.data`.
    experiment: who learns.
    cell: the method.
    seed: of the run.
  """

  data: str
  experiment: Experiment
  cell: Cell
  seed: int


def run(parts: Sequence[Part], jobs: int) -> list[Result]:
  """Returns what came of all parts, cell by cell, and says how far it is.

  Args:
    parts: what to run.
    jobs: how many processes run them; 1 is this one alone.
  """
  begin = time.perf_counter()
  curves = collections.defaultdict(list)
  with mapping(jobs) as run_all:
    for number, (part, curve) in enumerate(
      zip(parts, run_all(_run_part, parts), strict=True), start=1
    ):
      print(
        f"{number} of {len(parts)} runs after"
        f" {time.perf_counter() - begin:.0f} s: {part.cell}, seed {part.seed}",
        file=sys.stderr,
      )
      curves[part.cell].append(curve)
  return [Result(cell, x) for cell, x in curves.items()]


def _run_part(part: Part) -> Curve:
  return train(
    part.cell, part.experiment, _load(part.data, part.seed), part.seed
  )


@functools.cache
def _load(data: str, seed: int) -> Dataset:
  return load(data, seed)


def _chosen_parts() -> list[Part]:
  """Returns the parts that the flags choose."""
  chosen = flags.FLAGS
  is_digits = chosen.data == _DIGITS
  experiment = DIGITS if is_digits else IMAGES
  if chosen.pushes:
    experiment = dataclasses.replace(
      experiment,
      pushes=chosen.pushes,
      rounds=chosen.pushes // DEVICES_PER_ROUND,
    )
  return [
    Part(chosen.data, experiment, cell, seed)
    for cell in (digits_cells() if is_digits else image_cells())
    if cell.table in chosen.tables
    for seed in chosen.seeds
  ]


def _missed_bars(results: Sequence[Result]) -> list[str]:
  """Returns a line for each bar that is missed, if bars apply."""
  if flags.FLAGS.data != _DIGITS or flags.FLAGS.pushes:
    return []
  summaries = {x.cell: x.summary for x in results}
  return [f"bar {line}" for line in federated_bars.missed(summaries)]


def _write_json(path: str, results: Sequence[Result], lines) -> None:
  content = {
    "data": os.path.basename(flags.FLAGS.data),
    "seeds": flags.FLAGS.seeds,
    "cells": federated_report.as_json(results),
    "missed_bars": lines,
  }
  write_json(path, content)


def _write_pictures(prefix: str, results: Sequence[Result]) -> None:
  data = os.path.splitext(os.path.basename(flags.FLAGS.data))[0]
  federated_report.draw_fed_async(
    results,
    f"{data}: FedAsync with α=0.9, a half of it from 40 % on",
    f"{prefix}_{data}_fed_async.svg",
  )
  federated_report.draw_slsgd(
    results,
    f"{data}: SLSGD with new random models that learn wrong labels",
    f"{prefix}_{data}_slsgd.svg",
  )


def main(argv: list[str]) -> int:
  """Runs what the flags choose; returns 1 if a bar is missed."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  chosen = flags.FLAGS
  if chosen.pushes is not None and chosen.pushes % DEVICES_PER_ROUND:
    raise app.UsageError(
      f"--pushes={chosen.pushes} must be a multiple of {DEVICES_PER_ROUND}, the"
      " devices of a round"
    )
  parts = _chosen_parts()
  try:
    _load(chosen.data, parts[0].seed)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  results = run(parts, chosen.jobs)
  print(federated_report.as_text(results))
  lines = _missed_bars(results)
  print("\n".join(lines), file=sys.stderr)
  if chosen.json:
    _write_json(chosen.json, results, lines)
  if chosen.pictures:
    _write_pictures(chosen.pictures, results)
  return 1 if lines else 0


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_string("data", _DIGITS, "digits, or the path of an .npz file.")
  flags.DEFINE_multi_enum(
    "tables", list(_TABLES), list(_TABLES), "Which tables; may be repeated."
  )
  flags.DEFINE_multi_integer(
    "seeds", [0, 1, 2], "Numbers are means over these; may be repeated."
  )
  flags.DEFINE_integer(
    "pushes",
    None,
    "Updates of devices in a run, in place of 1000 and SLSGD's 120 rounds; bars"
    " do not apply.",
    100,
  )
  flags.DEFINE_integer("jobs", 2, "Processes at a time.", 1)
  flags.DEFINE_string("json", None, "A file for the results.")
  flags.DEFINE_string(
    "pictures", None, "How the names of files with pictures begin."
  )


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
