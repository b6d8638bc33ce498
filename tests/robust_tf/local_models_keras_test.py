"""What Keras can do with an optimizer, with those that have local models.

Steps are checked against NumPy elsewhere; here one way of training is checked
against another that must give the same.
"""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import keras
import numpy as np
import pytest

import robust_tf
from tests.robust_tf.local_fits import GRADIENT
from tests.robust_tf.local_fits import mean_of_models
from tests.robust_tf.local_fits import optimizer_of
from tests.robust_tf.local_fits import OPTIMIZERS
from tests.robust_tf.local_fits import RESET
from tests.robust_tf.local_fits import snapshot
from tests.robust_tf.local_fits import spread
from tests.robust_tf.mirrored_fits import BATCH
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import data
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network
from tests.robust_tf.mirrored_fits import NUM_STEPS

# Keras 3.15 saves and sets variables through NumPy's old array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

# Float32, whose sums may be in another order, after a few steps.
ROUNDING = 1e-5
MAKE = OPTIMIZERS["cser"]


def assert_close(model, other, tolerance=ROUNDING):
  keras.tree.map_structure(
    lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-5),
    snapshot(model),
    snapshot(other),
  )


@pytest.fixture(scope="module")
def plain():
  """A model trained for two epochs in the ordinary way."""
  model = compiled(MAKE)
  fit(model, epochs=2)
  return model


@pytest.mark.slow
@pytest.mark.parametrize(
  "how", [{"steps_per_execution": 4}, {"run_eagerly": True}]
)
def test_ways_to_run_steps_give_the_same(how, plain):
  model = compiled(MAKE, **how)
  fit(model, epochs=2)
  assert_close(model, plain)


def test_worker_without_examples_takes_a_step_of_zero():
  def regularized():
    return keras.Sequential(
      [
        keras.layers.Input((3,)),
        keras.layers.Dense(
          2,
          use_bias=False,
          kernel_initializer="ones",
          kernel_regularizer=keras.regularizers.L2(0.05),
        ),
      ]
    )

  x, y = (part[: BATCH + 2] for part in data())
  make = OPTIMIZERS["local_sgd"]
  model = compiled(lambda: make(momentum=0.0), regularized)
  fit(model, x_and_y=(x, y))
  batches = [np.arange(BATCH).reshape(4, 2), [[BATCH], [BATCH + 1], [], []]]
  for worker, (found,) in enumerate(optimizer_of(model).local_models()):
    kernel = np.ones((3, 2))
    for rows in (batch[worker] for batch in batches):
      if len(rows):
        errors = x[rows] @ kernel - y[rows]
        gradient = x[rows].T @ errors * 2 / errors.size + 0.1 * kernel
        kernel = kernel - 0.1 * gradient
    np.testing.assert_allclose(found, kernel, atol=1e-6)


def policy(name, make=network):
  """Returns what makes a model in mixed precision."""

  def build():
    keras.mixed_precision.set_dtype_policy(name)
    try:
      return make()
    finally:
      keras.mixed_precision.set_dtype_policy("float32")

  return build


@pytest.mark.slow
@pytest.mark.parametrize(
  # The spacing of numbers near 1; gradients are computed in these.
  ("name", "epsilon"),
  [("mixed_float16", 2**-10), ("mixed_bfloat16", 2**-7)],
)
def test_mixed_precision_trains_as_float32(name, epsilon, plain, tmp_path):
  model = compiled(MAKE, policy(name))
  assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
    name == "mixed_float16"
  )
  model.optimizer.initial_scale = 64.0  # with more a step may be skipped
  fit(model, epochs=2)
  optimizer = optimizer_of(model)
  assert optimizer.iterations.numpy() == 2 * NUM_STEPS
  assert spread(optimizer) > 0.01
  expected = mean_of_models(optimizer)
  for value, mean, other in zip(
    model.get_weights(), expected, plain.get_weights(), strict=True
  ):
    np.testing.assert_allclose(value, mean, atol=1e-6)
    np.testing.assert_allclose(value, other, atol=8 * epsilon)
  model.save(tmp_path / "model.keras")
  with model.distribute_strategy.scope():
    loaded = policy(
      name, lambda: keras.models.load_model(tmp_path / "model.keras")
    )()
  for each in (model, loaded):
    fit(each)
  keras.tree.map_structure(
    np.testing.assert_array_equal, snapshot(loaded), snapshot(model)
  )


