"""RobustOptimizer inside compile and fit, on real replicas."""

import functools

import numpy as np
import pytest
from absl import logging

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustCrossDeviceOps
from robust_tf.attacks import Byzantine
from robust_tf.optimizers import absent_workers
from tests.robust_tf import replicas
from tests.robust_tf.mirrored_fits import adam
from tests.robust_tf.mirrored_fits import assert_close
from tests.robust_tf.mirrored_fits import BATCH
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.robust_tf.mirrored_fits import NUM_STEPS
from tests.robust_tf.mirrored_fits import replicas_agree
from tests.robust_tf.mirrored_fits import robust
from tests.robust_tf.mirrored_fits import sgd
from tests.robust_tf.mirrored_fits import TRIMMED
from tests.tensorflow_setup import DEVICES


@functools.cache
def of_keras():
  """Returns a model that Keras' own Adam has trained, and its losses."""
  model = compiled(adam)
  return model, fit(model, epochs=2).history["loss"]


@pytest.mark.parametrize(
  "how", [{}, {"steps_per_execution": 2}, {"run_eagerly": True}]
)
def test_mean_of_replicas_is_what_keras_computes(how):
  stock, losses = of_keras()
  model = compiled(robust(adam, aggregators.mean), **how)
  history = fit(model, epochs=2).history
  assert_close(model, stock)
  np.testing.assert_allclose(history["loss"], losses, rtol=1e-6)
  replicas_agree(model)


def linear():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros"),
    ]
  )


def replay(aggregate, num_workers=4, accumulate=1):
  """Returns the kernel of `linear` after SGD on aggregates, in float64."""
  x, y = (part.astype(np.float64) for part in data())
  kernel = np.zeros((3, 2))
  sums = np.zeros((num_workers, 3, 2))
  size = BATCH // num_workers
  for step in range(NUM_STEPS):
    for worker in range(num_workers):
      first = step * BATCH + worker * size
      rows = slice(first, first + size)
      errors = x[rows] @ kernel - y[rows]
      sums[worker] += x[rows].T @ errors * 2 / errors.size
    if (step + 1) % accumulate == 0:
      kernel = kernel - 0.1 * aggregate(sums / accumulate)
      sums[:] = 0
  return kernel


def greatest(rows):
  return tf.reduce_max(rows, axis=0)


@pytest.mark.parametrize(
  ("kwargs", "aggregate", "accumulate"),
  [
    ({}, lambda rows: np.sort(rows, axis=0)[1:-1].mean(axis=0), 1),
    (
      {"aggregator": aggregators.median, "gradient_accumulation_steps": 2},
      lambda rows: np.median(rows, axis=0),
      2,
    ),
    (
      {
        "aggregator": greatest,
        "byzantine": Byzantine(
          (1,), functools.partial(attacks.inner_product, epsilon=3.0)
        ),
      },
      lambda rows: np.maximum(
        rows[[0, 2, 3]].max(axis=0), -3.0 * rows[[0, 2, 3]].mean(axis=0)
      ),
      1,
    ),
  ],
)
def test_fit_equals_a_replay_in_numpy(kwargs, aggregate, accumulate):
  model = compiled(robust(sgd, **kwargs), linear)
  fit(model)
  np.testing.assert_allclose(
    model.get_weights()[0], replay(aggregate, 4, accumulate), atol=1e-6
  )
  replicas_agree(model)


def regularized():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(
        2,
        use_bias=False,
        kernel_initializer="zeros",
        kernel_regularizer=keras.regularizers.L2(0.05),
      ),
    ]
  )


def replay_short_batch(x, y, accumulate):
  """Returns the kernel of `regularized` after SGD with the median.

  Of batches of 16 on four workers; the last two examples are those of two.
  """
  kernel = np.zeros((3, 2))
  batches = [[range(i, i + 4) for i in range(0, 16, 4)], [[16], [17], [], []]]
  sums, steps = np.zeros((4, 3, 2)), np.zeros(4)
  for batch in batches:
    for worker, rows in enumerate(batch):
      if len(rows):
        errors = x[rows] @ kernel - y[rows]
        sums[worker] += x[rows].T @ errors * 2 / errors.size + 0.1 * kernel
        steps[worker] += 1
    if batch is batches[-1] or not accumulate:
      means = [sums[i] / steps[i] for i in range(4) if steps[i]]
      kernel = kernel - 0.1 * np.median(means, axis=0)
      sums[:], steps[:] = 0, 0
  return kernel


def short_batch(seed=0):
  x, y = (part[:18] for part in data(seed))
  # Two examples that agree: the median with two zeros is half as long.
  x[17], y[17] = x[16], y[16]
  return x, y


MEDIAN = robust(sgd, aggregators.median)


@pytest.mark.parametrize(
  ("optimizer", "how", "accumulate"),
  [
    (MEDIAN, {"steps_per_execution": 2}, False),
    (lambda: keras.optimizers.LossScaleOptimizer(MEDIAN(), 2.0), {}, False),
    (robust(sgd, aggregators.median, gradient_accumulation_steps=2), {}, True),
    (sgd, {}, False),
  ],
  ids=["steps per execution", "loss scale", "accumulation", "cross-device ops"],
)
def test_worker_without_examples_has_no_vote(optimizer, how, accumulate):
  strategy = replicas.mirrored(4)
  if optimizer is sgd:
    strategy = tf.distribute.MirroredStrategy(
      DEVICES, cross_device_ops=RobustCrossDeviceOps(aggregators.median)
    )
  x, y = short_batch()
  with strategy.scope():
    model = regularized()
    model.compile(optimizer(), "mse", **how)
  model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
  np.testing.assert_allclose(
    model.get_weights()[0], replay_short_batch(x, y, accumulate), atol=1e-6
  )
  replicas_agree(model)


