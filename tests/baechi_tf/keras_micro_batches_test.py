import dataclasses

import keras
import numpy as np
import pytest

import baechi_tf
from tests.tensorflow_setup import tf

X = np.random.default_rng(0).normal(size=(19, 8)).astype("f")
Y = np.random.default_rng(1).integers(0, 3, 19).astype("i4")
TOKENS = np.random.default_rng(2).integers(0, 5, (19, 6)).astype("i4")
ONE_HOT = np.eye(3, dtype="f")[Y]
WEIGHTS = X[:, 0] ** 2
BATCH = 8  # the last batch has 3 examples
# Sums in another order: some roundings of float32 on numbers around 1.
ROUNDING = 3e-6
layers = keras.layers
losses = keras.losses


@pytest.fixture(scope="module", name="cluster")
def two_processors():
  cluster = baechi_tf.read_cluster("configs/clusters/2_cpus.toml")
  devices = tuple(
    dataclasses.replace(x, processor=f"processor {i}")
    for i, x in enumerate(cluster.devices)
  )
  return dataclasses.replace(cluster, devices=devices)


def regularized():
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  x = layers.Dense(8, "relu", kernel_regularizer="l2")(image)
  x = layers.Dense(8, "tanh", activity_regularizer="l1")(x)
  model = keras.Model(image, layers.Dense(3)(x))
  model.compile(
    keras.optimizers.Adam(1e-2),
    losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    weighted_metrics=["accuracy"],
  )
  return model


def multi_output():
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  x = layers.Dense(8, "relu")(image)
  outputs = {
    "a": layers.Dense(3, name="a")(x),
    "b": layers.Dense(1, name="b")(x),
    "c": layers.Dense(1, name="c")(x),
  }
  model = keras.Model(image, outputs)
  model.compile(
    keras.optimizers.Adam(1e-2, global_clipnorm=0.5),
    {
      "a": losses.CategoricalCrossentropy(from_logits=True),
      "b": losses.MeanSquaredError(reduction="mean_with_sample_weight"),
      "c": losses.MeanAbsoluteError(reduction="sum"),
    },
    loss_weights=[1.0, 0.5, 0.1],
  )
  return model


def masked():
  """A model of sequences of different lengths, so that slices differ."""
  keras.utils.set_random_seed(0)
  tokens = keras.Input((6,), dtype="int32")
  x = layers.Embedding(5, 4, mask_zero=True)(tokens)
  model = keras.Model(tokens, layers.Dense(3)(layers.Dense(4, "relu")(x)))
  model.compile(
    keras.optimizers.Adam(1e-2),
    losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def loss_scaling():
  keras.utils.set_random_seed(0)
  model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
  optimizer = keras.optimizers.LossScaleOptimizer(
    keras.optimizers.Adam(1e-2), initial_scale=2.0**10, dynamic_growth_steps=2
  )
  model.compile(optimizer, "mse")
  return model


OUTPUTS = {"a": ONE_HOT, "b": X[:, :1], "c": X[:, 1:2]}
SLOW = pytest.mark.slow
# How a model is made, what it is given, and how many micro-batches.
CASES = [
  pytest.param(regularized, X, Y, {"sample_weight": WEIGHTS}, 4, id="l2"),
  pytest.param(multi_output, X, OUTPUTS, {}, 2, id="multi"),
  pytest.param(masked, TOKENS, TOKENS % 3, {}, 4, id="masked"),
  pytest.param(
    multi_output, X, OUTPUTS, {"sample_weight": WEIGHTS}, 4,
    id="multi_weights", marks=SLOW,
  ),
  pytest.param(
    regularized, X, Y, {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}, 2,
    id="class_weight", marks=SLOW,
  ),
  pytest.param(loss_scaling, X, ONE_HOT, {}, 2, id="scale", marks=SLOW),
]  # fmt: skip


def place(model, cluster, x, y, num, **arguments):
  y = tf.nest.map_structure(lambda values: values[:BATCH], y)
  return baechi_tf.place_keras(
    model,
    cluster,
    (x[:BATCH], y),
    micro_batches=num,
    placer="contiguous",
    estimate=True,
    **arguments,
  )


def trained(model, x, y, fit_args):
  """Returns the metrics of each batch, and all variables after training."""
  seen = []
  callback = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: seen.append(logs)
  )
  model.fit(
    x, y, batch_size=BATCH, epochs=2, verbose=0, shuffle=False,
    callbacks=[callback], **fit_args,
  )  # fmt: skip
  return seen, [x.numpy() for x in model.variables + model.optimizer.variables]


def check_close(ours, theirs):
  flat = tf.nest.flatten
  for a, b in zip(flat(ours), flat(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("make", "x", "y", "fit_args", "num"), CASES)
def test_micro_batches_train_as_the_whole_batch(
  make, x, y, fit_args, num, cluster
):
  expected = trained(make(), x, y, fit_args)
  model = make()
  planned = place(model, cluster, x, y, num)
  assert set(planned.placement.device.tolist()) == {0, 1}
  assert planned.placement.order is not None
  check_close(trained(model, x, y, fit_args), expected)
  check_close(
    model.evaluate(x, y, verbose=0, return_dict=True),
    make_like(make, model).evaluate(x, y, verbose=0, return_dict=True),
  )


def make_like(make, model):
  copy = make()
  copy.set_weights(model.get_weights())
  return copy
