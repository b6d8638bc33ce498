import copy

import keras
import numpy as np
import pytest

from robust_tf import CSER
from robust_tf.federated.local_training import DeviceData
from robust_tf.federated.local_training import exchanged_variables
from robust_tf.federated.local_training import LocalTraining
from tests.tensorflow_setup import tf

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CLASSES, FEATURES = 3, 5
EXAMPLES = np.random.default_rng(0).integers(0, 40, (4, 6)).astype(np.int32)

OPTIMIZERS = {
  "sgd": lambda: keras.optimizers.SGD(0.1),
  "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
  "adam": lambda: keras.optimizers.Adam(0.01),
  "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5),
  "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5),
  "adagrad": lambda: keras.optimizers.Adagrad(0.1),
  "lion": lambda: keras.optimizers.Lion(0.01),
  "scheduled": lambda: keras.optimizers.SGD(
    keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
  ),
}


def examples():
  rng = np.random.default_rng(1)
  return DeviceData(
    rng.normal(size=(40, FEATURES)).astype(np.float32),
    rng.integers(0, CLASSES, 40).astype(np.int32),
    CLASSES,
  )


def network():
  """Layers with statistics, with random masks, and with a loss of their own."""
  keras.utils.set_random_seed(0)
  return keras.Sequential(
    [
      keras.Input((FEATURES,)),
      keras.layers.Dense(7, activation="relu"),
      keras.layers.BatchNormalization(),
      keras.layers.Dropout(0.3, seed=11),
      keras.layers.Dense(CLASSES, kernel_regularizer="l2"),
    ]
  )


def linear():
  keras.utils.set_random_seed(0)
  return keras.Sequential(
    [keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)]
  )


def values_of(model):
  return [v.numpy() for v in exchanged_variables(model)]


