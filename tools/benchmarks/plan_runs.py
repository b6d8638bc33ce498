"""Makes the plans of a model for a network, and runs them there.

Everything that is measured runs in processes that are pinned to one core each:
the profile, the link, and the placed models.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import read_cluster
from baechi_tf.runner.cluster_run import ClusterRun
from baechi_tf.runner.measurement import Measurement
from baechi_tf.runner.start import Host
from baechi_tf.runner.start import local_run
from tools.acceptance import run_baechi
from tools.benchmarks import plan_models
from tools.benchmarks.plan_accuracy import Case
from tools.benchmarks.plan_processes import BAECHI
from tools.benchmarks.plan_processes import output_of
from tools.benchmarks.plan_processes import pinned

# A plan's name -> the arguments of `baechi place` that make it.
PLANS: Mapping[str, tuple[str, ...]] = {
  **{
    name: (f"--placer={name}",)
    for name in (
      "single_device", "contiguous", "m_topo", "m_etf", "m_sct", "best"
    )
  },
  "best_unordered": ("--placer=best", "--no-order"),
}  # fmt: skip
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model that is ready to be placed.

  Attributes:
    name: its name.
    path: its SavedModel.
    profile: the profile of its step on one core.
    batch: the inputs of that step, and of all others.
  """

  name: str
  path: str
  profile: str
  batch: Mapping[str, np.ndarray]

  def arguments(self) -> list[str]:
    """Returns what every planning command needs but outputs and cluster."""
    return [
      self.path,
      f"--signature={plan_models.SIGNATURE}",
      f"--profile={self.profile}",
    ]


@dataclasses.dataclass(frozen=True)
class Placed:
  """A placed model and what its plan says.

  Attributes:
    path: the placed SavedModel.
    plan: each op's device and, where it is enforced, its place in the order.
    predicted_us: the step's predicted time.
    bytes_moved: what it sends between devices in a step.
  """

  path: str
  plan: Mapping
  predicted_us: float
  bytes_moved: int


@dataclasses.dataclass(frozen=True)
class Rounds:
  """The amount of measuring: rounds, steps and seconds.

  Attributes:
    num_rounds: how often each model of a group has its turn.
    num_steps: its steps in a turn.
    round_s: the seconds after which a turn ends all the same.
  """

  num_rounds: int
  num_steps: int
  round_s: float


def prepare(name: str, directory: str, say: Say) -> Subject:
  """Exports a model into a directory and profiles it there, on one core.

  Raises:
    RunError: the profile could not be measured.
  """
  path, profile, inputs = (
    os.path.join(directory, x) for x in ("model", "profile", "batch.npz")
  )
  say(f"{name}: exporting")
  batch = plan_models.export(name, path)
  np.savez(inputs, **batch)
  say(f"{name}: profiling")
  core = min(os.sched_getaffinity(0))
  output_of(
    [
      *pinned([core]),
      *BAECHI,
      *("profile", path, profile),
      *(f"--signature={plan_models.SIGNATURE}", f"--inputs={inputs}"),
    ]
  )
  return Subject(name, path, profile, batch)


def place(
  subject: Subject, network: str, cluster: str, directory: str, say: Say
) -> dict[str, Placed]:
  """Returns the placed models of a network's cluster file, by plan.

  Raises:
    RuntimeError: a plan was not found; the command has said why.
  """
  placed = {}
  for name, arguments in PLANS.items():
    say(f"{subject.name}, {network}: placing with {name}")
    path, report = (
      os.path.join(directory, f"{subject.name}.{network}.{name}.{x}")
      for x in ("placed", "report")
    )
    summary = run_baechi(
      "place", *subject.arguments(), path, f"--cluster={cluster}",
      f"--report={report}", *arguments,
    )  # fmt: skip
    with open(os.path.join(report, "placement.json"), encoding="utf-8") as file:
      plan = json.load(file)
    placed[name] = Placed(
      path,
      {key: plan.get(key) for key in ("placement", "order")},
      summary["makespan_us"],
      summary["bytes_moved"],
    )
  return placed


def same_model(placed: Mapping[str, Placed]) -> dict[str, str]:
  """Returns, for each plan, the first one that gives the same placed model."""
  first = {}
  for name, model in placed.items():
    first[name] = next(
      (x for x in first.values() if placed[x].plan == model.plan), name
    )
  return first


def run(
  subject: Subject,
  network: str,
  cluster: str,
  hosts: Sequence[Host],
  placed: Mapping[str, Placed],
  rounds: Rounds,
) -> list[Case]:
  """Returns what was measured of the placed models beside their predictions.

  Plans that give the same model share one measurement.

  Args:
    subject: the model.
    network: the network's name.
    cluster: the cluster file.
    hosts: both processes' addresses, networks and cores.
    placed: the placed models, by plan.
    rounds: how much is measured.

  Raises:
    ChildProcessError: a process ended, or a step failed.
    TimeoutError: a process is not up in time.
  """
  first = same_model(placed)
  with local_run(read_cluster(cluster), hosts=hosts) as processes:
    for name in dict.fromkeys(first.values()):
      processes.load(
        name, placed[name].path, plan_models.SIGNATURE, subject.batch
      )
    measured = _measure(processes, list(dict.fromkeys(first.values())), rounds)
  return [
    Case(
      model=subject.name,
      network=network,
      plan=name,
      predicted_us=model.predicted_us,
      bytes_moved=model.bytes_moved,
      **_figures(measured[first[name]]),
    )
    for name, model in placed.items()
  ]


def _measure(
  processes: ClusterRun, names: Sequence[str], rounds: Rounds
) -> dict[str, list[Measurement]]:
  """Returns the measurements of each model, one a round."""
  num_steps = {}
  for name in names:
    processes.warm_up(name)
    step_us = processes.run(name, 1).median_us
    affordable = int(rounds.round_s * 1e6 / step_us)
    num_steps[name] = min(max(affordable, 1), rounds.num_steps)
  measured = {name: [] for name in names}
  for _ in range(rounds.num_rounds):
    for name in names:
      measured[name].append(processes.run(name, num_steps[name]))
  return measured


def _figures(measurements: Sequence[Measurement]) -> dict:
  """Returns those fields of a `Case` that were measured."""
  return {
    "rounds_us": tuple(x.median_us for x in measurements),
    "least_us": min(x.least_us for x in measurements),
    "cpu_us": tuple(
      statistics.median(x)
      for x in zip(*(x.cpu_us for x in measurements), strict=True)
    ),
  }
