"""Every rule on every form of updates, run in every way."""

import numpy as np
import pytest

from robust_tf import aggregators
from tests.robust_tf import contracts
from tests.robust_tf import oracles
from tests.robust_tf.contracts import assert_close
from tests.robust_tf.contracts import RULES
from tests.tensorflow_setup import tf

SHAPES = ((3, 2), (), (6, 3), (4,), (1, 1, 5), (1,))
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
SPARSE = 2  # the variable of SHAPES whose gradients may be IndexedSlices

each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def per_variable(row):
  """Returns a flat update as a list of arrays of SHAPES."""
  sizes = [int(np.prod(shape)) for shape in SHAPES]
  pieces = np.split(row, np.cumsum(sizes)[:-1])
  return [p.reshape(shape) for p, shape in zip(pieces, SHAPES, strict=True)]


def with_slices(update):
  """Returns a list of arrays with tensors, and slices for one, instead."""
  update = [tf.constant(value) for value in update]
  dense = update[SPARSE]
  update[SPARSE] = tf.IndexedSlices(
    # In no order, and row 1 in two halves.
    values=tf.concat([dense[::-1], dense[1:2]], axis=0)
    * tf.constant([[1], [1], [1], [1], [0.5], [1], [0.5]], dense.dtype),
    indices=tf.constant([5, 4, 3, 2, 1, 0, 1]),
    dense_shape=tf.constant(dense.shape.as_list()),
  )
  return update


def flat(update):
  return np.concatenate([np.ravel(value) for value in update])


@each_rule
def test_array_gives_an_array(rule):
  q = rule.max_byzantine(7) // 2
  v = contracts.gradients(3, n=7, d=5).astype(np.float32)
  result = rule.bind(q)(v)
  assert isinstance(result, np.ndarray)
  assert result.dtype == np.float32
  np.testing.assert_array_equal(result, rule.bind(q)(tf.constant(v)))


@each_rule
def test_list_of_gradients_is_one_vector(rule):
  q = rule.max_byzantine(7)
  v = contracts.gradients(4, n=7, d=SIZE)
  result = rule.bind(q)([with_slices(per_variable(row)) for row in v])
  assert [tuple(value.shape) for value in result] == list(SHAPES)
  assert all(isinstance(value, tf.Tensor) for value in result)
  assert_close(flat(result), rule.bind_oracle(q)(v))


@each_rule
def test_list_of_flat_updates_is_the_matrix_of_them(rule):
  q = rule.max_byzantine(7) // 2
  v = contracts.gradients(8, n=7, d=5).astype(np.float32)
  expected = rule.bind(q)(v)
  arrays = rule.bind(q)(list(v))
  assert isinstance(arrays, np.ndarray) and arrays.shape == (5,)
  assert_close(arrays, expected)
  tensors = rule.bind(q)(tuple(map(tf.constant, v)))
  assert isinstance(tensors, tf.Tensor) and tensors.shape == (5,)
  assert_close(tensors, expected)


@each_rule
def test_list_of_arrays_gives_arrays(rule):
  q = rule.max_byzantine(7)
  v = contracts.gradients(5, n=7, d=SIZE)
  result = rule.bind(q)([per_variable(row) for row in v])
  assert [np.shape(value) for value in result] == list(SHAPES)
  assert all(isinstance(value, np.ndarray) for value in result)
  assert_close(flat(result), rule.bind_oracle(q)(v))


@each_rule
def test_slices_that_a_worker_lacks_are_zeros(rule):
  q = rule.max_byzantine(7)
  rows = [0, 1, 1, 3, 3, 3, 2]  # the row of the embedding that each one used
  v = np.zeros((7, 4, 2))
  v[np.arange(7), rows] = contracts.gradients(6, n=7, d=2)
  slices = [
    [tf.IndexedSlices(tf.constant(v[i, [r]]), [r], tf.constant([4, 2]))]
    for i, r in enumerate(rows)
  ]
  (result,) = rule.bind(q)(slices)
  assert_close(tf.reshape(result, [-1]), rule.bind_oracle(q)(v.reshape(7, 8)))


@each_rule
def test_rule_is_the_same_eagerly_in_a_function_and_compiled(rule):
  q = rule.max_byzantine(7) // 2
  v = contracts.gradients(7, n=7, d=5)
  tensor = tf.constant(v, tf.float32)
  lists = [[row[:2], tf.reshape(row[2:], [3, 1])] for row in tensor]
  bound = rule.bind(q)
  expected = rule.bind_oracle(q)(v)
  assert_close(bound(tensor), expected)
  assert_close(tf.function(bound, jit_compile=True)(tensor), expected)
  assert_close(flat(bound(lists)), expected)
  assert_close(flat(tf.function(bound)(lists)), expected)


# Worker 0 is in the middle of the others on variable 0 and far off on variable
# 1; worker 1 the other way round.
CROSSED = np.array(
  [[0.0, 20], [20, 0], [2, 2], [-2, 2], [2, -2], [-2, -2], [3, 3]]
)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
def test_worker_is_judged_by_all_variables_together(name):
  rule = contracts.by_name(name)
  together = rule.bind_oracle(1)(CROSSED)
  apart = np.concatenate(
    [rule.bind_oracle(1)(CROSSED[:, [k]]) for k in range(2)]
  )
  assert np.abs(together - apart).max() > 0.1
  updates = [[tf.constant([x]), tf.constant([[y]])] for x, y in CROSSED]
  assert_close(flat(rule.bind(1)(updates)), together)


def test_krum_gives_one_workers_update_and_mixes_no_two():
  updates = [[tf.constant([x]), tf.constant([y])] for x, y in CROSSED]
  by_hand = [2, 2]  # variable by variable it would be 0 twice
  assert flat(aggregators.krum(updates, num_byzantine=1)).tolist() == by_hand


def test_zeno_plus_plus_of_lists_is_of_one_vector():
  g, v = np.random.default_rng(0).normal(size=(2, SIZE))
  g, v = per_variable(g), per_variable(v)
  accepted, scaled = aggregators.zeno_plus_plus(g, v, 0.1)
  expected_accepted, expected = oracles.zeno_plus_plus(
    flat(g), flat(v), 0.1, 0.001, 0.0
  )
  assert bool(accepted) == expected_accepted
  assert_close(flat(scaled), expected)
