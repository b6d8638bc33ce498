r"""Feeds damaged input files to the commands, and reports what goes wrong.

Every case damages one file and runs the commands that read it, in this
process. A fault is a traceback, an exit code that is not 0, 2 or 3, more than
one line on stderr, output that is left behind, control characters in what is
printed, or a plan that breaks a memory limit. Each fault is printed with the
flags that make it again:

    python -m tools.fuzz_inputs --cases=1000 --seed=0
    python -m tools.fuzz_inputs --format=cluster --seed=0 --only_case=17 --keep
"""

import collections
import contextlib
import faulthandler
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from collections.abc import Iterator

from absl import app
from absl import flags
from absl import logging

from baechi_tf.cli import progress
from tools.fuzzing import cases
from tools.fuzzing import planning_formats
from tools.fuzzing.cases import Format

_PLANNING = {x.name: x for x in planning_formats.FORMATS}
# They import TensorFlow, see `tools.fuzzing.tensorflow_formats`.
_TENSORFLOW = (
  "profile", "graph_pb", "graph_pbtxt", "saved_model", "checkpoint", "keras",
)  # fmt: skip

_CASES = flags.DEFINE_integer(
  "cases", 100, "How many damaged inputs of each format to try.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "The seed of the damage.")
_FORMAT = flags.DEFINE_multi_enum(
  "format",
  None,
  [*_PLANNING, *_TENSORFLOW],
  "The formats to damage; default: all.",
)
_ONLY_CASE = flags.DEFINE_integer(
  "only_case", None, "Try this case alone.", lower_bound=0
)
_KEEP = flags.DEFINE_boolean(
  "keep", False, "Keep the folder of each faulty case, and print its path."
)
_ECHO = flags.DEFINE_boolean(
  "echo", False, "Print each case before it runs: one may crash the process."
)


def formats(names: list[str]) -> list[Format]:
  """Returns the formats of the names; loads TensorFlow if one needs it."""
  known = dict(_PLANNING)
  if not known.keys() >= set(names):
    # Takes seconds, which the other formats do without.
    from tools.fuzzing import tensorflow_formats

    known |= {x.name: x for x in tensorflow_formats.FORMATS}
  return [known[name] for name in names]


def outcomes(
  kind: Format,
  seed: int,
  numbers: Iterable[int],
  *,
  keep: bool = False,
  echo: bool = False,
) -> Iterator[tuple[list[str], int | None]]:
  """Yields the faults of each case, and its exit code (None if it traced).

  Args:
    kind: the format.
    seed: of the damage; a case depends on the format, the seed and its number.
    numbers: the cases.
    keep: whether the folder of a faulty case is kept.
    echo: whether each case is printed before it runs.
  """
  with tempfile.TemporaryDirectory() as good:
    with contextlib.chdir(good):
      kind.prepare()
    for number in numbers:
      here = f"--format={kind.name} --seed={seed} --only_case={number}"
      if echo:
        print(here, flush=True)
      draw = random.Random(f"{kind.name}/{seed}/{number}")
      folder = tempfile.mkdtemp()
      shutil.copytree(good, folder, dirs_exist_ok=True)
      with contextlib.chdir(folder):
        kind.damage(draw)
        found, codes = cases.faults(kind.commands(draw))
      wrong = [f"{here}: {fault}" for fault in found]
      if found and keep:
        wrong.append(f"kept: {folder}")
      else:
        shutil.rmtree(folder)
      yield wrong, codes[-1]


def main(argv: list[str]) -> int:
  """Tries the cases; returns 1 if there is a fault."""
  del argv
  progress.INTERVAL_S = 1e6  # a slow machine's progress lines are no faults
  # A crash shows where it is, on stderr as it is now: cases redirect it.
  faulthandler.enable(os.dup(2))
  # Many runs in one process make TensorFlow warn that it traces anew.
  logging.set_verbosity(logging.ERROR)
  numbers = range(_CASES.value)
  if _ONLY_CASE.value is not None:
    numbers = [_ONLY_CASE.value]
  total = 0
  for kind in formats(_FORMAT.value or [*_PLANNING, *_TENSORFLOW]):
    counts, num_faults = collections.Counter(), 0
    for wrong, code in outcomes(
      kind, _SEED.value, numbers, keep=_KEEP.value, echo=_ECHO.value
    ):
      counts[code] += 1
      num_faults += len(wrong)
      for fault in wrong:
        print(fault, flush=True)
    ends = ", ".join(
      f"{counts[code]} {'traced' if code is None else f'ended with {code}'}"
      for code in sorted(counts, key=str)
    )
    print(f"{kind.name}: {len(numbers)} cases, {num_faults} faults; {ends}")
    total += num_faults
  return 1 if total else 0


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  app.run(lambda argv: sys.exit(main(argv)))
