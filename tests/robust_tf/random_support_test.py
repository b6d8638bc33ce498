"""The coordinates that GRBS and random-k draw."""

import itertools

import numpy as np
import pytest
from scipy import stats

from robust_tf import compressors
from tests.robust_tf import compressor_cases as cases
from tests.tensorflow_setup import tf


def block_edges(size, num_blocks):
  """Returns the first coordinate of each block, and the end, in Python."""
  num_blocks = min(num_blocks, size)
  return [b * size // num_blocks for b in range(num_blocks + 1)]


def supports(case, size, num_steps):
  """Returns the support at steps 0, 1, ..., as a mask [num_steps, size]."""
  run = tf.function(lambda step: case.support(size, step))
  masks = np.zeros([num_steps, size], bool)
  for step in range(num_steps):
    masks[step, run(tf.constant(step)).numpy()] = True
  return masks


@pytest.mark.parametrize(
  "size, num_blocks, ratio",
  [
    (8, 4, 2),
    (10, 4, 2),
    (7, 7, 3),
    (7, 1024, 3),
    (1001, 64, 8),
    (4810, 1024, 8),
  ],
)
def test_grbs_keeps_whole_blocks(size, num_blocks, ratio):
  edges = block_edges(size, num_blocks)
  blocks = [set(range(a, b)) for a, b in itertools.pairwise(edges)]
  assert set().union(*blocks) == set(range(size))
  assert sum(len(block) for block in blocks) == size
  case = compressors.GRBS(ratio, num_blocks)
  for step in range(20):
    support = set(case.support(size, step).numpy().tolist())
    touched = [block for block in blocks if block & support]
    assert len(touched) == round(len(blocks) / ratio)
    assert set().union(*touched) == support


@pytest.mark.parametrize("size", [20, 23])
def test_grbs_draws_every_block_once_among_all_the_draws_of_one(size):
  # Ratio = number of blocks: one block a step, so that the blocks seen over
  # steps are the partition itself.
  case = compressors.GRBS(5, num_blocks=5)
  seen = {tuple(case.support(size, step).numpy()) for step in range(100)}
  edges = block_edges(size, 5)
  assert seen == {tuple(range(a, b)) for a, b in itertools.pairwise(edges)}


@pytest.mark.parametrize(
  "case, size",
  [
    (compressors.GRBS(8), 4810),
    (compressors.GRBS(32), 4810),
    (compressors.GRBS(4, num_blocks=10), 23),
    (compressors.RandomK(8), 1001),
    (compressors.RandomK(3), 10),
  ],
  ids=str,
)
def test_every_coordinate_is_kept_as_often(case, size):
  num_steps = 1000
  share = supports(case, size, num_steps).mean(axis=0)
  delta = case.delta(size)
  # Six standard deviations of a share, as there are up to 4810 of them.
  deviation = np.sqrt(delta * (1 - delta) / num_steps)
  assert np.abs(share - delta).max() <= 6 * deviation


@pytest.mark.parametrize("ratio", [8, 32, 128])
def test_grbs_keeps_one_coordinate_of_ratio(ratio):
  masks = supports(compressors.GRBS(ratio), 4810, 400)
  # A step keeps 1024 / ratio blocks of 4 or 5 coordinates; the share of a step
  # is off by less than a tenth, the mean over steps by less than 1 %.
  assert masks.mean() == pytest.approx(1 / ratio, rel=0.01)


@pytest.mark.parametrize(
  "ratio, measured", [(8, 0.8743), (32, 0.9688), (128, 0.9922)]
)
def test_grbs_has_the_error_that_was_measured(ratio, measured):
  values = cases.vector("normal", 4810)
  compressed = cases.steps_of(compressors.GRBS(ratio), values, 500)
  errors = np.sum((compressed - values) ** 2, axis=1) / np.sum(values**2)
  standard_error = errors.std() / np.sqrt(500)
  assert abs(errors.mean() - (1 - 1 / ratio)) <= 5 * standard_error
  # The figures are means over draws too: 0.8743 is 0.0007 from 1 - 1/8.
  assert abs(errors.mean() - measured) <= 0.0007 + 5 * standard_error


@pytest.mark.parametrize("kind", [compressors.GRBS, compressors.RandomK])
def test_support_follows_from_seed_and_step(kind):
  size = 5000
  keys = [(seed, step) for seed in (0, 1, -5) for step in (0, 1, 2, 100)]
  drawn = {
    (seed, step): tuple(kind(8, seed=seed).support(size, step).numpy())
    for seed, step in keys
  }
  assert len(set(drawn.values())) == len(keys)
  for seed, step in keys:
    again = kind(8, seed=seed).support(size, step)
    assert tuple(again.numpy()) == drawn[seed, step]


@pytest.mark.parametrize(
  "case",
  [compressors.RandomK(2.5), compressors.GRBS(2.5, num_blocks=5)],
  ids=str,
)
def test_every_subset_is_as_likely(case):
  # 2 of 5 coordinates, or of 5 blocks of one coordinate: 10 subsets.
  masks = supports(case, 5, 2000)
  assert np.all(masks.sum(axis=1) == 2)
  _, counts = np.unique(masks, axis=0, return_counts=True)
  assert len(counts) == 10
  assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", [compressors.GRBS, compressors.RandomK])
def test_steps_do_not_depend_on_each_other(kind):
  masks = supports(kind(2), 1000, 400).astype(np.float64)
  lagged = np.mean((masks[1:] - 0.5) * (masks[:-1] - 0.5)) / 0.25
  # Steps draw 1000 or more things each; the correlation of 399 pairs of steps
  # has a deviation of 1 / sqrt(399 * 1000).
  assert abs(lagged) <= 5 / np.sqrt(399 * 1000)


@pytest.mark.parametrize("kind", [compressors.GRBS, compressors.RandomK])
def test_ratios_do_not_depend_on_each_other(kind):
  few = supports(kind(32), 4096, 100)
  many = supports(kind(8), 4096, 100)
  # Of the few coordinates (or blocks) an eighth is among the many by chance:
  # 3200 draws at least, with a deviation of sqrt(7 / 64 / 3200) = 0.006.
  assert np.mean(many[few]) == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize("ratio", [2, 8, 250])
def test_random_k_keeps_as_many_at_every_step(ratio):
  masks = supports(compressors.RandomK(ratio), 1001, 20)
  assert np.all(masks.sum(axis=1) == round(1001 / ratio))


def test_random_k_never_keeps_nothing():
  assert compressors.RandomK(1000).support(3, 0).shape == [1]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_grbs_support_is_a_dynamic_size_in_a_function(jit_compile):
  case = compressors.GRBS(8, num_blocks=64)

  @tf.function(jit_compile=jit_compile)
  def exchange(vector, step):
    support = case.support(1001, step)
    kept = 2 * tf.gather(vector, support)
    return tf.tensor_scatter_nd_update(vector, support[:, tf.newaxis], kept)

  values = cases.vector("normal", 1001)
  for step in range(3):
    expected = values.copy()
    expected[case.support(1001, step).numpy()] *= 2
    result = exchange(tf.constant(values), tf.constant(step))
    np.testing.assert_array_equal(result, expected)