def test_infinite_gradient_skips_the_step_of_all_workers():
  x, y = data()
  x[2 * BATCH // 4] = np.inf  # of the first batch, and the third worker
  model = compiled(MAKE, policy("mixed_float16"))
  model.optimizer.initial_scale = 64.0
  fit(model, x_and_y=(x, y))
  assert all(np.isfinite(value).all() for value in model.get_weights())
  assert optimizer_of(model).iterations.numpy() == NUM_STEPS - 1


@pytest.mark.slow
def test_learning_rate_is_scheduled_as_it_is_set():
  rates = [0.1, 0.05]
  by_step = compiled(
    lambda: robust_tf.LocalSGD(
      keras.optimizers.schedules.PiecewiseConstantDecay([3], rates),
      sync_period=3,
    )
  )
  fit(by_step, epochs=2)
  by_callback = compiled(lambda: robust_tf.LocalSGD(1.0, sync_period=3))
  fit(
    by_callback,
    epochs=2,
    callbacks=[
      keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    ],
  )
  by_hand = compiled(lambda: robust_tf.LocalSGD(1.0, sync_period=3))
  for rate in rates:
    by_hand.optimizer.learning_rate = rate
    fit(by_hand)
  for model in (by_callback, by_hand):
    assert_close(model, by_step)


def test_excluded_variables_do_not_decay():
  def make(decay, excluded):
    optimizer = robust_tf.LocalSGD(
      0.1, sync_period=3, momentum=0.0, weight_decay=decay
    )
    optimizer.exclude_from_weight_decay(var_names=excluded)
    return optimizer

  def one_step(decay, excluded):
    model = compiled(lambda: make(decay, excluded), num_replicas=2)
    x, y = data()
    before = model.get_weights()
    fit(model, x_and_y=(x[:BATCH], y[:BATCH]))
    return before, model.get_weights()

  before, expected = one_step(None, [])
  _, found = one_step(0.5, ["bias"])
  for x, value, other, rate in zip(
    before, found, expected, (0.05, 0, 0.05, 0), strict=True
  ):
    np.testing.assert_allclose(value, other - rate * x, atol=1e-6)


@pytest.mark.parametrize(
  ("setting", "reference"),
  [
    # Of one sample a worker, whose only coordinate each norm is.
    ({"clipnorm": 0.1}, 0.1),
    ({"clipvalue": 0.1}, 0.1),
    ({"global_clipnorm": 0.1}, 0.1),
  ],
)
def test_each_worker_clips_for_itself(setting, reference):
  def build():
    return keras.Sequential(
      [
        keras.layers.Input((1,)),
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
      ]
    )

  model = compiled(
    lambda: robust_tf.LocalSGD(1.0, sync_period=1, momentum=0.0, **setting),
    build,
  )
  x = np.ones((4, 1), np.float32)
  y = np.float32([[-0.01], [0.02], [-3.0], [5.0]])
  model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
  # The gradient of (w x - y)^2 at w = 0 is -2 y.
  clipped = np.clip(2 * y, -reference, reference)
  np.testing.assert_allclose(
    model.get_weights()[0].item(), clipped.mean(), atol=1e-7
  )


def normalized():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(4),
      keras.layers.BatchNormalization(momentum=0.5),
      keras.layers.Dense(2),
    ]
  )


class Statistics(keras.callbacks.Callback):
  """Keeps what the replicas' moving statistics are after the last step."""

  def on_train_batch_end(self, batch, logs=None):
    """Reads them."""
    strategy = self.model.distribute_strategy
    self.values = [
      [
        replica.numpy()
        for replica in strategy.experimental_local_results(variable.value)
      ]
      for variable in self.model.non_trainable_variables[:2]
    ]


def test_moving_statistics_are_averaged_for_the_mean_model():
  statistics = Statistics()
  model = compiled(MAKE, normalized)
  fit(model, callbacks=[statistics])
  found = [v.numpy() for v in model.non_trainable_variables[:2]]
  for value, of_replicas in zip(found, statistics.values, strict=True):
    assert len(of_replicas) == 4
    assert np.ptp(of_replicas, axis=0).max() > 0.01
    np.testing.assert_allclose(value, np.mean(of_replicas, axis=0), rtol=1e-6)
  # All replicas score with the same: as the mean model alone does.
  x, y = data(7)
  copy = normalized()
  copy.compile("sgd", "mse")
  copy.set_weights(model.get_weights())
  np.testing.assert_allclose(
    model.evaluate(x, y, batch_size=BATCH, verbose=0),
    copy.evaluate(x, y, verbose=0),
    rtol=1e-6,
  )


