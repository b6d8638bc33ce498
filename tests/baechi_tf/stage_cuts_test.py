"""Cuts into stages, against brute force and the schedules' formulas."""

import itertools

import numpy as np
import pytest

from baechi_tf.stage_cuts import best_cuts
from baechi_tf.stage_cuts import StageCosts


def some_costs(rng, num_stages, length):
  """Returns random costs of a line, whole numbers."""

  def before(low, high, *shape):
    values = rng.integers(low, high, (*shape, length)).astype(float)
    zero = np.zeros((*shape, 1))
    return np.concatenate([zero, values.cumsum(axis=-1)], axis=-1)

  def at_cuts(high):
    return rng.integers(0, high, (num_stages, length + 1)).astype(float)

  return StageCosts(
    times_us=before(1, 9, num_stages),
    enter_us=at_cuts(3),
    leave_us=at_cuts(3),
    hop_us=at_cuts(5),
    channel_us=at_cuts(12),
    persistent_bytes=before(0, 9),
    kept_bytes=before(0, 4),
    received_bytes=rng.integers(0, 4, length + 1).astype(float),
    in_flight=num_stages - np.arange(num_stages),
    memory_bytes=rng.integers(10, 90, num_stages).astype(float),
  )


def estimate_us(costs, cuts, num_micro_batches):
  """Returns what the module's docstring says; infinite if memory is short."""
  p = len(cuts) - 1
  path, longest = 0.0, 0.0
  for s, (a, b) in enumerate(itertools.pairwise(cuts)):
    held = costs.persistent_bytes[b] - costs.persistent_bytes[a]
    kept = costs.kept_bytes[b] - costs.kept_bytes[a] + costs.received_bytes[a]
    if held + costs.in_flight[s] * kept > costs.memory_bytes[s]:
      return np.inf
    stage = costs.times_us[s, b] - costs.times_us[s, a]
    stage += costs.enter_us[s, a] if s else 0
    stage += costs.leave_us[s, b] if s < p - 1 else 0
    path += stage + (costs.hop_us[s, a] if s else 0)
    longest = max(longest, stage, costs.channel_us[s, a] if s else 0)
  return path + (num_micro_batches - 1) * longest


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 8])
def test_no_cuts_have_a_lower_estimate(num_stages, num_micro_batches):
  for seed in range(30):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(num_stages, 9))
    costs = some_costs(rng, num_stages, length)
    least_us = min(
      estimate_us(costs, (0, *inner, length), num_micro_batches)
      for inner in itertools.combinations(range(1, length), num_stages - 1)
    )
    cuts = best_cuts(costs, num_micro_batches)
    if cuts is None:
      assert least_us == np.inf
      continue
    assert (cuts[0], cuts[-1]) == (0, length)
    assert (np.diff(cuts) > 0).all()
    assert estimate_us(costs, cuts, num_micro_batches) == least_us


def test_more_stages_than_groups_do_not_fit():
  costs = some_costs(np.random.default_rng(0), 3, 2)
  assert best_cuts(costs, 4) is None
