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
from baechi_tf.op_graph import OpGraph
from baechi_tf.search.annealing import anneal
from baechi_tf.search.annealing import BEST_COST
from baechi_tf.search.annealing import BEST_MAKESPAN
from baechi_tf.search.annealing import BEST_OVERFLOW
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.hierarchy import make_hierarchy
from baechi_tf.search.instance import Instance
from baechi_tf.search.instance import make_instance
from baechi_tf.search.instance import make_state
from baechi_tf.search.moves import make_room
from baechi_tf.search.order import orders_of

MAX_SECONDS = 1e6
MAX_EVALUATIONS = 10**12
_TRANSFER_PRICE = 0.1
# All memory of the cluster, lacking, costs this many makespans.
_MEMORY_PRICE = 100.0
_HOT, _COLD = 0.01, 0.0001  # temperatures in makespans
_STEPS = 50  # of temperature in a run
_MOST_RUNS = 8
_GREEDY_PART = 0.15  # of the budget, for the last run
# No run is shorter, in moves of each group; a search ends after the most.
_LEAST_TRIES, _MOST_TRIES = 8, 2000


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a search may take.

  Attributes:
    seconds: of wall time; nothing is searched if it is 0.
    evaluations: placements to try instead, whatever the time: equal budgets
      and seeds give equal plans. None goes by `seconds`.
    seed: of the random moves.

  Raises:
    ValueError: a number is negative, not finite or too large.
  """

  seconds: float = 0.0
  evaluations: int | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    if not 0 <= self.seconds <= MAX_SECONDS:  # NaN is not
      raise ValueError(
        f"--search-seconds must be from 0 to {MAX_SECONDS:g}, got"
        f" {self.seconds}"
      )
    if not 0 <= (self.evaluations or 0) <= MAX_EVALUATIONS:
      raise ValueError(
        f"--search-evaluations must be from 0 to {MAX_EVALUATIONS:,}, got"
        f" {self.evaluations}"
      )
    if not 0 <= self.seed < 2**63:
      raise ValueError(f"--seed must be from 0 to 2^63 - 1, got {self.seed}")

  @property
  def is_empty(self) -> bool:
    """Whether nothing is to be searched."""
    amount = self.seconds if self.evaluations is None else self.evaluations
    return amount == 0


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


@dataclasses.dataclass(eq=False)
class _Search:
  """What all runs share, and the best so far."""

  x: Instance
  hierarchy: object
  policy: int
  prices: np.ndarray
  budget: Budget
  progress: Callable[[str], None]
  enough_us: float
  scale_us: float
  evaluations: int = 0
  best: tuple = ()  # whether it lacks memory, cost, makespan, device, order
  overflow: int = 0


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
      inputs stay where they are.
    cluster: the devices and links.
    starts: int `[n]` each, at least one placement that keeps groups together.
    budget: of time or evaluations.
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
  places = [np.asarray(start, np.int64)[graph.order] for start in starts]
  shared = _Search(
    x=x,
    hierarchy=make_hierarchy(graph, x, budget.seed),
    policy=POLICIES.index(policy),
    prices=np.array([_TRANSFER_PRICE, 0.0]),
    budget=budget,
    progress=progress,
    enough_us=enough_us,
    scale_us=0.0,
  )
  begin = time.perf_counter()
  entries = _entries(shared, places)
  interrupted = False
  try:
    _anneal_all(shared, entries, begin)
  except KeyboardInterrupt:
    interrupted = True
  device = np.empty(graph.num_ops, np.int64)
  device[graph.order] = shared.best[3]
  return Found(
    device=device,
    order=graph.order[shared.best[4]],
    overflow_bytes=shared.overflow,
    evaluations=shared.evaluations,
    interrupted=interrupted,
  )


def _entries(shared, places) -> list:
  """Returns the starts with their orders, the best first, evaluated."""
  x = shared.x
  found = []
  for i, device in enumerate(places):
    state = make_state(x, device)
    makespan, _, _ = evaluate(x, state, shared.policy, 0.0, 0.0, np.inf)
    found.append((i, device, makespan))
  shared.scale_us = min(makespan for _, _, makespan in found) or 1.0
  shared.prices[1] = (
    _MEMORY_PRICE * shared.scale_us / float(x.memory.sum(dtype=np.float64))
  )
  entries = []
  for i, device, _ in found:
    orders = orders_of(x, device) if shared.policy == 0 else [None]
    for j, order in enumerate(orders):
      state = _state(x, device, order)
      makespan, transfer_us, overflow = evaluate(
        x, state, shared.policy, 0.0, 0.0, np.inf
      )
      cost = makespan + shared.prices @ [transfer_us, overflow]
      key = (overflow > 0, float(cost), i, j)
      entries.append((key, device, order))
      _keep(shared, device, state.order, cost, makespan, overflow)
  return sorted(entries, key=lambda entry: entry[0])


def _state(x, device, order):
  state = make_state(x, device)
  if order is not None:
    state.order[:] = order
    state.position[order] = np.arange(len(order))
  return state


def _keep(shared, device, order, cost, makespan, overflow) -> None:
  """Keeps a placement if it is the best so far."""
  key = (overflow > 0, makespan if overflow == 0 else cost, cost)
  if not shared.best or key < shared.best[:3]:
    shared.best = (*key, device.copy(), order.astype(np.int64))
    shared.overflow = int(overflow)


def _anneal_all(shared, entries, begin) -> None:
  """Shares the budget among the runs."""
  x, budget = shared.x, shared.budget
  num_groups = int(shared.hierarchy.cluster[0].max()) + 1
  most = _MOST_TRIES * num_groups
  if len(x.memory) == 1:
    return
  if budget.evaluations is None:
    left = budget.seconds - (time.perf_counter() - begin)
    rate = _rate(shared, entries[0])
    amount = min(left * rate, most)
  else:
    amount = min(budget.evaluations, most)
  runs = int(amount / (_LEAST_TRIES * num_groups + 1000))
  runs = min(max(runs, 1), _MOST_RUNS)
  part = (1 - _GREEDY_PART) / runs
  for i, entry in enumerate(_different(entries, runs)):
    seconds = None
    if budget.evaluations is None:
      spent = time.perf_counter() - begin
      seconds = max(budget.seconds - spent, 0.0)
      seconds *= part / (1 - part * i)
    _run(shared, entry, part * amount, seconds, _HOT, budget.seed + i)
  device, order = shared.best[3], shared.best[4]
  seconds = None
  if budget.evaluations is None:
    seconds = max(budget.seconds - (time.perf_counter() - begin), 0.0)
  last = (None, device, order)
  _run(shared, last, _GREEDY_PART * amount, seconds, 0.0, budget.seed + runs)


def _different(entries, runs) -> list:
  """Returns starts for the runs: the best ones, and one on a single device."""
  single = [x for x in entries if (x[1] == x[1][0]).all()]
  second = [x for x in single[:1] if x is not entries[0]]
  rest = [x for x in entries[1:] if not second or x is not second[0]]
  chosen = [entries[0], *second, *rest]
  return [chosen[i % len(chosen)] for i in range(runs)]


def _rate(shared, entry) -> float:
  """Returns about how many placements are evaluated in a second."""
  state = _state(shared.x, entry[1], entry[2])
  begin = time.perf_counter()
  for _ in range(3):
    evaluate(shared.x, state, shared.policy, 0.0, 0.0, np.inf)
  return 6 / max(time.perf_counter() - begin, 1e-6)


def _run(shared, entry, amount, seconds, hot, seed) -> None:
  """Anneals from one start, for a number of evaluations or of seconds."""
  x = shared.x
  _, device, order = entry
  state = _state(x, device, order)
  room = make_room(x, shared.hierarchy, seed)
  tally = np.full(4, np.inf)
  best = state.device.copy()
  begin = time.perf_counter()
  done, spent = 0, 0.0
  chunk = max(1, math.ceil(amount / _STEPS))
  while spent < 1 and done < amount and shared.best[1] > 0:
    heat = hot * (_COLD / _HOT) ** spent * shared.scale_us
    count = int(min(chunk, math.ceil(amount - done)))
    anneal(
      x,
      state,
      shared.hierarchy,
      room,
      shared.policy,
      shared.prices,
      heat,
      count,
      best,
      tally,
    )
    done += count
    shared.evaluations += count
    if seconds is None:
      spent = done / amount
    else:
      now = time.perf_counter() - begin
      spent = now / max(seconds, 1e-9)
      # Chunks of about a fiftieth of the time, however fast evaluations are.
      chunk = max(1, int(done / max(now, 1e-6) * seconds / _STEPS))
      amount = max(amount, done + chunk)
    _keep(
      shared,
      best,
      state.order,
      tally[BEST_COST],
      tally[BEST_MAKESPAN],
      tally[BEST_OVERFLOW],
    )
    fastest = shared.best[1]
    shared.progress(
      f"searching, {shared.evaluations:,} placements, best {fastest:,.0f} us"
    )
    if not shared.best[0] and fastest <= shared.enough_us:
      return
