"""The held-out loss, and Zeno with it on real replicas."""

import functools

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import aggregators
from robust_tf import RobustOptimizer
from robust_tf import ValidationLoss
from robust_tf import VectorizedWorkers
from tests.robust_tf import replicas

NUM_STEPS = 3
BATCH = 8
HELD_OUT = 5

# Keras 3.15 saves variables through NumPy's old array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def linear():
  return keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.Dense(2, use_bias=False, kernel_initializer="ones"),
    ]
  )


def draw(seed, size):
  random = np.random.default_rng(seed)
  x = random.normal(size=(size, 3)).astype(np.float32)
  return x, (x[:, :2] - x[:, 1:]).astype(np.float32)


def held_out(num_batches=NUM_STEPS):
  """Returns batches, as arrays and as a dataset."""
  x, y = draw(7, num_batches * HELD_OUT)
  batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(HELD_OUT)
  return (
    x.reshape(num_batches, HELD_OUT, 3),
    y.reshape(num_batches, HELD_OUT, 2),
    batches,
  )


def mean_square(x, y, kernel):
  return np.mean((x.astype(np.float64) @ kernel - y) ** 2)


@pytest.mark.parametrize(
  "loss",
  [
    "mse",
    "mean_squared_error",
    keras.losses.MeanSquaredError(),
    keras.losses.MeanSquaredError(reduction="sum"),
    lambda y, predictions: (y - predictions) ** 2,
  ],
)
@pytest.mark.parametrize("num_replicas", [None, 4])
def test_loss_is_the_mean_after_the_step(loss, num_replicas):
  # A strategy divides Keras' own means by its replicas: not here.
  strategy = None if num_replicas is None else replicas.mirrored(num_replicas)
  x, y, batches = held_out()
  with replicas.scope(strategy):
    model = linear()
    loss_after = ValidationLoss(model, loss, batches).after_steps(
      model.trainable_variables
    )
    step = np.float32([[0.1, 0], [0.2, 0.3], [-1, 2]])
    found = loss_after([tf.constant(step)])
  np.testing.assert_allclose(found, mean_square(x[0], y[0], 1 - step), 1e-6)
  np.testing.assert_array_equal(model.get_weights()[0], np.ones((3, 2)))


def test_every_step_draws_the_next_batch_and_then_the_first():
  x, y, batches = held_out(2)
  model = linear()
  validation_loss = ValidationLoss(model, "mse", batches)
  for k in (0, 1, 0):
    loss_after = validation_loss.after_steps(model.trainable_variables)
    for step in (0.0, 0.5):
      np.testing.assert_allclose(
        loss_after([tf.fill([3, 2], step)]),
        mean_square(x[k], y[k], np.full((3, 2), 1 - step)),
        rtol=1e-6,
      )


def test_model_is_in_inference_mode_and_keeps_its_state():
  keras.utils.set_random_seed(0)
  model = keras.Sequential(
    [
      keras.layers.Input((3,)),
      keras.layers.BatchNormalization(),
      keras.layers.Dropout(0.9),
      keras.layers.Dense(2),
    ]
  )
  x, y, batches = held_out()
  before = [v.numpy() for v in model.variables]
  loss_after = ValidationLoss(model, "mse", batches).after_steps(
    model.trainable_variables
  )
  zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
  np.testing.assert_allclose(
    loss_after(zeros), np.mean((model(x[0]) - y[0]) ** 2), rtol=1e-6
  )
  for variable, value in zip(model.variables, before, strict=True):
    np.testing.assert_array_equal(variable.numpy(), value)


def test_variables_of_another_model_are_an_error():
  validation_loss = ValidationLoss(linear(), "mse", held_out()[2])
  with pytest.raises(ValueError, match="not one of the trainable variables"):
    validation_loss.after_steps(linear().trainable_variables)


@pytest.mark.parametrize(
  ("loss", "dataset", "error", "message"),
  [
    ("mse", draw(0, 4), TypeError, "dataset is a tuple"),
    (3, held_out()[2], ValueError, "Could not interpret loss identifier: 3"),
    (None, held_out()[2], TypeError, "loss=None must be a Keras loss"),
    (
      "mse",
      held_out()[2].map(lambda x, y: x),
      ValueError,
      r"give batches \(x, y\)",
    ),
    ("mse", held_out()[2].take(0), ValueError, "dataset is empty"),
  ],
)
def test_wrong_arguments_are_refused(loss, dataset, error, message):
  with pytest.raises(error, match=message):
    ValidationLoss(linear(), loss, dataset)


