r"""Times each stage of placing the benchmark models at full op count.

The models are exported where they are not there yet; that is not timed, nor is
compiling or loading our own machine code. Widths are tiny unless `--full`,
because the number of ops does not depend on them; costs are estimated for the
cluster's devices, or read from `--profile`:

    python -m tools.bench_placement --cluster=configs/clusters/NAME.toml
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping

import numpy as np
import rich
from absl import app
from absl import flags
from absl import logging
from rich.table import Table

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import read_cluster
from baechi_tf.coarsening.coplacement import coplacement_groups
from baechi_tf.coarsening.fusion import fuse
from baechi_tf.costed_model import CostSource
from baechi_tf.graph_item import read_item
from baechi_tf.op_graph import OpGraph
from baechi_tf.pipeline import cost_item
from baechi_tf.placers.favorite_child import favorite_children
from baechi_tf.planner import plan
from tools import benchmark_models
from tools.training_step import export
from tools.training_step import TrainingStep

# Tiny in all that leaves the number of ops as it is.
_TINY = {
  "inception": {"batch": 2, "image_size": 75, "classes": 10},
  "gnmt": {"batch": 2, "width": 8, "vocabulary": 50},
  "transformer": {"batch": 2, "width": 8, "vocabulary": 50},
}


@dataclasses.dataclass(frozen=True)
class Timings:
  """Seconds that each stage took on one model.

  `favourite children` is part of `placing with m_sct`, timed once by itself:
  the linear program. `planning` is the sum of the planner's own stages.
  """

  model: str
  num_ops: int
  num_coarse_ops: int
  seconds: Mapping[str, float]


class _Stopwatch:
  """Keeps the seconds of named calls, and of the stages that they name."""

  def __init__(self):
    self.seconds = {}
    self._stage, self._begin = "", 0.0

  def __call__(self, stage):
    """Begins a stage, and ends the one before: a `progress` of a call."""
    now = time.perf_counter()
    if self._stage:
      self.seconds[self._stage] = now - self._begin
    self._stage, self._begin = stage, now

  def time(self, stage, function, *args, **kwargs):
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    self.seconds[stage] = time.perf_counter() - begin
    return result


def time_stages(
  model: str, path: str, cluster: Cluster, profile_path: str | None = None
) -> Timings:
  """Returns how long each stage of placing a SavedModel takes.

  Args:
    model: its name, for the result.
    path: the SavedModel, with a signature "train".
    cluster: where to place it.
    profile_path: the ops' costs; estimates fill what it lacks.
  """
  watch = _Stopwatch()
  item = watch.time("reading", read_item, path, signature="train")
  source = CostSource(profile=profile_path, estimate=profile_path is None)
  graph = cost_item(item, cluster, source, watch).graph
  watch("")
  coarse = fuse(graph, coplacement_groups(graph)).graph
  watch.time("favourite children", favorite_children, coarse, cluster)
  result = watch.time("planning", plan, graph, cluster)
  return Timings(
    model=model,
    num_ops=graph.num_ops,
    num_coarse_ops=coarse.num_ops,
    seconds={**watch.seconds, **result.timings_s},
  )


def _load_machine_code(cluster: Cluster) -> None:
  """Plans a small graph, because the first call compiles, or loads, code."""
  graph = OpGraph.build(
    ["a", "b", "c"],
    np.ones(3),
    output_op=[0, 0],
    output_bytes=[1, 1],
    edge_source=[0, 0],
    edge_output=[0, 1],
    edge_target=[1, 2],
  )
  plan(graph, cluster)


def _exported(model: str, directory: str, full: bool) -> str:
  """Returns where the model is, after exporting it if it is not there."""
  path = os.path.join(directory, f"{model}_{'full' if full else 'tiny'}")
  if not os.path.exists(path):
    overrides = {} if full else _TINY[model]
    sizes = benchmark_models.sizes_for(model, "full", **overrides)
    benchmark = benchmark_models.build(sizes)
    export(TrainingStep(benchmark), path)
  return path


def _print_table(results: list[Timings]) -> None:
  table = Table("stage", title="seconds (microseconds an op)")
  for result in results:
    heading = f"{result.model}\n{result.num_ops:,} ops"
    table.add_column(
      f"{heading}\n{result.num_coarse_ops:,} fused", justify="right"
    )
  for stage in dict.fromkeys(x for result in results for x in result.seconds):
    cells = [
      f"{result.seconds[stage]:.3f}"
      f" ({1e6 * result.seconds[stage] / result.num_ops:.1f})"
      if stage in result.seconds
      else ""
      for result in results
    ]
    table.add_row(stage, *cells)
  rich.print(table)


def main(argv: list[str]) -> None:
  """Prints the timings of the models that the flags choose."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  if flags.FLAGS.profile and len(flags.FLAGS.model) != 1:
    raise app.UsageError("--profile is of one model: choose it with --model")
  logging.set_verbosity(logging.WARNING)  # of TensorFlow's saver
  cluster = read_cluster(flags.FLAGS.cluster)
  paths = {
    model: _exported(model, flags.FLAGS.directory, flags.FLAGS.full)
    for model in flags.FLAGS.model
  }
  _load_machine_code(cluster)
  results = [
    time_stages(model, path, cluster, flags.FLAGS.profile)
    for model, path in paths.items()
  ]
  if flags.FLAGS.json:
    print(json.dumps([dataclasses.asdict(x) for x in results], indent=1))
  else:
    _print_table(results)


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_string(
    "cluster", "configs/clusters/4_v100_pcie.toml", "The cluster file."
  )
  flags.DEFINE_string(
    "directory", "demo_output/benchmark", "Where the models are, or are made."
  )
  flags.DEFINE_multi_enum(
    "model", list(_TINY), list(_TINY), "Which models; may be repeated."
  )
  flags.DEFINE_bool("full", False, "Full widths (2 GB of files).")
  flags.DEFINE_string(
    "profile", None, "Costs of one model, in place of estimates."
  )
  flags.DEFINE_bool("json", False, "Print JSON in place of a table.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
