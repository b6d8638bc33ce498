"""Rules on the server: Zeno and Zeno++ by its own examples, and the others."""

import functools

import keras
import numpy as np
import pytest

from robust_tf import aggregators
from robust_tf.federated.local_training import exchanged_variables
from robust_tf.federated.slsgd import SLSGD
from robust_tf.federated.validation_examples import validation_examples
from robust_tf.federated.zeno_plus_plus import ZenoPlusPlus
from robust_tf.federated.zeno_server import ServerExamples
from robust_tf.federated.zeno_server import validation_gradient
from robust_tf.federated.zeno_server import zeno_on_server
from tests.robust_tf import oracles
from tests.robust_tf.fake_devices import assert_close
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import push_of
from tests.robust_tf.fake_devices import values
from tests.tensorflow_setup import tf

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FEATURES, CLASSES, BATCH, SEED = 4, 3, 6, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, 30)
RATE, SUSPECTED, RHO = 0.1, 2, 1e-3


def network(has_statistics):
  keras.utils.set_random_seed(0)
  statistics = [keras.layers.BatchNormalization()] if has_statistics else []
  return keras.Sequential(
    [
      keras.Input((FEATURES,)),
      keras.layers.Dense(5, activation="relu"),
      *statistics,
      keras.layers.Dropout(0.5),
      keras.layers.Dense(CLASSES, kernel_regularizer="l2"),
    ]
  )


def values_of(model):
  return [v.numpy() for v in exchanged_variables(model)]


def flat(arrays):
  return np.concatenate([np.ravel(x) for x in arrays]).astype(np.float64)


def examples():
  return ServerExamples(X, Y, BATCH, SEED)


def batch(version):
  chosen = validation_examples(len(X), BATCH, SEED, version)
  return X[chosen], Y[chosen]


def loss_of(model, flat_weights, version):
  """The loss as Keras computes it, with the weights in the variables."""
  variables = exchanged_variables(model)
  kept = values_of(model)
  start = 0
  for v in variables:
    size = int(np.prod(v.shape))
    v.assign(flat_weights[start : start + size].reshape(v.shape))
    start += size
  x, y = batch(version)
  loss = float(LOSS(y, model(x, training=False))) + float(sum(model.losses))
  for v, value in zip(variables, kept, strict=True):
    v.assign(value)
  return loss


def updates_near(model, seed, count=5):
  """Updates of a device's size, and one that is far too large."""
  rng = np.random.default_rng(seed)
  return [
    [
      (scale * rng.normal(size=x.shape)).astype(np.float32)
      for x in values_of(model)
    ]
    for scale in [0.1] * (count - 1) + [50.0]
  ]


@pytest.mark.parametrize("has_statistics", [False, True])
def test_zeno_rounds_are_those_of_the_definition(has_statistics):
  model = network(has_statistics)
  before = values_of(model)
  ours = SLSGD(
    before,
    device_tasks(),
    devices_per_round=5,
    aggregator_at=zeno_on_server(
      model,
      LOSS,
      examples(),
      learning_rate=RATE,
      num_suspected=SUSPECTED,
      rho=RHO,
    ),
  )
  expected = flat(before)
  for version in range(4):
    updates = updates_near(model, version)
    for task, update in zip(ours.assign(), updates, strict=True):
      ours.receive(push_of(task, content=update))
    gradients = np.stack([flat(u) for u in updates]) / RATE
    x = expected
    expected = x - RATE * oracles.zeno(
      gradients,
      lambda step, x=x, version=version: loss_of(model, x - step, version),
      RATE,
      SUSPECTED,
      RHO,
    )
    # The mean of three float32 updates below 8, and a difference.
    np.testing.assert_allclose(
      flat(ours.weights), expected, rtol=0, atol=(version + 1) * 4e-6
    )
  for x, y in zip(values_of(model), before, strict=True):
    np.testing.assert_array_equal(x, y)


def test_examples_are_drawn_by_seed_and_version():
  inputs, labels = examples().batch(3)
  np.testing.assert_array_equal(inputs, batch(3)[0])
  np.testing.assert_array_equal(labels, batch(3)[1])
  assert not np.array_equal(inputs, examples().batch(4)[0])


