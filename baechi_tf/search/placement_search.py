"""Searches for a better placement than those that it is given.

Several runs of simulated annealing start from the best placements, from one
device and with different orders, and one greedy run ends with the best of all.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.event_loop import POLICIES
from baechi_tf.event_loop import PRIORITY
from baechi_tf.op_graph import OpGraph
from baechi_tf.search.annealing import anneal
from baechi_tf.search.annealing import BEST_COST
from baechi_tf.search.annealing import BEST_MAKESPAN
from baechi_tf.search.annealing import BEST_OVERFLOW
from baechi_tf.search.annealing import new_best
from baechi_tf.search.annealing import Problem
from baechi_tf.search.budget import Budget
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.folded import fold
from baechi_tf.search.folded import folded_placements
from baechi_tf.search.hierarchy import make_hierarchy
from baechi_tf.search.instance import Instance
from baechi_tf.search.instance import make_instance
from baechi_tf.search.instance import make_state
from baechi_tf.search.moves import make_room
from baechi_tf.search.order import orders_of

_TRANSFER_PRICE = 0.1
# All memory of the cluster, lacking, costs this many makespans.
_MEMORY_PRICE = 100.0
_HOT, _COLD = 0.01, 0.0001  # temperatures in makespans
_STEPS = 50  # of temperature in a run
_MOST_RUNS = 8
_GREEDY_PART = 0.15  # of the budget, for the last run
# A run has at least so many moves of each group. From the second on, every
# other run is hotter by the factor and counts nothing but the makespan: the
# best placement of a small graph can be far from all good ones.
_LEAST_TRIES, _HOT_TRIES, _HOTTER = 8, 50, 30.0
# A search ends after so many placements, and so many for each group.
_MOST_PLACEMENTS, _MOST_TRIES = 50_000, 2000
_OPS_AT_ONCE = 1_000_000  # evaluated between two looks for Ctrl-C


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """The best placement of a search.

  Attributes:
    device: int64 `[n]`.
    order: int64 `[n]`, the order that the policy goes by.
    overflow_bytes: what the devices lack for it; 0 if it fits.
    evaluations: how many placements were tried.
    interrupted: whether Ctrl-C ended the search.
  """

  device: np.ndarray
  order: np.ndarray
  overflow_bytes: int
  evaluations: int
  interrupted: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
  """An evaluated placement and order; those with lower keys are better."""

  key: tuple[bool, float, float]  # whether memory lacks, makespan or cost, cost
  device: np.ndarray
  order: np.ndarray
  overflow: int

  @classmethod
  def of(cls, device, order, cost, makespan, overflow) -> "_Entry":
    key = (overflow > 0, cost if overflow > 0 else makespan, cost)
    return cls(key, device.copy(), order.astype(np.int64), int(overflow))

  def is_enough(self, enough_us: float) -> bool:
    """Whether nothing can be better."""
    return not self.key[0] and self.key[1] <= enough_us


def search(
  graph: OpGraph,
  cluster: Cluster,
  starts: Sequence[np.ndarray],
  budget: Budget,
  *,
  policy: str = "priority",
  enough_us: float = 0.0,
  progress: Callable[[str], None] = lambda stage: None,
) -> Found:
  """Returns the best placement found, none worse than any of `starts`.

  One that fits the memory is better than any that does not; of those that do
  not, the one that lacks least, mostly.

  Args:
    graph: the ops and their costs; groups stay together, and the step's
      inputs and pinned ops stay where they are.
    cluster: the devices and links.
    starts: int `[n]` each, at least one placement that keeps groups and pins.
    budget: of time or evaluations. Compiling, the first time, is not in it.
    policy: which of its ready ops a processor starts, "priority" or "executor".
    enough_us: no placement can be faster; the search ends when one is as fast.
    progress: called with a line, now and then.

  Raises:
    ValueError: `policy` is unknown, or the graph has no times for a device's
      type.
  """
  if policy not in POLICIES[:2]:
    raise ValueError(
      f"policy is {policy!r}, must be one of {', '.join(POLICIES[:2])}"
    )
  x = make_instance(graph, cluster)
  # Starts that are the same are one.
  starts = np.unique(np.array(starts, np.int64), axis=0)
  places = [start[graph.order] for start in starts]
  group = graph.group[graph.order]
  folded = fold(x)
  if folded:
    for device in folded_placements(x, folded, group):
      device[x.fixed] = places[0][x.fixed]
      places.append(device)
  number = POLICIES.index(policy)
  scale_us = min(_makespan(x, device, number) for device in places) or 1.0
  memory = float(x.memory.sum(dtype=np.float64))
  prices = np.array([_TRANSFER_PRICE, _MEMORY_PRICE * scale_us / memory])
  hierarchy = make_hierarchy(
    group, x, budget.seed, folded.line if folded else None
  )
  problem = Problem(x, hierarchy, number, prices)
  entries = sorted(_entries(problem, places), key=lambda entry: entry.key)
  race = _Race(problem, budget, entries[0], scale_us, enough_us, progress)
  interrupted = False
  try:
    race.run(entries)
  except KeyboardInterrupt:
    interrupted = True
  device = np.empty(graph.num_ops, np.int64)
  device[graph.order] = race.best.device
  return Found(
    device=device,
    order=graph.order[race.best.order],
    overflow_bytes=race.best.overflow,
    evaluations=race.evaluations,
    interrupted=interrupted,
  )


def _makespan(x: Instance, device: np.ndarray, policy: int) -> float:
  return evaluate(x, make_state(x, device), policy, 0.0, 0.0, np.inf)[0]


def _entries(problem: Problem, places: Sequence[np.ndarray]) -> list[_Entry]:
  """Returns the starts, each with all orders that the policy goes by."""
  x, _, policy, prices = problem
  entries = []
  for device in places:
    orders = orders_of(x, device)
    for order in orders if policy == PRIORITY else orders[:1]:
      makespan, transfer_us, overflow = evaluate(
        x, make_state(x, device, order), policy, 0.0, 0.0, np.inf
      )
      cost = makespan + prices @ [transfer_us, overflow]
      entries.append(_Entry.of(device, order, cost, makespan, overflow))
  return entries


def _different(entries: list[_Entry], runs: int) -> list[_Entry]:
  """Returns starts for the runs: the best ones, and one on a single device."""
  single = [x for x in entries if (x.device == x.device[0]).all()]
  second = [x for x in single[:1] if x is not entries[0]]
  rest = [x for x in entries[1:] if x not in second]
  chosen = [entries[0], *second, *rest]
  return [chosen[i % len(chosen)] for i in range(runs)]


class _Race:
  """Runs that share a budget and the best placement.

  Attributes:
    best: the best `_Entry` of all runs and starts so far.
    evaluations: how many placements the runs have tried.
  """

  def __init__(self, problem, budget, best, scale_us, enough_us, progress):
    self.best = best
    self.evaluations = 0
    self._problem = problem
    self._budget = budget
    self._scale_us = scale_us
    self._enough_us = enough_us
    self._progress = progress

  def run(self, entries: list[_Entry]) -> None:
    """Spends the budget on runs from the entries, the best of them first."""
    if len(self._problem.x.memory) == 1:
      return
    rate = self._rate()
    begin = time.perf_counter()
    timed = self._budget.evaluations is None
    seconds = self._budget.seconds
    amount = seconds * rate if timed else self._budget.evaluations
    num_groups = int(self._problem.hierarchy.cluster[0].max()) + 1
    amount = min(amount, _MOST_TRIES * num_groups + _MOST_PLACEMENTS)
    runs = int(amount / (_LEAST_TRIES * num_groups + 300))
    runs = min(max(runs, 1), _MOST_RUNS)
    part = (1 - _GREEDY_PART) / runs
    ample = part * amount > _HOT_TRIES * num_groups
    for i, entry in enumerate(_different(entries, runs)):
      left = seconds - (time.perf_counter() - begin)
      self._anneal(
        entry,
        part * amount,
        left * part / (1 - part * i) if timed else None,
        _HOT * (_HOTTER if ample and i % 2 else 1.0),
        self._budget.seed + i,
        free_transfers=bool(ample and i % 2),
      )
    left = seconds - (time.perf_counter() - begin) if timed else None
    last = self._budget.seed + runs
    self._anneal(self.best, _GREEDY_PART * amount, left, 0.0, last)

  def _rate(self) -> float:
    """Returns about how many placements are evaluated in a second."""
    problem, entry = self._problem, self.best
    state = make_state(problem.x, entry.device, entry.order)
    best = new_best(state)
    room = make_room(problem.x, problem.hierarchy, self._budget.seed)
    anneal(problem, state, room, 0.0, 0, best)  # compiles it, the first time
    begin = time.perf_counter()
    for _ in range(3):
      evaluate(problem.x, state, problem.policy, 0.0, 0.0, np.inf)
    return 6 / max(time.perf_counter() - begin, 1e-6)

  def _anneal(
    self, entry, amount, seconds, hot, seed, *, free_transfers=False
  ) -> None:
    """Anneals from an entry, for a number of placements or of seconds."""
    problem = self._problem
    if free_transfers:
      prices = problem.prices * [0.0, 1.0]
      problem = problem._replace(prices=prices)
    state = make_state(problem.x, entry.device, entry.order)
    room = make_room(problem.x, problem.hierarchy, seed)
    best = new_best(state)
    begin = time.perf_counter()
    done, spent = 0, 0.0
    chunk = max(1, math.ceil(amount / _STEPS))
    while spent < 1 and not self.best.is_enough(self._enough_us):
      heat = hot * (_COLD / _HOT) ** spent * self._scale_us
      count = chunk if seconds else min(chunk, math.ceil(amount - done))
      self._try(problem, state, room, heat, count, best)
      done += count
      if seconds is None:
        spent = done / amount
      else:
        now = time.perf_counter() - begin
        spent = now / max(seconds, 1e-9)
        # Chunks of about a fiftieth of the time, whatever placements take.
        chunk = max(1, int(done / max(now, 1e-6) * seconds / _STEPS))

  def _try(self, problem, state, room, heat, count, best) -> None:
    """Tries `count` placements, and keeps the best so far."""
    at_once = max(1, _OPS_AT_ONCE // len(state.schedule.device))
    while count > 0 and not self.best.is_enough(self._enough_us):
      now = min(count, at_once)
      anneal(problem, state, room, heat, now, best)
      count -= now
      self.evaluations += now
      found = _Entry.of(
        best.device,
        best.order,
        best.tally[BEST_COST],
        best.tally[BEST_MAKESPAN],
        best.tally[BEST_OVERFLOW],
      )
      if found.key < self.best.key:
        self.best = found
      self._progress(
        f"searching, {self.evaluations:,} placements, best"
        f" {self.best.key[1]:,.0f} us"
      )