RHO = 0.01
SCHEDULE = (0.1, 1, 0.5)  # the rate is halved each step


def zeno_model(num_replicas, rows, liar=2):
  """Returns four workers in training, of which one has wrong labels."""
  strategy = None if num_replicas is None else replicas.mirrored(num_replicas)
  with replicas.scope(strategy):
    model = linear()
    trained = model if rows is None else VectorizedWorkers(model, rows)
    trained.compile(
      RobustOptimizer(
        keras.optimizers.SGD(
          keras.optimizers.schedules.ExponentialDecay(*SCHEDULE, staircase=True)
        ),
        functools.partial(aggregators.zeno, num_suspected=2, rho=RHO),
        validation_loss=ValidationLoss(model, "mse", held_out()[2]),
        workers_per_replica=rows,
      ),
      "mse",
    )
  return model, trained


def training_data(liar=2):
  x, y = draw(1, NUM_STEPS * BATCH)
  labels = y.reshape(NUM_STEPS, 4, BATCH // 4, 2).copy()
  labels[:, liar] *= -5
  return x, labels.reshape(-1, 2)


def zeno_replay():
  """Returns the kernel that Zeno's definition leads to, in float64."""
  x, y = training_data()
  x, y = x.astype(np.float64), y.astype(np.float64)
  held_x, held_y, _ = held_out()
  kernel = np.ones((3, 2))
  size = BATCH // 4
  for step in range(NUM_STEPS):
    rate = SCHEDULE[0] * SCHEDULE[2] ** step
    gradients, scores = [], []
    for worker in range(4):
      first = step * BATCH + worker * size
      rows = slice(first, first + size)
      gradient = x[rows].T @ (x[rows] @ kernel - y[rows]) * 2 / (2 * size)
      gradients.append(gradient)
      scores.append(
        mean_square(held_x[step], held_y[step], kernel)
        - mean_square(held_x[step], held_y[step], kernel - rate * gradient)
        - RHO * np.square(gradient).sum()
      )
    best = np.argsort(scores)[2:]
    kernel = kernel - rate * np.mean([gradients[i] for i in best], axis=0)
  return kernel


@pytest.mark.parametrize("layout", [(4, None), (None, 4), (2, 2)])
def test_zeno_equals_a_replay_in_numpy(layout):
  model, trained = zeno_model(*layout)
  trained.fit(*training_data(), batch_size=BATCH, shuffle=False, verbose=0)
  np.testing.assert_allclose(model.get_weights()[0], zeno_replay(), atol=1e-5)


def test_checkpoint_holds_the_position_in_the_data(tmp_path):
  x, y = training_data()
  _, first = zeno_model(None, 4)
  first.fit(x[:BATCH], y[:BATCH], shuffle=False, verbose=0)
  saved = tf.train.Checkpoint(model=first).save(tmp_path / "checkpoint")
  model, resumed = zeno_model(None, 4)
  resumed.optimizer.build(resumed.trainable_variables)
  tf.train.Checkpoint(model=resumed).restore(saved).assert_consumed()
  resumed.fit(x[BATCH:], y[BATCH:], batch_size=BATCH, shuffle=False, verbose=0)
  np.testing.assert_allclose(model.get_weights()[0], zeno_replay(), atol=1e-5)


def test_loaded_optimizer_asks_for_the_data(tmp_path):
  x, y = training_data()
  model, trained = zeno_model(None, 4)
  trained.fit(x[:BATCH], y[:BATCH], shuffle=False, verbose=0)
  trained.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  with pytest.raises(ValueError, match="set optimizer.validation_loss"):
    loaded.fit(x, y, batch_size=BATCH, verbose=0)
  _, _, batches = held_out()
  loaded.optimizer.validation_loss = ValidationLoss(
    loaded.model, "mse", batches.skip(1)
  )
  loaded.fit(x[BATCH:], y[BATCH:], batch_size=BATCH, shuffle=False, verbose=0)
  np.testing.assert_allclose(
    loaded.model.get_weights()[0], zeno_replay(), atol=1e-5
  )