@pytest.mark.slow
def test_looking_does_not_change_what_normalization_trains():
  alone, watched = (compiled(MAKE, normalized) for _ in range(2))
  fit(alone, epochs=2)
  fit(watched, epochs=2, validation_data=data(7))
  keras.tree.map_structure(
    np.testing.assert_array_equal, snapshot(watched), snapshot(alone)
  )


def embedding():
  return keras.Sequential(
    [
      keras.layers.Input((2,), dtype="int32"),
      keras.layers.Embedding(5, 3),
      keras.layers.Flatten(),
      keras.layers.Dense(2),
    ]
  )


class OneHot(keras.layers.Layer):
  """An embedding by a product, whose gradient is dense."""

  def build(self, shape):
    """Makes the table."""
    self.table = self.add_weight(shape=(5, 3), initializer="uniform")

  def call(self, words):
    """Looks words up."""
    return keras.ops.one_hot(words, 5) @ self.table


def dense_embedding():
  return keras.Sequential(
    [
      keras.layers.Input((2,), dtype="int32"),
      OneHot(),
      keras.layers.Flatten(),
      keras.layers.Dense(2),
    ]
  )


def test_sparse_gradients_train_as_dense_ones():
  words = np.random.default_rng(1).integers(5, size=(NUM_STEPS * BATCH, 2))
  sparse, dense = (compiled(MAKE, b) for b in (embedding, dense_embedding))
  dense.set_weights(sparse.get_weights())
  for model in (sparse, dense):
    fit(model, x_and_y=(words, data()[1]))
  assert_close(sparse, dense)


class WithIdle(keras.layers.Layer):
  """A layer that has a weight which bears on nothing."""

  def build(self, shape):
    """Makes the weight."""
    self.idle = self.add_weight(shape=(3,), initializer="ones")

  def call(self, x):
    """Returns its input."""
    return x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_variable_without_gradient_is_left_alone(plain):
  def build():
    layers = [keras.layers.Input((3,)), *network().layers, WithIdle()]
    return keras.Sequential(layers)

  model = compiled(MAKE, build)
  fit(model, epochs=2)
  *weights, idle = model.get_weights()
  for value, other in zip(weights, plain.get_weights(), strict=True):
    np.testing.assert_allclose(value, other, atol=ROUNDING)
  np.testing.assert_array_equal(idle, np.ones(3))
  assert model.optimizer.bytes_sent == plain.optimizer.bytes_sent


def alone(make, **kwargs):
  """Returns a model without a strategy, trained for two epochs."""
  keras.utils.set_random_seed(5)
  model = network()
  model.compile(make(), "mse", **kwargs)
  fit(model, epochs=2)
  return model


@pytest.mark.parametrize("name", ["cser", "qsparse"])
def test_blocks_drawn_at_each_step_are_not_compiled(name):
  with pytest.raises(ValueError, match="XLA cannot compile GRBS.*=False"):
    alone(OPTIMIZERS[name], jit_compile=True)


@pytest.mark.parametrize("name", ["ef_sgd", "local_adaalter", "local_sgd"])
def test_one_worker_is_compiled(name):
  compiled_by_xla = alone(OPTIMIZERS[name], jit_compile=True)
  assert_close(compiled_by_xla, alone(OPTIMIZERS[name], jit_compile=False))


@pytest.mark.parametrize(
  "make",
  [
    lambda: robust_tf.CSER(
      0.1, reset_compressor=RESET, gradient_compressor=GRADIENT
    ),
    lambda: robust_tf.LocalSGD(0.1),
  ],
)
def test_one_worker_with_nothing_to_lose_is_keras_sgd(make):
  found = alone(make)
  expected = alone(
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
  )
  for value, other in zip(
    found.get_weights(), expected.get_weights(), strict=True
  ):
    np.testing.assert_allclose(value, other, atol=ROUNDING)
