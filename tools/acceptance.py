r"""Places the benchmark models through the command line, and checks each.

Exports the training steps of Inception-V3, a 4-layer GNMT and a Transformer,
small but with the structure of the full ones, and one of a smaller Transformer
that ends in Keras' own Adam; profiles each once; places it on
2 and on 4 CPU devices, none of which can hold it alone; and runs it beside the
model that was not placed. Prints the tables of docs/acceptance.md:

    python -m tools.acceptance
"""

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterator
from collections.abc import Sequence

from absl import app

from baechi_tf.cli import main as baechi
from tools import benchmark_models
from tools import step_run
from tools import training_step
from tools.op_fates import EXPLANATIONS
from tools.op_fates import FATES
from tools.placed_model import Check
from tools.placed_model import PlacedModel
from tools.placed_model import run_model

# A step's model and optimizer, and the sizes in which the model differs from
# the preset "tiny". `keras_adam` ends in Keras' own `optimizer.apply`.
MODELS = {
  "inception": ("inception", "fused_adam", {}),
  "gnmt": ("gnmt", "fused_adam", {"layers": 4, "length": 4}),
  "transformer": ("transformer", "fused_adam", {}),
  "keras_adam": ("transformer", "adam", {"layers": 1}),
}
SIGNATURE = "train"
NUM_STEPS = 3
# So many placements, whatever time they take, give the same plan each time.
SEARCH = "--search-evaluations=1000"
# Of what the step needs on one device: what each of that many has.
MEMORY_FRACTIONS = {2: 0.75, 4: 0.5}


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to be placed, on disk.

  Attributes:
    name: a key of `MODELS`.
    path: its SavedModel.
    profile: its profile, measured on this CPU.
    peak_memory_bytes: what its step needs on one device.
  """

  name: str
  path: str
  profile: str
  peak_memory_bytes: int

  def arguments(self) -> list[str]:
    """Returns what every planning command needs but outputs and cluster."""
    return [self.path, f"--signature={SIGNATURE}", f"--profile={self.profile}"]


def prepare(name: str, directory: str) -> Subject:
  """Exports and profiles a model, in an empty directory."""
  path, profile = (os.path.join(directory, x) for x in ("model", "profile"))
  model, optimizer, overrides = MODELS[name]
  sizes = benchmark_models.sizes_for(model, "tiny", **overrides)
  step = training_step.TrainingStep(benchmark_models.build(sizes), optimizer)
  training_step.export(step, path)
  run_baechi(
    "profile", path, profile, f"--signature={SIGNATURE}", "--num-steps=3"
  )
  subject = Subject(name, path, profile, 0)
  cluster = write_cluster(os.path.join(directory, "one.toml"), 1, 2**40)
  plan = os.path.join(directory, "one.json")
  summary = run_baechi(
    "place", *subject.arguments(), plan, f"--cluster={cluster}", "--emit=plan"
  )
  peak = summary["devices"][0]["peak_memory_bytes"]
  return dataclasses.replace(subject, peak_memory_bytes=peak)


def write_cluster(path: str, num_devices: int, memory_bytes: int) -> str:
  """Writes a cluster of CPUs whose links cost nothing; returns the path.

  Logical devices share one memory and one processor. With free links, and as if
  each had a processor of its own, a plan uses them all.
  """
  name = "/job:localhost/replica:0/task:0/device:CPU"
  lines = ['channel = "parallel"']
  for k in range(num_devices):
    lines += ["[[device]]", f'name = "{name}:{k}"', 'type = "CPU"']
    lines += [f"memory = {memory_bytes}", f'processor = "{k}"']
  lines += ["[link]", "latency_us = 0", "bytes_per_us = 1e9", ""]
  with open(path, "w", encoding="utf-8") as file:
    file.write("\n".join(lines))
  return path


def run_baechi(*argv: str) -> dict:
  """Runs a `baechi` command with `--json`; returns what it says.

  Raises:
    RuntimeError: it failed; it has said why on stderr.
  """
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    code = baechi.main([*argv, "--json"])
  if code:
    raise RuntimeError(f"baechi {' '.join(argv)} ended with {code}")
  return json.loads(output.getvalue())


def place(subject: Subject, num_devices: int, directory: str) -> PlacedModel:
  """Places a model on devices that are too small for it, in a directory."""
  memory_bytes = int(subject.peak_memory_bytes * MEMORY_FRACTIONS[num_devices])
  cluster, placed, report = (
    os.path.join(directory, x) for x in ("cluster.toml", "placed", "report")
  )
  write_cluster(cluster, num_devices, memory_bytes)
  run_baechi(
    "place", *subject.arguments(), placed, f"--cluster={cluster}",
    f"--report={report}", SEARCH,
  )  # fmt: skip
  plan = os.path.join(report, "placement.json")
  return PlacedModel(placed, SIGNATURE, plan)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """A check of a model on so many devices."""

  name: str
  num_devices: int
  check: Check


def check_model(subject: Subject, directory: str) -> Iterator[Result]:
  """Yields the checks of a model on each number of devices, two for each."""
  placed = {}
  for num_devices in MEMORY_FRACTIONS:
    own = os.path.join(directory, str(num_devices))
    os.mkdir(own)
    placed[num_devices] = place(subject, num_devices, own)
  for rewritten in (True, False):
    run = run_model(subject.path, SIGNATURE, NUM_STEPS, rewritten=rewritten)
    for num_devices, model in placed.items():
      check = model.check(run, rewritten=rewritten)
      yield Result(subject.name, num_devices, check)


def tables(results: Sequence[Result]) -> Iterator[str]:
  """Yields the tables of docs/acceptance.md, line by line."""
  for rewritten in (False, True):
    mine = [x for x in results if x.check.account.rewritten == rewritten]
    yield f"## {'As TensorFlow rewrites it' if rewritten else 'As written'}\n"
    yield from _markdown(["", *(f"{x.name}, {x.num_devices}" for x in mine)])
    columns = [_figures(x.check) for x in mine]
    for name in columns[0]:
      yield from _markdown([name, *(x[name] for x in columns)], ruled=False)
    yield ""


def _figures(check: Check) -> dict[str, str]:
  """Returns the cells of a column, by what they are."""
  account, difference = check.account, check.difference
  elsewhere = [x.fate for x in account.exceptions]
  return {
    "planned ops": f"{len(account.fates):,}",
    **{f"- {fate}": f"{account.count(fate):,}" for fate in FATES},
    "judged": f"{len(account.judged):,}",
    "on their planned device": f"{100 * account.agreement:.2f} %",
    **{
      f"- elsewhere: {reason}": f"{elsewhere.count(fate):,}"
      for fate, reason in EXPLANATIONS.items()
    },
    "- elsewhere, not explained": f"{len(account.unexplained):,}",
    "tensors sent": f"{sum(check.placed.executed.num_sent.values()):,}",
    "losses differ by (relative)": f"{difference.output:.1e}",
    "variables differ by": f"{difference.variable:.1e}",
    "variables that changed": (
      f"{difference.num_changed:,} of {len(check.model.initial):,}"
    ),
  }


def _markdown(cells: Sequence[str], *, ruled: bool = True) -> Iterator[str]:
  yield f"| {' | '.join(cells)} |"
  if ruled:
    yield f"|---|{'---:|' * (len(cells) - 1)}"


def main(argv: list[str]) -> None:
  """Prints the tables for all models."""
  if len(argv) > 1:
    raise app.UsageError("no arguments are wanted")
  step_run.make_cpus(max(MEMORY_FRACTIONS))
  results = []
  for name in MODELS:
    with tempfile.TemporaryDirectory() as directory:
      subject = prepare(name, directory)
      results += check_model(subject, directory)
  print("\n".join(tables(results)))


if __name__ == "__main__":
  app.run(main)
