r"""Measures the search: its speed, its gain over the placers, what it misses.

Graphs of known least makespan give the speed and the gain. Small ones, of ten
ops or fewer, show how often the search finds the fastest of all placements:

    python -m tools.bench_search --seconds=2 --cases=1000

With `--graph`, cost graphs are planned on `--cluster` instead, each with and
without the search.
"""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import rich
from absl import app
from absl import flags
from rich.table import Table

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import read_cluster
from baechi_tf.cost_graph import read_cost_graph
from baechi_tf.event_loop import EXECUTOR
from baechi_tf.event_loop import POLICIES
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import plan
from baechi_tf.search.budget import Budget
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.instance import make_instance
from baechi_tf.search.instance import make_state
from baechi_tf.search.placement_search import search
from baechi_tf.simulator import simulate
from tools.known_optimum import known_optimum

_DEVICES = 4
_DENSE = {"density": 4.0, "delay": 5.0}
_SPARSE = {"density": 1.8, "delay": 0.5}


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Makespans in microseconds, and the speed of the search.

  `least_us` is the least of any placement and order; None if not known. A
  makespan is infinite where no plan fits.
  """

  name: str
  num_ops: int
  policy: str
  placers_us: float
  search_us: float
  least_us: float | None
  evaluations_per_s: float | None


def measure(
  num_ops: int, policy: str, budget: Budget, *, density: float, delay: float
) -> Outcome:
  """Returns what the search makes of a graph of known least makespan."""
  graph, cluster, least_us, _ = known_optimum(
    num_ops, _DEVICES, density=density, delay=delay
  )
  before = plan(graph, cluster, order=policy == "priority")
  starts = [x.simulation.device for x in before.candidates if x.simulation]
  # Compiles what it has not compiled yet.
  search(graph, cluster, starts, Budget(evaluations=1), policy=policy)
  begin = time.perf_counter()
  found = search(graph, cluster, starts, budget, policy=policy)
  seconds = time.perf_counter() - begin
  after = simulate(
    graph, cluster, found.device, policy=policy, order=found.order
  )
  return Outcome(
    name=f"{density:g} edges, delay {delay:g}",
    num_ops=graph.num_ops,
    policy=policy,
    placers_us=before.simulation.makespan_us,
    search_us=after.makespan_us,
    least_us=least_us,
    evaluations_per_s=found.evaluations / seconds,
  )


def measure_graph(
  path: str, graph: OpGraph, cluster: Cluster, budget: Budget, policy: str
) -> Outcome:
  """Returns what the search makes of a cost graph."""
  ordered = policy == "priority"
  makespans = []
  for amount in (Budget(), budget):
    try:
      planned = plan(graph, cluster, order=ordered, budget=amount)
      makespans.append(planned.simulation.makespan_us)
    except InfeasiblePlacementError:
      makespans.append(np.inf)
  name = os.path.basename(path)
  return Outcome(name, graph.num_ops, policy, *makespans, None, None)


def small_gaps(cases: int, budget: Budget) -> np.ndarray:
  """Returns how far plans of small graphs are above the fastest placement.

  Each of 3 to 10 ops on two devices, as TensorFlow's executor runs them.

  Args:
    cases: how many graphs.
    budget: of the search of each.

  Returns:
    float64 `[cases]`, makespan / least makespan of all placements - 1.
  """
  gaps = np.empty(cases)
  for seed in range(cases):
    rng = np.random.default_rng(seed)
    graph, cluster, _, _ = known_optimum(
      int(rng.integers(3, 11)),
      2,
      density=rng.uniform(1.0, 3.0),
      delay=rng.uniform(0.2, 3.0),
      seed=seed,
    )
    x = make_instance(graph, cluster)
    least = min(
      evaluate(x, make_state(x, device), EXECUTOR, 0.0, 0.0, np.inf)[0]
      for device in itertools.product(range(2), repeat=graph.num_ops)
    )
    planned = plan(graph, cluster, order=False, budget=budget)
    gaps[seed] = planned.simulation.makespan_us / least - 1
  return gaps


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
  table = Table(title="ms; gap to the least makespan; evaluations a second")
  for heading in ("graph", "policy"):
    table.add_column(heading)
  for heading in ("ops", "placers", "search", "less by", "gap", "speed"):
    table.add_column(heading, justify="right")
  for x in outcomes:
    found_one = np.isfinite(x.placers_us)
    table.add_row(
      x.name,
      x.policy,
      f"{x.num_ops:,}",
      f"{x.placers_us / 1e3:.1f}" if found_one else "none",
      f"{x.search_us / 1e3:.1f}" if np.isfinite(x.search_us) else "none",
      f"{1 - x.search_us / x.placers_us:.1%}" if found_one else "",
      f"{x.search_us / x.least_us - 1:.1%}" if x.least_us else "",
      f"{x.evaluations_per_s:,.0f}" if x.evaluations_per_s else "",
    )
  rich.print(table)


def main(argv: list[str]) -> None:
  """Prints the tables that the flags choose."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  budget = Budget(values.seconds)
  if values.graph:
    cluster = read_cluster(values.cluster)
    if values.memory_mib:
      cluster = dataclasses.replace(
        cluster,
        devices=tuple(
          dataclasses.replace(x, memory_bytes=values.memory_mib << 20)
          for x in cluster.devices
        ),
      )
    _print_outcomes(
      [
        measure_graph(path, read_cost_graph(path), cluster, budget, policy)
        for path in values.graph
        for policy in values.policy
      ]
    )
    return
  if values.sizes:
    _print_outcomes(
      [
        measure(num_ops, policy, budget, **kind)
        for kind in (_SPARSE, _DENSE)
        for num_ops in map(int, values.sizes)
        for policy in values.policy
      ]
    )
  if values.cases:
    gaps = small_gaps(values.cases, Budget(evaluations=5000))
    print(
      f"{values.cases:,} graphs of 3 to 10 ops: {np.mean(gaps <= 1e-9):.1%} get"
      f" the fastest placement; gap {gaps.mean():.2%} in the mean,"
      f" {gaps.max():.1%} at most"
    )


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_float("seconds", 2.0, "How long each search takes.")
  flags.DEFINE_list("sizes", ["500", "2500", "10000"], "Ops of each graph.")
  flags.DEFINE_multi_enum(
    "policy", POLICIES[:2], POLICIES[:2], "Which policies; may be repeated."
  )
  flags.DEFINE_integer("cases", 200, "How many small graphs; 0: none.")
  flags.DEFINE_multi_string("graph", [], "A cost graph; may be repeated.")
  flags.DEFINE_string(
    "cluster", "configs/clusters/4_v100_pcie.toml", "The cost graphs' cluster."
  )
  flags.DEFINE_integer("memory_mib", None, "Memory of each of its devices.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
