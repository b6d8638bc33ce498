"""What training many workers on one device does to a model, and refuses."""

import functools

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import aggregators
from robust_tf import RobustOptimizer
from robust_tf import VectorizedWorkers
from tests.robust_tf import replicas
from tests.robust_tf.four_workers import BATCH
from tests.robust_tf.four_workers import check_same
from tests.robust_tf.four_workers import cross_entropy
from tests.robust_tf.four_workers import data
from tests.robust_tf.four_workers import fit
from tests.robust_tf.four_workers import linear
from tests.robust_tf.four_workers import network
from tests.robust_tf.four_workers import NUM_STEPS


@pytest.mark.parametrize(
  "how",
  [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}],
)
def test_ways_to_execute_give_the_same_numbers(how):
  x, y = data()
  logs = []
  for each in (how, {}):
    keras.utils.set_random_seed(3)
    model = normalized()
    workers = compiled(model, loss=cross_entropy(), **each)
    history = workers.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    logs.append((model, history.history))
  check_same(*logs)


def test_unrolled_workers_are_vectorized_ones():
  check_same(
    fit(aggregators.median, None, 4, unroll=True),
    fit(aggregators.median, None, 4),
  )


def test_mean_of_workers_is_training_on_the_whole_batch():
  found = fit(aggregators.mean, None, 4, linear)
  keras.utils.set_random_seed(3)
  model = linear()
  model.compile(
    keras.optimizers.SGD(0.1, momentum=0.9),
    cross_entropy(),
    metrics=["accuracy"],
    weighted_metrics=["accuracy"],
  )
  x, y = data()
  stock = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
  check_same(found, (model, stock.history))


def normalized():
  return keras.Sequential(
    [
      keras.layers.Input((5,)),
      keras.layers.BatchNormalization(momentum=0.5),
      keras.layers.Dense(3),
    ]
  )


