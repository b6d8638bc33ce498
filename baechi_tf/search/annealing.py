"""Simulated annealing over placements (Kirkpatrick et al., Science 1983).

The cost is the makespan, a small price on transfers and a high one on memory
that devices lack. The limit that a move's cost must stay below is drawn before
the move is evaluated, so that most evaluations stop early.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.event_loop import PRIORITY
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.hierarchy import Hierarchy
from baechi_tf.search.instance import Instance
from baechi_tf.search.instance import State
from baechi_tf.search.moves import move
from baechi_tf.search.moves import reorder
from baechi_tf.search.moves import shift
from baechi_tf.search.moves import undo
from baechi_tf.search.moves import uniform

COST, BEST_COST, BEST_MAKESPAN, BEST_OVERFLOW = range(4)  # entries of `tally`
_REORDERED = 0.3  # how likely a move changes the order, if it counts


class Problem(NamedTuple):
  """A graph on a cluster, and the cost of a placement."""

  x: Instance
  hierarchy: Hierarchy
  policy: int  # an index into `event_loop.POLICIES`
  prices: np.ndarray  # float64 [2], of a us of transfers, a byte of overflow


class Best(NamedTuple):
  """The best placement of one run so far, and the cost of the current one."""

  device: np.ndarray  # int32 [n]
  order: np.ndarray  # int32 [n]
  tally: np.ndarray  # float64 [4]; all infinite before the run


def new_best(s: State) -> Best:
  """Returns room for the best placement of a run that begins at a state."""
  schedule = s.schedule
  return Best(schedule.device.copy(), schedule.order.copy(), np.full(4, np.inf))


@compiled
def anneal(problem, s, room, temperature, evaluations, best):
  """Tries some moves at one temperature.

  Args:
    problem: the `Problem`.
    s: the `State`; the current placement.
    room: the `Room`.
    temperature: in the unit of costs; 0 takes no move that costs more.
    evaluations: how many placements to try.
    best: the `Best`, brought up to date: first the placement that fits the
      memory, then the faster one, then the one that costs less.
  """
  x, h, policy, prices = problem
  if best.tally[BEST_COST] == np.inf:
    _accept(x, s, room, policy, prices, np.inf, best)
  for _ in range(evaluations):
    op, at, moved = -1, 0, 0
    if policy == PRIORITY and uniform(room.random) < _REORDERED:
      op, at = reorder(x, s, room)
    else:
      moved = move(x, s, h, room)
      if moved == 0:
        continue
    luck = temperature * -np.log(1.0 - uniform(room.random))
    limit = best.tally[COST] + luck
    if not _accept(x, s, room, policy, prices, limit, best):
      if op >= 0:
        shift(x, s, op, at)
      undo(x, s, room, moved)


@compiled_inner
def _accept(x, s, room, policy, prices, limit, best):
  """Evaluates the placement, and notes it unless its cost is above a limit."""
  makespan, transfer_us, overflow = evaluate(
    x, s, policy, prices[0], prices[1], limit
  )
  cost = makespan + prices[0] * transfer_us + prices[1] * overflow
  if cost > limit or makespan < 0:
    return False
  tally = best.tally
  tally[COST] = cost
  _find_chain(s, room)
  fits, best_fits = overflow == 0, tally[BEST_OVERFLOW] == 0
  better = fits and not best_fits
  if fits and best_fits:
    faster = makespan < tally[BEST_MAKESPAN]
    as_fast = makespan == tally[BEST_MAKESPAN]
    better = faster or (as_fast and cost < tally[BEST_COST])
  elif not fits and not best_fits:
    better = cost < tally[BEST_COST]
  if better:
    best.device[:] = s.schedule.device
    best.order[:] = s.schedule.order
    tally[BEST_COST] = cost
    tally[BEST_MAKESPAN] = makespan
    tally[BEST_OVERFLOW] = overflow
  return True


@compiled_inner
def _find_chain(s, room):
  """Lists the ops that the last to end waited for, one after another."""
  finish, cause, chain = s.schedule.finish, s.schedule.cause, room.chain
  op = np.argmax(finish)
  length = 0
  while op >= 0 and length < len(chain):
    chain[length] = op
    length += 1
    op = cause[op]
  room.count[1] = length
