"""Simulated annealing over placements (Kirkpatrick et al., Science 1983).

The cost is the makespan, a small price on transfers and a high one on memory
that devices lack. The limit that a move's cost must stay below is drawn before
the move is evaluated, so that most evaluations stop early.
"""

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.compiled import compiled_inner
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.moves import move
from baechi_tf.search.moves import undo
from baechi_tf.search.moves import uniform

COST, BEST_COST, BEST_MAKESPAN, BEST_OVERFLOW = range(4)  # entries of `tally`


@compiled
def anneal(
  x, s, h, room, policy, prices, temperature, evaluations, best, tally
):
  """Tries some moves at one temperature, in the unit of costs.

  Args:
    x: the `Instance`.
    s: the `State`; the current placement.
    h: the `Hierarchy`.
    room: the `Room`.
    policy: an index into `event_loop.POLICIES`.
    prices: float64 `[2]`, of a microsecond of transfers, of a byte of overflow.
    temperature: 0 takes no move that costs more.
    evaluations: how many placements to try.
    best: int32 `[n]`, the best placement, brought up to date.
    tally: float64 `[4]`, brought up to date; a best cost of infinity makes it
      begin with the current placement.
  """
  if tally[BEST_COST] == np.inf:
    _accept(x, s, room, policy, prices, np.inf, best, tally)
  for _ in range(evaluations):
    moved = move(x, s, h, room)
    if moved == 0:
      continue
    luck = temperature * -np.log(1.0 - uniform(room.random))
    limit = tally[COST] + luck
    if not _accept(x, s, room, policy, prices, limit, best, tally):
      undo(x, s, room, moved)


@compiled_inner
def _accept(x, s, room, policy, prices, limit, best, tally):
  """Evaluates the placement, and notes it unless its cost is above a limit."""
  makespan, transfer_us, overflow = evaluate(
    x, s, policy, prices[0], prices[1], limit
  )
  cost = makespan + prices[0] * transfer_us + prices[1] * overflow
  if cost > limit or makespan < 0:
    return False
  tally[COST] = cost
  _find_chain(s, room)
  fits, best_fits = overflow == 0, tally[BEST_OVERFLOW] == 0
  if (fits and not best_fits) or (
    fits == best_fits and cost < tally[BEST_COST]
  ):
    best[:] = s.device
    tally[BEST_COST] = cost
    tally[BEST_MAKESPAN] = makespan
    tally[BEST_OVERFLOW] = overflow
  return True


@compiled_inner
def _find_chain(s, room):
  """Lists the ops that the last to end waited for, one after another."""
  finish, cause, chain = s.finish, s.cause, room.chain
  op = np.argmax(finish)
  length = 0
  while op >= 0 and length < len(chain):
    chain[length] = op
    length += 1
    op = cause[op]
  room.count[1] = length