def test_moving_statistics_are_the_mean_over_the_workers():
  model, _ = fit(aggregators.median, None, 4, normalized)
  mean = np.zeros(5)
  variance = np.ones(5)
  for batch in data()[0].reshape(NUM_STEPS, 4, BATCH // 4, 5):
    mean = 0.5 * mean + 0.5 * batch.mean(axis=1).mean(axis=0)
    variance = 0.5 * variance + 0.5 * batch.var(axis=1).mean(axis=0)
  layer = model.layers[0]
  np.testing.assert_allclose(layer.moving_mean, mean, atol=1e-6)
  np.testing.assert_allclose(layer.moving_variance, variance, atol=1e-6)


def compiled(model, num_workers=4, optimizer=None, loss="mse", **kwargs):
  workers = VectorizedWorkers(model, num_workers)
  workers.compile(
    optimizer
    or RobustOptimizer(
      keras.optimizers.SGD(0.1),
      aggregators.mean,
      workers_per_replica=num_workers,
    ),
    loss,
    **kwargs,
  )
  return workers


def two_outputs():
  inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
  joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
  outputs = {
    "p": keras.layers.Dense(1, name="p")(joined),
    "q": keras.layers.Dense(2, name="q")(joined),
  }
  return keras.Model(inputs, outputs)


def test_several_inputs_outputs_and_losses_train_as_one_batch():
  random = np.random.default_rng(0)
  x = {"a": random.normal(size=(16, 2)), "b": random.normal(size=(16, 3))}
  y = {"p": random.normal(size=(16, 1)), "q": random.normal(size=(16, 2))}
  losses = {"p": "mse", "q": "mae"}
  logs = []
  for vectorized in (False, True):
    keras.utils.set_random_seed(1)
    model = two_outputs()
    if vectorized:
      trained = compiled(model, loss=losses, loss_weights={"p": 1.0, "q": 2.0})
    else:
      trained = model
      model.compile(
        keras.optimizers.SGD(0.1), losses, loss_weights={"p": 1.0, "q": 2.0}
      )
    history = trained.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    logs.append((model, history.history))
  assert set(logs[0][1]) == {"loss", "p_loss", "q_loss"}
  check_same(*logs)


def recurrent():
  return keras.Sequential(
    [
      keras.layers.Input((4,), dtype="int32"),
      keras.layers.Embedding(6, 3, mask_zero=True),
      keras.layers.LSTM(2),
      keras.layers.Dense(1),
    ]
  )


def convolutional():
  return keras.Sequential(
    [
      keras.layers.Input((4, 4, 1)),
      keras.layers.Conv2D(2, 3, activation="relu"),
      keras.layers.MaxPooling2D(2),
      keras.layers.Flatten(),
      keras.layers.Dense(1),
    ]
  )


@pytest.mark.parametrize(
  ("build", "shape", "unrolls"),
  [(recurrent, (4,), True), (convolutional, (4, 4, 1), False)],
)
def test_layers_of_many_kinds_train_as_one_batch(build, shape, unrolls):
  random = np.random.default_rng(0)
  x = random.integers(6, size=(8, *shape))
  y = random.normal(size=(8, 1))
  logs = []
  for vectorized in (False, True):
    keras.utils.set_random_seed(1)
    model = build()
    if vectorized:
      trained = compiled(model)
      assert trained.unroll is unrolls
    else:
      trained = model
      model.compile(keras.optimizers.SGD(0.1), "mse")
    logs.append((model, trained.fit(x, y, batch_size=8, verbose=0).history))
  check_same(*logs)


def test_evaluation_and_prediction_are_the_models_own():
  model, _ = fit(aggregators.median, None, 4)
  workers = compiled(model, loss=cross_entropy())
  x, y = data(1)
  x, y = x[:7], y[:7]  # any batch does
  model.compile(loss=cross_entropy())
  np.testing.assert_allclose(
    workers.evaluate(x, y, verbose=0),
    model.evaluate(x, y, verbose=0),
    rtol=1e-6,
  )
  np.testing.assert_array_equal(
    workers.predict(x, verbose=0), model.predict(x, verbose=0)
  )


# Keras 3.15 saves variables through NumPy's old array protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_saved_workers_go_on_exactly(tmp_path):
  x, y = data()
  keras.utils.set_random_seed(2)
  # Without dropout: Keras' files do not hold the state of random layers.
  workers = compiled(
    normalized(),
    loss=cross_entropy(),
    optimizer=RobustOptimizer(
      keras.optimizers.Adam(0.1),
      functools.partial(aggregators.trimmed_mean, trim=1),
      workers_per_replica=4,
    ),
  )
  workers.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
  workers.save(tmp_path / "workers.keras")
  loaded = keras.models.load_model(tmp_path / "workers.keras")
  assert isinstance(loaded, VectorizedWorkers)
  for each in (workers, loaded):
    each.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
  for value, expected in zip(
    loaded.get_weights(), workers.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(value, expected)


def test_frozen_layers_stay():
  model = network()
  model.layers[0].trainable = False
  before = model.layers[0].get_weights()
  x, y = data()
  compiled(model, loss=cross_entropy()).fit(x, y, batch_size=BATCH, verbose=0)
  for value, expected in zip(
    model.layers[0].get_weights(), before, strict=True
  ):
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_batch_that_does_not_divide_is_one_clear_error(steps):
  workers = compiled(linear(), loss=cross_entropy(), steps_per_execution=steps)
  x, y = data()
  whole = tf.data.Dataset.from_tensor_slices((x, y)).batch(
    10, drop_remainder=True
  )
  with pytest.raises(ValueError, match="drop_remainder=True.*batch of 10"):
    workers.fit(whole, shuffle=False, verbose=0)
  with pytest.raises(
    tf.errors.InvalidArgumentError, match="drop the remainder"
  ):
    workers.fit(x[:10], y[:10], batch_size=8, verbose=0)


@pytest.mark.parametrize(
  ("optimizer", "message"),
  [
    ("sgd", "wrap it in RobustOptimizer"),
    (
      RobustOptimizer(keras.optimizers.SGD(), aggregators.mean),
      "workers_per_replica=None",
    ),
    (
      RobustOptimizer(
        keras.optimizers.SGD(), aggregators.mean, workers_per_replica=3
      ),
      "workers_per_replica=3, VectorizedWorkers has 4 workers",
    ),
  ],
)
def test_optimizers_that_cannot_apply_their_gradients_are_refused(
  optimizer, message
):
  with pytest.raises(ValueError, match=message):
    compiled(linear(), optimizer=optimizer)


def test_jit_compile_under_a_strategy_is_refused():
  with (
    replicas.mirrored(2).scope(),
    pytest.raises(ValueError, match="jit_compile=True does not work"),
  ):
    compiled(linear(), jit_compile=True)


class _OwnStep(keras.Model):
  def train_step(self, data):
    return {}


class _Forgetful(keras.layers.Layer):
  """Assigns its weight when it is called."""

  def build(self, shape):
    self.scale = self.add_weight(shape=())

  def call(self, inputs):
    self.scale.assign(self.scale / 2)
    return inputs * self.scale


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: VectorizedWorkers("model", 4), TypeError, "not a keras.Model"),
    (lambda: VectorizedWorkers(linear(), 0), ValueError, "num_workers=0"),
    (lambda: VectorizedWorkers(linear(), 4.0), TypeError, "num_workers=4.0"),
    (
      lambda: VectorizedWorkers(_OwnStep(), 4),
      ValueError,
      "_OwnStep has a train_step of its own",
    ),
    (
      lambda: VectorizedWorkers(
        keras.Sequential(
          [
            keras.layers.Input((2,)),
            keras.layers.BatchNormalization(synchronized=True),
          ]
        ),
        4,
      ),
      ValueError,
      "synchronized=True",
    ),
  ],
)
def test_models_that_cannot_be_vectorized_are_refused(make, error, message):
  with pytest.raises(error, match=message):
    make()


def test_model_that_assigns_its_weights_is_refused():
  model = keras.Sequential([keras.layers.Input((5,)), _Forgetful()])
  with pytest.raises(ValueError, match="assigns the trainable variable"):
    compiled(model).fit(*[data()[0]] * 2, batch_size=BATCH, verbose=0)


def test_sparse_batches_are_refused():
  x = tf.sparse.from_dense(np.eye(8, 5, dtype=np.float32))
  batches = tf.data.Dataset.from_tensors((x, np.zeros((8, 3), np.float32)))
  with pytest.raises(TypeError, match="SparseTensor"):
    compiled(linear()).fit(batches, shuffle=False, verbose=0)


def test_mixed_precision_scales_the_loss_of_each_worker():
  keras.mixed_precision.set_dtype_policy("mixed_float16")
  try:
    model = linear()
  finally:
    keras.mixed_precision.set_dtype_policy("float32")
  keras.utils.set_random_seed(3)
  workers = compiled(
    model,
    loss=cross_entropy(),
    optimizer=keras.optimizers.LossScaleOptimizer(
      RobustOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9),
        aggregators.median,
        workers_per_replica=4,
      ),
      initial_scale=1024.0,
    ),
  )
  x, y = data()
  keras.utils.set_random_seed(3)
  exact = linear()
  model.set_weights(exact.get_weights())
  workers.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
  expected, _ = fit(aggregators.median, None, 4, linear)
  # Half precision in the forward pass.
  np.testing.assert_allclose(
    model.get_weights()[0], expected.get_weights()[0], atol=2e-3
  )
