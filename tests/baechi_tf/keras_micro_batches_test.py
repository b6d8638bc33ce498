import re

import keras
import numpy as np
import pytest

import baechi_tf
from baechi_tf.keras_placement.batch import batch_specs
from baechi_tf.keras_placement.step_graph import trace_step
from baechi_tf.keras_placement.variables import variables_by_handle
from tests import contracts
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
def two_cpus():
  return contracts.two_cpus()


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
  pytest.param(
    regularized, X, Y, {"sample_weight": WEIGHTS}, 4, id="l2", marks=SLOW
  ),
  pytest.param(multi_output, X, OUTPUTS, {}, 2, id="multi"),
  pytest.param(masked, TOKENS, TOKENS % 3, {}, 4, id="masked", marks=SLOW),
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
  """Returns the metrics of each batch and of all, and all variables."""
  seen = []
  callback = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: seen.append(logs)
  )
  model.fit(
    x, y, batch_size=BATCH, epochs=2, verbose=0, shuffle=False,
    callbacks=[callback], **fit_args,
  )  # fmt: skip
  seen.append(model.evaluate(x, y, verbose=0, return_dict=True))
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


@SLOW
def test_small_last_batches_count_by_their_examples(cluster):
  model, expected = regularized(), regularized()
  place(model, cluster, X, Y, 4)
  for rows in (3, 8, 1):  # fewer than there are micro-batches too
    ours = model.train_on_batch(X[:rows], Y[:rows], return_dict=True)
    theirs = expected.train_on_batch(X[:rows], Y[:rows], return_dict=True)
    check_close(ours, theirs)


@SLOW
def test_auto_takes_the_fastest_and_says_what_each_takes(cluster):
  model = regularized()
  planned = place(model, cluster, X, Y, "auto")
  (note,) = [x for x in planned.notes if "the predicted step" in x]
  shown = [float(x) for x in re.findall(r"\d: ([\d.]+) ms", note)]
  assert len(shown) == 4  # 1, 2, 4 and 8 divide the batch
  assert planned.simulation.makespan_us / 1000 == pytest.approx(
    min(shown), abs=0.005
  )
  model.fit(X, Y, batch_size=BATCH, verbose=0)


def test_batch_normalization_is_noted(cluster):
  model = keras.Sequential(
    [keras.Input((8,)), layers.BatchNormalization(), layers.Dense(3)]
  )
  model.compile("sgd", "mse")
  planned = place(model, cluster, X, ONE_HOT, 2)
  assert any("BatchNormalization" in x for x in planned.notes)
  model.fit(X, ONE_HOT, batch_size=BATCH, verbose=0)


class OwnStep(keras.Model):
  def train_step(self, data):
    return super().train_step(data)


class OwnLoss(keras.Model):
  def compute_loss(self, *args, **kwargs):
    return super().compute_loss(*args, **kwargs)


class AddsLoss(layers.Layer):
  def call(self, x):
    self.add_loss(keras.ops.mean(x))
    return x


def single(kind=keras.Model, loss="mse", layer=None):
  image = keras.Input((8,))
  x = layers.Dense(3)(image)
  model = kind(image, layer(x) if layer else x)
  model.compile("sgd", loss)
  return model


def stateful():
  image = keras.Input(batch_shape=(8, 2, 4))
  model = keras.Model(image, layers.SimpleRNN(3, stateful=True)(image))
  model.compile("sgd", "mse")
  return model


def batch_mean(y_true, y_pred):
  return keras.ops.mean((y_true - y_pred) ** 2)


@pytest.mark.parametrize(
  ("make", "num", "message"),
  [
    (single, 0, "a whole number from 1"),
    (single, 2.0, "a whole number from 1"),
    (single, "many", "a whole number from 1"),
    (single, 3, "does not divide the 8 examples.*1, 2, 4, 8"),
    (lambda: single(OwnStep), 2, "train_step of its own"),
    (lambda: single(OwnLoss), 2, "compute_loss of its own"),
    (lambda: single(loss=batch_mean), 2, "one number for a batch"),
    (
      lambda: single(loss=losses.MeanSquaredError(reduction=None)),
      2,
      "reduction=None",
    ),
    (lambda: single(layer=AddsLoss()), 2, "adds a loss of its own"),
    (stateful, 2, "stateful=True"),
  ],
)
def test_bad_input_is_one_clear_error(make, num, message, cluster):
  with pytest.raises(ValueError, match=message):
    place(make(), cluster, X, ONE_HOT, num)


def test_a_traced_step_has_no_op_that_an_order_could_not_delay():
  model = single()
  specs = batch_specs((tf.constant(X), tf.constant(ONE_HOT)), any_rows=True)
  step = trace_step(model.train_step, specs, lambda: variables_by_handle(model))
  names = {node.name for node in step.graph_def.node}
  assert names == set(step.item.op_names)
