"""What the logs say of aggregation is what happened."""

import functools

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import AggregationReport
from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustOptimizer
from robust_tf import VectorizedWorkers
from robust_tf.attacks import Byzantine
from robust_tf.optimizers.step_report import measure
from tests.robust_tf import replicas

NUM_STEPS = 4
BATCH = 8


def test_measure_counts_rows_and_measures_the_distance():
  rows = np.float32([[1, 2], [np.inf, 0], [3, 6], [0, np.nan], [2, 1]])
  found = measure(tf.constant(rows), tf.constant([5.0, 7.0]), None)
  # The mean of the finite rows is [2, 3].
  np.testing.assert_allclose(found, [3, 2, 5], rtol=1e-6)


def test_measure_counts_rows_with_a_weight():
  rows = tf.constant([[1.0], [2.0], [np.nan]])
  weights = tf.constant([0.0, 1.0, 0.0])
  found = measure(rows, tf.constant([2.0]), weights)
  np.testing.assert_allclose(found, [1, 1, 0.5])


@pytest.mark.parametrize("count", [1, 3, 7, 49, 100])
def test_equal_weights_count_as_many_rows(count):
  weights = np.zeros(100)
  weights[:count] = 1 / count
  rows, result = tf.ones([100, 1]), tf.ones([1])
  assert measure(rows, result, tf.constant(weights))[0] == count
  weights = tf.constant(weights, tf.float32)
  assert measure(rows, result, weights)[0] == count


def test_unequal_weights_count_as_the_effective_number_of_rows():
  weights = tf.constant([0.5, 0.25, 0.25, 0.0], tf.float64)
  found = measure(tf.ones([4, 1]), tf.ones([1]), weights)
  np.testing.assert_allclose(found[0], 8 / 3, rtol=1e-6)


def test_attackers_far_away_hardly_count_for_the_geometric_median():
  rows = np.random.default_rng(0).normal(size=(15, 40))
  rows[:6] *= 1e6
  weights = aggregators.WEIGHTS[aggregators.geometric_median](rows)
  found = measure(tf.constant(rows), tf.zeros([40], tf.float64), weights)
  assert 8.5 < found[0] < 9.01  # nine are honest


def test_measure_of_weights_of_no_finite_row_is_zero():
  rows = tf.constant([[np.nan], [np.inf]])
  weights = aggregators.WEIGHTS[aggregators.geometric_median](rows)
  assert measure(rows, tf.constant([0.0]), weights)[0] == 0


def test_measure_of_no_finite_row_is_finite():
  rows = tf.constant([[np.nan, 1.0], [np.inf, 1.0]])
  found = measure(rows, tf.constant([3.0, 4.0]), None)
  np.testing.assert_allclose(found, [0, 2, 5])


def test_measure_of_half_precision_does_not_overflow():
  rows = tf.fill([8, 4], tf.constant(60000.0, tf.float16))
  found = measure(rows, tf.zeros([4], tf.float16), None)
  np.testing.assert_allclose(found, [8, 0, 2 * 59999], rtol=1e-3)


def test_measure_of_huge_rows_is_finite():
  rows = tf.constant([[1e20, 0.0], [0.0, 1e20]])
  found = measure(rows, tf.constant([0.0, 0.0]), None)
  np.testing.assert_allclose(found, [2, 0, 1e20 / np.sqrt(2)], rtol=1e-6)


def test_measure_of_scaled_variables_is_that_of_the_rows():
  random = np.random.default_rng(0)
  rows = random.normal(size=(4, 7)).astype(np.float32)
  lists = [[row[:3] / 4, row[3:].reshape(2, 2) / 4] for row in rows]
  result = rows.max(axis=0)
  found = measure(
    lists, [result[:3] / 4, result[3:].reshape(2, 2) / 4], None, 4
  )
  np.testing.assert_allclose(
    found, [4, 0, np.linalg.norm(result - rows.mean(axis=0))], rtol=1e-6
  )


def compiled(aggregator, num_replicas=None, report=True, **kwargs):
  strategy = None if num_replicas is None else replicas.mirrored(num_replicas)
  rows = 4 if num_replicas is None else None
  with replicas.scope(strategy):
    model = keras.Sequential(
      [keras.layers.Input((3,)), keras.layers.Dense(1, use_bias=False)]
    )
    if rows is not None:
      model = VectorizedWorkers(model, rows)
    model.compile(
      RobustOptimizer(
        keras.optimizers.SGD(0.1),
        aggregator,
        workers_per_replica=rows,
        report=report,
        byzantine=Byzantine((1,), attacks.non_finite, start_step=2),
      ),
      "mse",
      **kwargs,
    )
  return model


def fit(model, callbacks, epochs=1):
  random = np.random.default_rng(0)
  x = random.normal(size=(NUM_STEPS * BATCH, 3)).astype(np.float32)
  return model.fit(
    x,
    x.sum(axis=1, keepdims=True),
    batch_size=BATCH,
    epochs=epochs,
    shuffle=False,
    verbose=0,
    callbacks=callbacks,
  ).history


@pytest.mark.parametrize("num_replicas", [None, 4])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_history_has_the_means_of_each_epoch(num_replicas, steps_per_execution):
  model = compiled(
    functools.partial(aggregators.trimmed_mean, trim=1),
    num_replicas,
    steps_per_execution=steps_per_execution,
  )
  history = fit(model, [AggregationReport()], epochs=2)
  # Two of the first epoch's four steps are attacked, and all of the second's.
  assert history["rows_accepted"] == [3.5, 3.0]
  assert history["rows_non_finite"] == [0.5, 1.0]
  assert all(0 < distance < 10 for distance in history["distance_from_mean"])


def test_rows_that_a_rule_selects_are_those_accepted():
  model = compiled(
    functools.partial(aggregators.multi_krum, num_byzantine=0, num_selected=2)
  )
  history = fit(model, [AggregationReport()])
  assert history["rows_accepted"] == [2.0]


def test_mean_is_at_no_distance_before_the_attack():
  class Batches(keras.callbacks.Callback):
    logs = []

    def on_train_batch_end(self, batch, logs=None):
      self.logs.append(dict(logs))

  fit(compiled(aggregators.mean), [AggregationReport(), Batches()])
  first, second, third, _ = Batches.logs
  for logs in (first, second):
    assert logs["rows_accepted"] == 4.0
    assert logs["distance_from_mean"] == pytest.approx(0.0, abs=1e-6)
  assert third["rows_non_finite"] == pytest.approx(1 / 3)


def test_report_changes_no_number():
  models = [compiled(aggregators.median, 4, report) for report in (True, False)]
  for model in models:
    model.set_weights([np.ones((3, 1), np.float32)])
    fit(model, [])
  np.testing.assert_array_equal(*[m.get_weights()[0] for m in models])


# Keras 3.15 reads variables through NumPy's old array protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_tensorboard_gets_the_report(tmp_path):
  callbacks = [AggregationReport(), keras.callbacks.TensorBoard(tmp_path)]
  fit(compiled(aggregators.median), callbacks)
  tags = {
    value.tag
    for path in tmp_path.glob("train/*tfevents*")
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  }
  assert {"epoch_rows_accepted", "epoch_distance_from_mean"} <= tags


def test_optimizer_that_reports_nothing_is_an_error():
  with pytest.raises(ValueError, match="report=True"):
    fit(compiled(aggregators.median, report=False), [AggregationReport()])


def test_other_optimizer_is_an_error():
  model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
  model.compile("sgd", "mse")
  with pytest.raises(ValueError, match="optimizer is a SGD"):
    fit(model, [AggregationReport()])