def test_zeno_that_suspects_all_is_an_error_at_once():
  model = network(False)
  with pytest.raises(ValueError, match="arrivals_per_round=3 .*num_suspected"):
    SLSGD(
      values_of(model),
      device_tasks(),
      devices_per_round=3,
      aggregator_at=zeno_on_server(
        model, LOSS, examples(), learning_rate=RATE, num_suspected=3
      ),
    )


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan])
def test_learning_rate_out_of_bounds_is_an_error(rate):
  with pytest.raises(ValueError, match="must be a finite number above 0"):
    zeno_on_server(
      network(False), LOSS, examples(), learning_rate=rate, num_suspected=1
    )


@pytest.mark.parametrize("size", [0, 31])
def test_batch_size_out_of_bounds_is_an_error(size):
  with pytest.raises(ValueError, match=f"batch_size={size} must be at least 1"):
    ServerExamples(X, Y, size, SEED)


def test_validation_gradient_is_that_of_keras():
  model = network(False)
  before = values_of(model)
  weights = [x + np.float32(0.1) for x in before]
  gradients = validation_gradient(model, LOSS, examples())(weights, 7)
  for v, value in zip(exchanged_variables(model), weights, strict=True):
    v.assign(value)
  x, y = batch(7)
  with tf.GradientTape() as tape:
    loss = LOSS(y, model(x, training=False)) + tf.add_n(model.losses)
  variables = [v.value for v in model.trainable_variables]
  expected = tape.gradient(loss, variables)
  for ours, theirs in zip(gradients, expected, strict=True):
    # The same sums, in another order at most.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_zeno_plus_plus_takes_no_model_with_statistics():
  model = network(True)
  with pytest.raises(ValueError, match="8 exchanged variables only 6 have one"):
    ZenoPlusPlus(
      values_of(model),
      device_tasks(),
      validation_gradient=validation_gradient(model, LOSS, examples()),
      learning_rate=RATE,
    )


RULES = {
  "bulyan": {"num_byzantine": 1},
  "geometric_median": {},
  "krum": {"num_byzantine": 2},
  "mean": {},
  "meamed": {"num_byzantine": 2},
  "median": {},
  "multi_krum": {"num_byzantine": 2, "num_selected": 3},
  "phocas": {"trim": 2},
  "trimmed_mean": {"trim": 2},
}


def test_every_rule_is_tried():
  assert {*RULES, "zeno"} == set(aggregators.AGGREGATORS)


@pytest.mark.parametrize("name", RULES)
def test_round_is_moved_by_the_rule(name):
  rule = aggregators.AGGREGATORS[name]
  ours = SLSGD(
    values(0),
    device_tasks(),
    devices_per_round=9,
    arrivals_per_round=7,
    mixing_weight=0.5,
    aggregator=functools.partial(rule, **RULES[name]),
  )
  for _ in range(2):
    before = flat(ours.weights)
    arrived = ours.assign()[1:8]
    for task in arrived:
      ours.receive(push_of(task))
    updates = np.stack([flat(push_of(task).values) for task in arrived])
    aggregate = getattr(oracles, name)(updates, **RULES[name])
    expected = before - 0.5 * aggregate
    assert_close([flat(ours.weights).astype(np.float32)], [expected], 8)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (
      functools.partial(aggregators.trimmed_mean, trim=2),
      "arrivals_per_round=4 of devices_per_round=6: trim=2 needs",
    ),
    (
      functools.partial(aggregators.krum, num_byzantine=2),
      "arrivals_per_round=4 of devices_per_round=6: num_byzantine=2 needs",
    ),
    (
      functools.partial(aggregators.trimmed_mean, trim=-1),
      "trim=-1 must be at least 0",
    ),
  ],
)
def test_rule_that_needs_more_arrivals_is_an_error_at_once(rule, message):
  with pytest.raises(ValueError, match=message):
    SLSGD(
      values(0),
      device_tasks(),
      devices_per_round=6,
      arrivals_per_round=4,
      aggregator=rule,
    )
