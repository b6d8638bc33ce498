"""Few and many rows answer alike, and as NumPy does."""

import numpy as np
import pytest

from robust_tf.aggregators import bit_selection
from robust_tf.aggregators.rows import FewRows
from robust_tf.aggregators.rows import ManyRows
from tests.tensorflow_setup import tf
from tests.tiers import first_fast
from tests.tiers import tiers

SIZES = [65, 130]  # two groups, one row to fill up; more than a network sorts


def few(values):
  return FewRows.of(tf.unstack(values))


def many(values):
  return ManyRows.of(values)


def answer(rows, question, values):
  """Returns what rows of the values answer, compiled as rules are."""

  @tf.function(jit_compile=True, autograph=False)
  def run(values):
    return question(rows(values))

  return run(tf.constant(values))


def hostile(n, d, dtype="float32", seed=0):
  """Returns values [n, d] with ties, infinities, zeros of both signs, ..."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(n, d)).astype(dtype)
  extremes = [np.inf, -np.inf, 0, -0.0, np.finfo(dtype).max, 1, 1, -1]
  extremes += [np.finfo(dtype).tiny, np.finfo(dtype).min]
  where = rng.random(size=(n, d)) < 0.3
  values[where] = rng.choice(np.array(extremes, dtype), size=where.sum())
  return values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [3, 130])
def test_bits_find_every_order_statistic(n, dtype):
  values = hostile(n, 20, dtype)
  ordered = np.sort(values, axis=0)
  ranks = [0, n // 3, n - 1]
  found = answer(
    many,
    lambda rows: [
      bit_selection.order_statistic(rows.values, rank) for rank in ranks
    ],
    values,
  )
  np.testing.assert_array_equal(found, ordered[ranks])


def test_bits_find_another_rank_for_each_coordinate():
  values = hostile(70, 70)
  ranks = np.random.default_rng(1).permutation(70)
  ranks_of_columns = tf.constant(ranks, tf.int16)
  found = answer(
    many,
    lambda rows: bit_selection.order_statistic(rows.values, ranks_of_columns),
    values,
  )
  ordered = np.sort(values, axis=0)
  np.testing.assert_array_equal(found, ordered[ranks, np.arange(70)])


def test_bits_tell_denormals_apart():
  smallest = np.finfo(np.float32).smallest_subnormal
  values = (smallest * np.arange(-40, 30, dtype=np.float32))[::-1, None]
  found = answer(
    many,
    lambda rows: bit_selection.order_statistic(rows.values, 3),
    values,
  )
  assert found.numpy() == smallest * np.float32(-37)


def test_bits_find_the_least_value_above_a_bound():
  values = hostile(70, 50)
  bound = values[3]
  least = answer(
    many,
    lambda rows: bit_selection.least_above(rows.values, rows.values[0, 3]),
    values,
  )
  above = np.where(values > bound, values, np.inf)
  np.testing.assert_array_equal(least, above.min(axis=0))


@pytest.mark.parametrize("n", SIZES)
def test_totals_are_sums_over_all_rows(n):
  values = np.random.default_rng(n).integers(-9, 9, (n, 5)).astype(np.float32)

  def terms(row):
    finite = tf.where(tf.math.is_finite(row), row, tf.zeros_like(row))
    return finite, tf.cast(row < 0, tf.int16)

  total, negative = answer(many, lambda rows: rows.totals(terms), values)
  np.testing.assert_array_equal(total, values.sum(axis=0))
  np.testing.assert_array_equal(negative, (values < 0).sum(axis=0))


@pytest.mark.parametrize("n", tiers(SIZES, SIZES[:1]))
def test_totals_of_ranks_are_sums_of_the_sorted(n):
  values = np.random.default_rng(n).normal(size=(n, 60))
  values[:, 30:] = values[:, 30:].round(0)  # ties
  ordered = np.sort(values, axis=0)
  k = n // 2
  for start, stop in ((0, n), (n // 4, n - n // 4), (k, k + 1), (k, k + 2)):
    np.testing.assert_allclose(
      answer(many, lambda x, a=start, b=stop: x.total_of_ranks(a, b), values),
      ordered[start:stop].sum(axis=0),
      rtol=1e-12,
      atol=1e-12,
    )


def median_of_finite(values):
  """Returns what `median_of_finite` should, a column at a time."""
  columns = [column[np.isfinite(column)] for column in values.T]
  return [np.median(x) if len(x) else np.nan for x in columns]


@pytest.mark.parametrize(
  "n, rows",
  [(n, few) for n in range(1, 8)]
  + first_fast(*((n, many) for n in (66, 65, 130)))
  + [(129, many)],
)
def test_median_of_finite_leaves_out_all_others(n, rows):
  rng = np.random.default_rng(n)
  values = rng.normal(size=(n, 300))
  for k, share in enumerate(np.linspace(0, 1, 300)):
    broken = rng.random(n) < share
    values[broken, k] = rng.choice([np.nan, np.inf, -np.inf], broken.sum())
  found = answer(rows, lambda rows: rows.median_of_finite(), values)
  np.testing.assert_allclose(found, median_of_finite(values), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [few, many])
def test_nan_is_ranked_as_the_greatest(rows, dtype):
  nan, inf = np.nan, np.inf
  values = np.array([[3, nan], [inf, 1], [nan, 2], [-inf, 5]], dtype)
  ordered = [[-inf, 1], [3, 2], [inf, 5], [inf, inf]]
  for rank, expected in enumerate(ordered):
    found = answer(rows, lambda x, k=rank: x.order_statistic(k), values)
    np.testing.assert_array_equal(found, np.array(expected, dtype))


@pytest.mark.parametrize("rows", [few, many])
def test_rows_that_a_function_makes_are_ranked(rows):
  values = np.random.default_rng(0).normal(size=(67, 4)).astype(np.float32)
  found = answer(
    rows,
    lambda rows: rows.map(lambda row: tf.abs(row - 1)).order_statistic(5),
    values,
  )
  expected = np.sort(np.abs(values - 1), axis=0)[5]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows, n", [(few, 1), (few, 2), (few, 9), (many, 130)])
def test_distance_of_nearest_is_a_rank_of_the_distances(rows, n):
  values = hostile(n, 40, "float64")
  values[np.abs(values) > 1e300] = np.nan
  center = np.linspace(-3, 3, 40)
  distances = np.abs(np.where(np.isnan(values), np.inf, values) - center)
  ordered = np.sort(distances, axis=0)
  for num_nearest in {1, n // 2 + 1, n}:
    found = answer(
      rows,
      lambda rows, m=num_nearest: rows.distance_of_nearest(
        lambda row: tf.abs(row - center), m
      ),
      values,
    )
    np.testing.assert_array_equal(found, ordered[num_nearest - 1])


@pytest.mark.parametrize(
  "question",
  [
    lambda rows: rows.order_statistic(7),
    lambda rows: rows.total_of_ranks(20, 30),
    lambda rows: rows.median_of_finite(),
  ],
)
def test_many_rows_answer_as_few_do(question):
  values = hostile(64, 50, "float64")
  values[np.abs(values) > 1e300] = np.nan
  np.testing.assert_allclose(
    answer(few, question, values), answer(many, question, values), rtol=1e-12
  )