def test_mean_counts_workers_without_examples_as_keras_does():
  x_and_y = short_batch()
  trained = [
    compiled(make, regularized) for make in (sgd, robust(sgd, aggregators.mean))
  ]
  for model in trained:
    fit(model, x_and_y=x_and_y)
  assert_close(*trained)


@pytest.mark.parametrize(
  ("rule", "workers", "expected"),
  [
    (aggregators.median, (True, False, True, True), 3.0),
    (aggregators.median, (False, False, True, True), 3.5),
    (TRIMMED, (True, False, True, True), 3.0),
    (TRIMMED, (True, False, False, True), 0.0),
    (TRIMMED, (False, False, False, False), 0.0),
  ],
)
def test_rule_is_that_of_the_voters_or_zero(rule, workers, expected):
  rows = tf.constant([[1.0], [np.nan], [3.0], [4.0]])
  found = absent_workers.rule_of_voters(
    [tf.constant(has) for has in workers],
    rule_of_all=lambda: [rule(rows)],
    all_rows=lambda: rows,
    rule_of_rows=lambda rows: [rule(rows)],
    like=[rows[0]],
  )
  np.testing.assert_allclose(found, [[expected]])


def test_warning_says_once_that_too_few_workers_have_examples(caplog):
  rule = functools.partial(aggregators.trimmed_mean, trim=1)
  rows = tf.ones([5, 2])

  @tf.function
  def step(flags):
    return absent_workers.rule_of_voters(
      tf.unstack(flags),
      rule_of_all=lambda: [rule(rows)],
      all_rows=lambda: rows,
      rule_of_rows=lambda rows: [rule(rows)],
      like=[rows[0]],
    )

  logging.get_absl_logger().propagate = True
  enough = tf.constant([True, True, True, False, False])
  with caplog.at_level("WARNING"):
    step(enough)
    assert not caplog.messages
    for _ in range(2):
      step(enough & [True, True, False, False, False])
  (message,) = caplog.messages
  assert "examples for 2 of 5 workers" in message
  assert "trim=1 needs at least 3 updates, got 2" in message
  assert "drop the remainder" in message


def embedding():
  return keras.Sequential(
    [
      keras.layers.Input((2,), dtype="int32"),
      keras.layers.Embedding(5, 3),
      keras.layers.Flatten(),
      keras.layers.Dense(2),
    ]
  )


def synchronized():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(4),
      keras.layers.BatchNormalization(synchronized=True),
      keras.layers.Dense(2),
    ]
  )


def frozen():
  model = network()
  model.layers[0].trainable = False
  return model


@pytest.mark.parametrize("build", [embedding, synchronized, frozen])
def test_layers_that_reduce_or_have_no_dense_gradient_work(build):
  x, y = data()
  if build is embedding:
    x = np.random.default_rng(1).integers(5, size=(len(x), 2))
  stock = compiled(sgd, build)
  model = compiled(robust(sgd, aggregators.mean), build)
  for each in (stock, model):
    fit(each, x_and_y=(x, y))
  assert_close(model, stock)


def half(make):
  """Returns a model in mixed precision."""

  def build():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
      return make()
    finally:
      keras.mixed_precision.set_dtype_policy("float32")

  return build


def test_mixed_precision_applies_unscaled_aggregates():
  model = compiled(robust(sgd), half(linear))
  assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
  # Rows that are not unscaled would make steps of the scale's size.
  model.optimizer.initial_scale = 64.0
  fit(model)
  expected = replay(lambda rows: np.sort(rows, axis=0)[1:-1].mean(axis=0))
  np.testing.assert_allclose(model.get_weights()[0], expected, atol=3e-3)
  assert model.optimizer.iterations.numpy() == NUM_STEPS


@pytest.mark.parametrize(
  ("workers", "rule", "left_out"),
  [
    ([0], aggregators.median, 0),
    ([2], aggregators.median, 0),
    ([0, 2], aggregators.median, 1),
    ([2], aggregators.mean, 1),
  ],
)
def test_infinite_gradients_do_not_reach_the_weights(workers, rule, left_out):
  x, y = data()
  for worker in workers:
    x[worker * BATCH // 4] = np.inf  # of the first batch
  model = compiled(robust(sgd, rule), half(linear))
  model.optimizer.initial_scale = 64.0
  fit(model, x_and_y=(x, y))
  assert np.isfinite(model.get_weights()[0]).all()
  applied = model.optimizer.inner_optimizer.iterations.numpy()
  assert applied == NUM_STEPS - left_out


# Keras 3.15 reads variables through NumPy's old array protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_learning_rate_callbacks_set_the_inner_rate():
  model = compiled(robust(sgd))
  schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.25)
  fit(model, callbacks=[schedule])
  inner = model.optimizer.inner_optimizer
  assert inner.learning_rate.numpy() == 0.25


def test_custom_training_loop_aggregates():
  model = compiled(robust(sgd), linear)
  x, y = data()
  optimizer = model.optimizer

  def on_replica(x, y):
    with tf.GradientTape() as tape:
      losses = tf.reduce_mean((model(x) - y) ** 2, axis=1)
      loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(
      zip(gradients, model.trainable_variables, strict=True)
    )

  strategy = replicas.mirrored(4)
  batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
  step = tf.function(lambda batch: strategy.run(on_replica, batch))
  for batch in strategy.experimental_distribute_dataset(batches):
    step(batch)
  expected = replay(lambda rows: np.sort(rows, axis=0)[1:-1].mean(axis=0))
  np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-6)
