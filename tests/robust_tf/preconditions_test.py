"""What a rule refuses, and how it says so."""

import re

import numpy as np
import pytest

from robust_tf import aggregators
from tests.robust_tf import contracts
from tests.robust_tf.contracts import RULES
from tests.tensorflow_setup import tf

D = 4
COUNTED = [rule for rule in RULES if rule.count is not None]

each_rule = pytest.mark.parametrize("rule", RULES, ids=str)
each_counted_rule = pytest.mark.parametrize("rule", COUNTED, ids=str)


@pytest.mark.parametrize("q", [0, 1, 3])
@each_counted_rule
def test_one_worker_too_few_is_refused(rule, q):
  a, b = rule.workers
  needed = a * q + b
  rule.bind(q)(contracts.gradients(0, needed, D))
  if needed > 1:
    message = (
      f"{rule.count}={q} needs at least {needed} updates, got {needed - 1}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
      rule.bind(q)(contracts.gradients(0, needed - 1, D))


@each_counted_rule
def test_negative_count_is_refused(rule):
  with pytest.raises(ValueError, match=f"{rule.count}=-1"):
    rule.bind(-1)(contracts.gradients(0, 11, D))


@pytest.mark.parametrize("count", [1.0, 0.2, True, "1", None])
@each_counted_rule
def test_count_that_is_no_integer_is_refused(rule, count):
  with pytest.raises(TypeError, match=f"{rule.count}={count!r}"):
    rule.bind(count)(contracts.gradients(0, 11, D))


@pytest.mark.parametrize(
  "shape", [(), (4,), (2, 3, 4), (11, 2, 2)], ids=lambda x: f"rank {len(x)}"
)
@each_rule
def test_updates_that_are_no_matrix_are_refused(rule, shape):
  with pytest.raises(ValueError, match=r"\[n, d\]"):
    rule.bind(0)(np.zeros(shape))


@pytest.mark.parametrize(
  "updates", [np.zeros((0, 4)), []], ids=["array", "list"]
)
@each_rule
def test_no_updates_are_refused(rule, updates):
  with pytest.raises(ValueError, match="at least"):
    rule.bind(0)(updates)


@pytest.mark.parametrize("dtype", [tf.int32, tf.bool, tf.complex64])
@each_rule
def test_updates_that_are_no_floats_are_refused(rule, dtype):
  with pytest.raises(TypeError, match=dtype.name):
    rule.bind(0)(tf.cast(tf.ones((11, D)), dtype))
  with pytest.raises(TypeError, match=dtype.name):
    rule.bind(0)([[tf.cast(tf.ones(D), dtype)]] * 11)


@each_rule
def test_workers_of_other_shapes_are_refused(rule):
  updates = [[tf.ones(3), tf.ones((2, 2))] for _ in range(11)]
  updates[7][1] = tf.ones(4)
  with pytest.raises(ValueError, match="variable 1 .* worker 7"):
    rule.bind(0)(updates)


@each_rule
def test_workers_of_other_numbers_of_variables_are_refused(rule):
  updates = [[tf.ones(3), tf.ones(2)] for _ in range(11)]
  updates[7] = updates[7][:1]
  with pytest.raises(ValueError, match="worker 7"):
    rule.bind(0)(updates)


@pytest.mark.parametrize(
  ("updates", "worker"),
  [
    ([tf.ones((3, 2))] * 11, 0),
    ([tf.ones(())] * 11, 0),
    ([[tf.ones(3)]] * 10 + [tf.ones(3)], 10),
  ],
)
@each_rule
def test_list_of_neither_flat_updates_nor_lists_is_refused(
  rule, updates, worker
):
  with pytest.raises(TypeError, match=f"worker {worker} .* one tensor .d. per"):
    rule.bind(0)(updates)


@each_rule
def test_flat_updates_of_other_lengths_are_refused(rule):
  with pytest.raises(ValueError, match="worker 7"):
    rule.bind(0)([tf.ones(4 if i == 7 else 3) for i in range(11)])


@pytest.mark.parametrize("num_selected", [0, -1, 7])
def test_multi_krum_of_too_few_or_many_rows_is_refused(num_selected):
  # n - q - 2 = 6
  with pytest.raises(ValueError, match=rf"num_selected={num_selected}\b.*6"):
    aggregators.multi_krum(
      contracts.gradients(0, 11, D), num_byzantine=3, num_selected=num_selected
    )


def zeno(**changed):
  arguments = {
    "loss": contracts.quadratic_loss,
    "learning_rate": 0.1,
    "num_suspected": 2,
    "rho": 0.01,
  }
  aggregators.zeno(contracts.gradients(0, 5, D), **(arguments | changed))


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"penalty": "max"}, "penalty='max'.*'sum'.*'mean'"),
    ({"rho": -1.0}, "rho=-1.0"),
    ({"loss": lambda step: tf.square(step)}, "loss.*scalar"),
  ],
)
def test_zeno_refuses_what_makes_no_score(changed, message):
  with pytest.raises(ValueError, match=message):
    zeno(**changed)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"tolerance": 0.0}, "tolerance=0.0"),
    ({"tolerance": -1.0}, "tolerance=-1.0"),
    ({"max_iterations": 0}, "max_iterations=0"),
  ],
)
def test_geometric_median_refuses_what_cannot_end(changed, message):
  with pytest.raises(ValueError, match=message):
    aggregators.geometric_median(contracts.gradients(0, 5, D), **changed)