def trained(training, model, data, *, flipped=False, seed=0, rows=EXAMPLES):
  batches = data.batches(
    tf.constant(data.inputs), tf.constant(data.labels), rows, flipped
  )
  result = training(values_of(model), *batches, tf.constant(seed))
  return [x.numpy() for x in result]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_local_steps_equal_keras_own(name):
  model, data = network(), examples()
  training = LocalTraining(model, LOSS, OPTIMIZERS[name]())
  found = trained(training, model, data, seed=5)

  reference = network()
  for i, variable in enumerate(reference.non_trainable_variables):
    if variable.path.endswith("seed_generator_state"):
      variable.assign([5 + i, 0])
  optimizer = OPTIMIZERS[name]()
  for rows in EXAMPLES:
    with tf.GradientTape() as tape:
      outputs = reference(data.inputs[rows], training=True)
      loss = tf.add_n([LOSS(data.labels[rows], outputs), *reference.losses])
    gradients = tape.gradient(loss, reference.trainable_variables)
    optimizer.apply(gradients, reference.trainable_variables)
  # The same float32 operations, fused or not.
  for a, b in zip(found, values_of(reference), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_optimizer_that_was_copied_trains_as_before():
  # A copy leaves marks on the classes of what was copied.
  optimizer = copy.copy(OPTIMIZERS["sgd"]())
  model, data = network(), examples()
  trained(LocalTraining(model, LOSS, optimizer), model, data)


def test_proximal_steps_equal_numpy():
  model = linear()
  data, rho, gamma = examples(), 0.7, 0.2
  training = LocalTraining(
    model, LOSS, keras.optimizers.SGD(gamma), proximal_weight=rho
  )
  found = trained(training, model, data)

  center = [x.astype(np.float64) for x in values_of(model)]
  kernel, bias = center
  for rows in EXAMPLES:
    z, y = data.inputs[rows].astype(np.float64), data.labels[rows]
    logits = z @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    kernel, bias = (
      kernel - gamma * (z.T @ p + rho * (kernel - center[0])),
      bias - gamma * (p.sum(axis=0) + rho * (bias - center[1])),
    )
  np.testing.assert_allclose(found[0], kernel, atol=1e-6)
  np.testing.assert_allclose(found[1], bias, atol=1e-6)


def test_proximal_weight_of_one_over_rate_pulls_back_to_the_center():
  model = linear()
  data = examples()
  training = LocalTraining(
    model,
    lambda labels, outputs: 0.0 * tf.reduce_sum(outputs),
    keras.optimizers.SGD(0.25),
    proximal_weight=4.0,
  )
  center = values_of(model)
  start = [x + 1 for x in center]
  batches = data.batches(
    tf.constant(data.inputs), tf.constant(data.labels), EXAMPLES[:1], False
  )
  found = training(start, *batches, tf.constant(0), center)
  for a, b in zip(found, center, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_training_changes_nothing_and_repeats_itself():
  model, data = network(), examples()
  optimizer = OPTIMIZERS["adam"]()
  training = LocalTraining(model, LOSS, optimizer)
  before = [v.numpy() for v in (*model.variables, *optimizer.variables)]
  first = trained(training, model, data)
  second = trained(training, model, data)
  after = [v.numpy() for v in (*model.variables, *optimizer.variables)]
  for a, b in zip(before + first, after + second, strict=True):
    np.testing.assert_array_equal(a, b)


def test_seed_decides_what_dropout_keeps():
  model, data = network(), examples()
  training = LocalTraining(model, LOSS, OPTIMIZERS["sgd"]())
  first, second = (trained(training, model, data, seed=x) for x in (1, 2))
  assert any((a != b).any() for a, b in zip(first, second, strict=True))


def test_one_trace_serves_any_number_of_steps():
  model, data = network(), examples()
  training = LocalTraining(model, LOSS, OPTIMIZERS["sgd"]())
  traces = []

  @tf.function(autograph=False, reduce_retracing=True)
  def work(start, rows):
    traces.append(rows)
    inputs, labels = tf.constant(data.inputs), tf.constant(data.labels)
    return training(start, *data.batches(inputs, labels, rows, False), 0)

  rows = [tf.constant(EXAMPLES[:h]) for h in (1, 2, 3, 4)]
  results = [work(values_of(model), x) for x in rows]
  assert len(traces) == 2  # of one step, then of any number
  for h, found in enumerate(results, 1):
    expected = trained(training, model, data, rows=EXAMPLES[:h])
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)


def test_update_is_start_minus_result():
  model, data = network(), examples()
  optimizer = OPTIMIZERS["sgd"]
  result = trained(LocalTraining(model, LOSS, optimizer()), model, data)
  update = trained(
    LocalTraining(model, LOSS, optimizer(), gives_update=True), model, data
  )
  for x, a, b in zip(values_of(model), result, update, strict=True):
    np.testing.assert_allclose(x - a, b, atol=1e-7)


def test_flipped_labels_count_from_the_other_end():
  data = examples()
  inputs, labels = tf.constant(data.inputs), tf.constant(data.labels)
  _, plain = data.batches(inputs, labels, EXAMPLES, tf.constant(False))
  _, flipped = data.batches(inputs, labels, EXAMPLES, tf.constant(True))
  np.testing.assert_array_equal(plain, data.labels[EXAMPLES])
  np.testing.assert_array_equal(flipped, CLASSES - 1 - data.labels[EXAMPLES])


def test_exchanged_are_weights_and_statistics():
  names = [v.path.rpartition("/")[2] for v in exchanged_variables(network())]
  assert names == [
    *("kernel", "bias", "gamma", "beta", "kernel", "bias"),
    *("moving_mean", "moving_variance"),
  ]


def accumulating():
  return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
  ("optimizer", "message"),
  [
    (lambda: CSER(0.1), "CSER needs other workers"),
    (
      lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
      "give the optimizer that it wraps",
    ),
    (lambda: keras.optimizers.SGD(0.1, use_ema=True), "without use_ema"),
    (accumulating, "gradient_accumulation_steps"),
  ],
)
def test_optimizer_that_cannot_begin_anew_is_refused(optimizer, message):
  with pytest.raises(ValueError, match=message):
    LocalTraining(network(), LOSS, optimizer())


def test_negative_proximal_weight_is_refused():
  with pytest.raises(ValueError, match="proximal_weight=-1 must be at least 0"):
    LocalTraining(network(), LOSS, keras.optimizers.SGD(), proximal_weight=-1)
