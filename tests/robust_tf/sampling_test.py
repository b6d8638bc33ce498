"""Who takes part in a round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_tf.federated.sampling import permutation
from robust_tf.federated.sampling import SAMPLINGS
from robust_tf.federated.sampling import uniform

sizes = st.integers(1, 30).flatmap(
  lambda n: st.tuples(st.just(n), st.integers(1, n))
)


def test_the_table_holds_every_function():
  assert SAMPLINGS == {"permutation": permutation, "uniform": uniform}


@pytest.mark.parametrize("name", SAMPLINGS)
@given(size=sizes, number=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_devices_are_different_and_a_function_of_seed_and_round(
  name, size, number, seed
):
  sample = SAMPLINGS[name]
  n, count = size
  devices = sample(n, count, number, seed)
  assert len(set(devices)) == count
  assert set(devices) <= set(range(n))
  assert all(type(x) is int for x in devices)
  assert sample(n, count, number, seed) == devices


@given(size=sizes, start=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_permutation_asks_no_device_twice_before_the_others(size, start, seed):
  n, count = size
  rounds = n // count
  devices = [
    x
    for number in range(start * rounds, (start + 1) * rounds)
    for x in permutation(n, count, number, seed)
  ]
  assert len(set(devices)) == len(devices) == rounds * count


def test_permutation_changes_each_time_round():
  orders = [
    [x for i in range(5) for x in permutation(10, 2, 5 * k + i, 0)]
    for k in range(3)
  ]
  assert all(sorted(x) == list(range(10)) for x in orders)
  assert len({tuple(x) for x in orders}) == 3


def test_uniform_draws_all_devices_alike():
  counts = np.zeros(10)
  for number in range(2000):
    counts[uniform(10, 3, number, 0)] += 1
  # Each is binomial with 2000 draws of probability 0.3: six deviations.
  deviation = np.sqrt(2000 * 0.3 * 0.7)
  assert np.abs(counts - 600).max() < 6 * deviation
