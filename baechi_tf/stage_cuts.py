"""The best contiguous pipeline: where to cut a line of layers into stages.

Stage s is on device s. Of m micro-batches, the first takes the sum of all
stages and of what goes between them; each of the others ends one longest stage
after the one before. That is what GPipe's and 1F1B's schedules take on uniform
stages (Huang et al., NeurIPS 2019; Fan et al., PPoPP 2021), and an estimate on
others. The cuts with the least estimate are found by dynamic programming over
the least sum for every longest stage that is allowed.
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.compiled import compiled

_ROUNDING = 1e-12  # sums that differ by less are equal


class StageCosts(NamedTuple):
  """What stages of a line with q + 1 possible cuts cost on p devices.

  All of one micro-batch. A stage is what is between two cuts; what comes before
  a cut is counted from the line's begin.

  Attributes:
    times_us: float64 `[p, q + 1]`, what comes before each cut takes on each
      device.
    enter_us: float64 `[p, q + 1]`, what the transfers over each cut take of the
      processor of the device behind it.
    leave_us: float64 `[p, q + 1]`, what they take of the processor of the
      device before the cut.
    hop_us: float64 `[p, q + 1]`, wall time of the transfers over each cut to
      and from the device behind it.
    channel_us: float64 `[p, q + 1]`, how long they keep a channel.
    persistent_bytes: float64 `[q + 1]`, held by what comes before each cut.
    kept_bytes: float64 `[q + 1]`, left for the backward pass by what comes
      before each cut.
    received_bytes: float64 `[q + 1]`, received over the cut and kept.
    in_flight: int64 `[p]`, for how many micro-batches each stage keeps that.
    memory_bytes: int64 `[p]`, of each device.
  """

  times_us: np.ndarray
  enter_us: np.ndarray
  leave_us: np.ndarray
  hop_us: np.ndarray
  channel_us: np.ndarray
  persistent_bytes: np.ndarray
  kept_bytes: np.ndarray
  received_bytes: np.ndarray
  in_flight: np.ndarray
  memory_bytes: np.ndarray


def best_cuts(costs: StageCosts, num_micro_batches: int) -> np.ndarray | None:
  """Returns the cuts with the least estimate, or None if none fit the memory.

  Int64 `[p + 1]`, from 0 to q; every stage has something in it.

  Args:
    costs: of the stages on each of p devices.
    num_micro_batches: how many the step has.
  """
  best, least_us, limit_us = None, np.inf, np.inf
  while True:
    path_us, longest_us, cuts = _shortest_path(limit_us, costs)
    if cuts[-1] < 0:
      return best
    estimate_us = path_us + (num_micro_batches - 1) * longest_us
    if estimate_us < least_us:
      best, least_us = cuts, estimate_us
    elif path_us >= least_us:
      return best  # shorter stages only make the path longer
    limit_us = longest_us


def fits(costs: StageCosts, cuts: np.ndarray) -> bool:
  """Returns whether each stage between some cuts fits its device's memory."""
  held = np.diff(costs.persistent_bytes[cuts])
  kept = np.diff(costs.kept_bytes[cuts]) + costs.received_bytes[cuts[:-1]]
  return bool((held + costs.in_flight * kept <= costs.memory_bytes).all())


@compiled
def _shortest_path(limit_us, costs):
  """Returns the least sum of stages and hops, its longest stage, and its cuts.

  No stage takes as long as the limit. The last cut is -1 if there is no way.
  """
  num_stages, num_cuts = costs.times_us.shape
  times_us, memory_bytes = costs.times_us, costs.memory_bytes
  persistent_bytes, kept_bytes = costs.persistent_bytes, costs.kept_bytes
  last = num_cuts - 1
  path = np.full((num_stages + 1, num_cuts), np.inf)
  longest = np.zeros((num_stages + 1, num_cuts))
  before = np.full((num_stages + 1, num_cuts), -1)
  path[0, 0] = 0.0
  for s in range(num_stages):
    is_last = s == num_stages - 1
    for end in range(last if is_last else s + 1, num_cuts):
      for begin in range(end - 1, s - 1, -1):
        taken = times_us[s, end] - times_us[s, begin]
        if taken >= limit_us:
          break
        held = persistent_bytes[end] - persistent_bytes[begin]
        if held > memory_bytes[s]:
          break
        if path[s, begin] == np.inf:
          continue
        kept = kept_bytes[end] - kept_bytes[begin] + costs.received_bytes[begin]
        if held + costs.in_flight[s] * kept > memory_bytes[s]:
          continue
        hop, channel = 0.0, 0.0
        if s > 0:
          taken += costs.enter_us[s, begin]
          hop = costs.hop_us[s, begin]
          channel = costs.channel_us[s, begin]
        if not is_last:
          taken += costs.leave_us[s, end]
        slowest = max(taken, channel)
        if slowest >= limit_us:
          continue
        slowest = max(slowest, longest[s, begin])
        total = path[s, begin] + taken + hop
        known, slack = path[s + 1, end], _ROUNDING * total
        if total < known - slack or (
          total < known + slack and slowest < longest[s + 1, end]
        ):
          path[s + 1, end] = total
          longest[s + 1, end] = slowest
          before[s + 1, end] = begin
  cuts = np.full(num_stages + 1, -1)
  if path[num_stages, last] < np.inf:
    cuts[num_stages] = last
    for s in range(num_stages, 0, -1):
      cuts[s - 1] = before[s, cuts[s]]
  return path[num_stages, last], longest[num_stages, last], cuts
