import dataclasses
import re

import keras
import numpy as np
import pytest

import baechi_tf
from baechi_tf.keras_placement.carry import carried_devices
from tests import contracts
from tests.tensorflow_setup import context
from tests.tensorflow_setup import tf

X = np.random.default_rng(0).normal(size=(24, 8)).astype("f")
Y = np.random.default_rng(1).integers(0, 3, 24).astype("i4")
BATCH = 16  # the last batch is smaller
layers = keras.layers


@pytest.fixture(scope="module", name="cluster")
def two_cpus():
  return contracts.two_cpus()


def towers(optimizer=None, **compile_args):
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  ends = []
  for _ in range(2):
    x = layers.Dense(8, "relu")(image)
    x = layers.BatchNormalization()(x)
    ends.append(layers.Dropout(0.1)(x))
  model = keras.Model(image, layers.Dense(3)(layers.Concatenate()(ends)))
  schedule = keras.optimizers.schedules.CosineDecay(1e-2, 20)
  model.compile(
    optimizer or keras.optimizers.AdamW(schedule),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    **compile_args,
  )
  return model


def tiny(**compile_args):
  keras.utils.set_random_seed(0)
  model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
  model.compile("sgd", "mse", **compile_args)
  return model


def multi_output():
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  x = layers.Dense(8, "relu")(image)
  outputs = {
    "a": layers.Dense(3, name="a")(x),
    "b": layers.Dense(1, name="b")(x),
  }
  model = keras.Model(image, outputs)
  model.layers[1].trainable = False
  model.compile("adam", {"a": "mse", "b": "mae"}, loss_weights=[1.0, 0.5])
  return model


class OwnStep(keras.Model):
  def train_step(self, data):
    x, y = data
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
    weights = self.trainable_weights
    self.optimizer.apply_gradients(
      zip(tape.gradient(loss, weights), weights, strict=True)
    )
    return {"own": loss}


def own_step():
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  model = OwnStep(image, layers.Dense(3)(layers.Dense(8, "relu")(image)))
  model.compile("rmsprop", "mse")
  return model


def loss_scaling():
  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  x = layers.Dense(8, "relu", dtype="mixed_float16")(image)
  model = keras.Model(image, layers.Dense(3, dtype="float32")(x))
  optimizer = keras.optimizers.LossScaleOptimizer(
    keras.optimizers.Adam(1e-2), initial_scale=2.0**20, dynamic_growth_steps=2
  )
  model.compile(optimizer, "mse")
  return model


def ema(overwrite=None):
  return keras.optimizers.SGD(
    0.05, momentum=0.9, use_ema=True, ema_overwrite_frequency=overwrite
  )


ONE_HOT = np.eye(3, dtype="f")[Y]
WEIGHTS = {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}
SLOW = pytest.mark.slow
# How a model is made, what `fit` is given.
CASES = [
  pytest.param(towers, Y, WEIGHTS, id="class_weight"),
  pytest.param(own_step, ONE_HOT, {}, id="own_step"),
  pytest.param(loss_scaling, ONE_HOT, {}, id="loss_scaling"),
  pytest.param(
    multi_output, {"a": ONE_HOT, "b": X[:, :1]}, {}, id="multi", marks=SLOW
  ),
  pytest.param(
    towers, Y, {"sample_weight": X[:, 0] ** 2}, id="weights", marks=SLOW
  ),
  pytest.param(lambda: towers(ema()), Y, {}, id="ema", marks=SLOW),
  pytest.param(lambda: towers(ema(2)), Y, {}, id="overwrite", marks=SLOW),
  pytest.param(
    lambda: towers(keras.optimizers.Adam(1e-2, global_clipnorm=0.1)),
    Y, {}, id="clipping", marks=SLOW,
  ),
  pytest.param(
    lambda: towers(steps_per_execution=2), Y, {}, id="steps", marks=SLOW
  ),
]  # fmt: skip


def first(targets):
  return tf.nest.map_structure(lambda x: x[:BATCH], targets)


def place(model, cluster, targets, **arguments):
  return baechi_tf.place_keras(
    model,
    cluster,
    (X[:BATCH], first(targets)),
    placer="contiguous",
    estimate=True,
    **arguments,
  )


def outcome(model, targets, fit_args):
  """Trains, evaluates and predicts; returns every number that came of it."""
  seen = []
  history = model.fit(
    X,
    targets,
    batch_size=BATCH,
    epochs=2,
    verbose=0,
    shuffle=False,
    validation_data=(X[:5], tf.nest.map_structure(lambda x: x[:5], targets)),
    callbacks=[
      keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs)
      )
    ],
    **fit_args,
  ).history
  state = [x.numpy() for x in model.variables + model.optimizer.variables]
  return history, seen, model.predict(X, batch_size=BATCH, verbose=0), state


def check_equal(ours, theirs):
  assert ours[:2] == theirs[:2]
  flat = tf.nest.flatten
  for a, b in zip(flat(ours[2:]), flat(theirs[2:]), strict=True):
    np.testing.assert_array_equal(a, b)


def devices_of(variables):
  return {x.value.device for x in variables}


@pytest.mark.parametrize(("make", "targets", "fit_args"), CASES)
def test_placed_model_gives_the_numbers_of_the_model(
  make, targets, fit_args, cluster
):
  expected = outcome(make(), targets, fit_args)
  model = make()
  planned = place(model, cluster, targets)
  assert set(planned.placement.device.tolist()) == {0, 1}
  check_equal(outcome(model, targets, fit_args), expected)


def test_placed_ops_run_and_variables_live_where_planned(cluster):
  model = towers()
  planned = place(model, cluster, Y)
  device_of = planned.placement.as_dict()
  context.enable_run_metadata()
  try:
    model.train_on_batch(X[:BATCH], Y[:BATCH])
    metadata = context.export_run_metadata()
  finally:
    context.disable_run_metadata()
  ran = {}
  for graphs in metadata.function_graphs:
    for partition in graphs.partition_graphs:
      for node in partition.node:
        # What the runtime adds itself has other names.
        before, _, name = node.name.rpartition("placed/")
        if name in device_of and "GroupCross" not in before:
          ran[name] = node.device
  assert len(ran) > len(device_of) / 2
  right = sum(device == device_of[name] for name, device in ran.items())
  assert right >= 0.99 * len(ran)
  variables = model.variables + model.optimizer.variables
  assert devices_of(variables) == set(cluster.device_names)


# Keras 3.15 reads its own variables by np.array when it writes a file.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_files_of_a_placed_model_load_without_devices(cluster, tmp_path):
  model = towers()
  place(model, cluster, Y)
  callbacks = [
    keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras")),
    keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
  ]
  model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=callbacks)
  expected = model.predict(X, verbose=0)
  loaded = keras.models.load_model(tmp_path / "best.keras")
  np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
  for a, b in zip(
    loaded.optimizer.variables, model.optimizer.variables, strict=True
  ):
    np.testing.assert_array_equal(a.numpy(), b.numpy())
  model.export(tmp_path / "exported", verbose=False)
  exported = tf.saved_model.load(str(tmp_path / "exported"))
  np.testing.assert_allclose(exported.serve(X), expected, rtol=1e-5, atol=1e-6)


def test_second_placement_replaces_the_first(cluster):
  expected = outcome(tiny(), ONE_HOT, {})
  model = tiny()
  place(model, cluster, ONE_HOT)
  first_device = dataclasses.replace(cluster, devices=cluster.devices[:1])
  place(model, first_device, ONE_HOT)
  assert devices_of(model.variables) == {cluster.device_names[0]}
  check_equal(outcome(model, ONE_HOT, {}), expected)


def test_model_compiled_anew_is_refused_until_placed_again(cluster):
  model = tiny()
  place(model, cluster, ONE_HOT)
  model.fit(X, ONE_HOT, verbose=0)
  model.evaluate(X, ONE_HOT, verbose=0)
  model.compile("adam", "mae")
  with pytest.raises(ValueError, match="compiled anew after it was placed"):
    model.fit(X, ONE_HOT, verbose=0)  # batches of a shape that it knows
  loss = np.abs(model.predict(X, verbose=0) - ONE_HOT).mean()
  assert model.evaluate(X, ONE_HOT, verbose=0) == pytest.approx(loss)
  place(model, cluster, ONE_HOT)
  model.fit(X, ONE_HOT, verbose=0)


class OwnBatch(OwnStep):
  def train_step(self, data):
    return super().train_step((data["x"], data["y"]))


def test_own_step_takes_a_batch_of_its_own_structure(cluster):
  batches = tf.data.Dataset.from_tensor_slices({"x": X, "y": ONE_HOT}).batch(
    BATCH
  )

  def make():
    keras.utils.set_random_seed(0)
    image = keras.Input((8,))
    model = OwnBatch(image, layers.Dense(3)(image))
    model.compile("adam", "mse")
    return model

  expected, model = make(), make()
  baechi_tf.place_keras(
    model, cluster, next(iter(batches)), estimate=True, placer="m_topo"
  )
  for one in (expected, model):
    one.fit(batches, shuffle=False, verbose=0)
  for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


def test_measured_costs_leave_the_model_as_it_is(cluster):
  model = tiny()
  before = model.get_weights()
  planned = baechi_tf.place_keras(
    model, cluster, (X, ONE_HOT), placer="contiguous"
  )
  assert planned.simulation.makespan_us > 0
  for a, b in zip(before, model.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("make", "batch", "message"),
  [
    (lambda: "model", (X, Y), "must be a keras.Model"),
    (lambda: keras.Sequential([layers.Dense(1)]), (X, Y), "is not compiled"),
    (lambda: tiny(run_eagerly=True), (X, Y), "run_eagerly=False"),
    (lambda: tiny(jit_compile=True), (X, Y), "jit_compile=False"),
    (tiny, [X, Y], r"must be a tuple \(x, y\)"),
    (tiny, (X, Y[:5]), "as many examples in each tensor"),
    (tiny, (X[:0], Y[:0]), "at least one example"),
    (tiny, (X.tolist(), ONE_HOT), "make lists of values NumPy arrays"),
    (tiny, tf.data.Dataset.from_tensors((X, Y)), r"next\(iter\(dataset\)\)"),
    (tiny, (X[:, :3], ONE_HOT), "incompatible with the layer"),
  ],
)
def test_bad_input_is_one_clear_error(make, batch, message, cluster):
  with pytest.raises(ValueError, match=message):
    baechi_tf.place_keras(make(), cluster, batch, estimate=True)


def test_pinned_layers_and_their_variables_are_on_their_devices(cluster):
  here, there = cluster.device_names
  keras.utils.set_random_seed(0)
  block = keras.Sequential(
    [layers.Dense(8, name="dense"), layers.Dense(8, name="dense_1")],
    name="block",
  )
  image = keras.Input((8,))
  model = keras.Model(image, layers.Dense(3, name="end")(block(image)))
  model.compile("adam", "mse")
  pins = {"block/dense_1": there, "dense": here, "compile_loss/": there}
  planned = place(model, cluster, ONE_HOT, pins=pins)
  device_of = planned.placement.as_dict()
  for pin in planned.pins:
    assert pin.num_ops > 3
    held = [x for name, x in device_of.items() if re.search(pin.regex, name)]
    assert set(held) == {pin.device}
  variables = {x.path: x.value.device for x in model.variables}
  assert variables["block/dense/kernel"] == here
  assert variables["block/dense_1/kernel"] == there
  assert np.isfinite(model.train_on_batch(X[:BATCH], ONE_HOT[:BATCH]))
  for pins, message in (
    ({"block": here, "dense": there}, "contradict each other: both hold op"),
    ({"no such": here}, "pin 'no such=.*' matches none of the"),
    ({"end": "GPU"}, "the cluster has no device 'GPU'"),
  ):
    with pytest.raises(ValueError, match=message):
      place(model, cluster, ONE_HOT, pins=pins)


def test_strategy_is_refused(cluster):
  strategy = tf.distribute.OneDeviceStrategy(cluster.device_names[0])
  with strategy.scope():
    model = tiny()
  with pytest.raises(ValueError, match="under OneDeviceStrategy"):
    place(model, cluster, ONE_HOT)


def test_device_that_is_not_here_is_refused(cluster):
  gone = dataclasses.replace(cluster.devices[1], name="/device:GPU:7")
  devices = (cluster.devices[0], gone)
  with pytest.raises(ValueError, match=r"GPU:7.*it has '/device:CPU:0'"):
    place(tiny(), dataclasses.replace(cluster, devices=devices), ONE_HOT)


def test_table_in_a_step_is_refused(cluster):
  text = keras.Input((), dtype="string")
  x = layers.StringLookup(vocabulary=["a", "b"])(text)
  model = keras.Model(text, layers.Dense(1)(layers.Embedding(3, 2)(x)))
  model.compile("sgd", "mse")
  batch = (np.array(["a", "b"]), np.zeros((2, 1), "f"))
  with pytest.raises(ValueError, match="in the tf.data pipeline"):
    baechi_tf.place_keras(model, cluster, batch, estimate=True)


def test_carried_devices_follow_variables_plan_and_neighbours():
  op = contracts.Op
  graph = contracts.make_graph(
    [
      op("input", is_input=True),
      op("variable", group="variable"),
      op("read", group="variable", outputs=(1,)),
      op("known", outputs=(1,)),
      op("after", outputs=(1,)),
      op("constant", outputs=(1,)),
      op("alone"),
    ],
    [("known", 0, "after"), ("constant", 0, "after")],
  )
  planned = {"input": 1, "variable": 0, "known": 1, "of another step": 1}
  device = carried_devices(graph, {"variable": 2}, planned)
  assert device.tolist() == [0, 2, 2, 1, 1, 1, 0]


def test_carried_devices_of_an_op_with_two_variables_apart_are_refused():
  op = contracts.Op
  graph = contracts.make_graph([op("a", group="g"), op("b", group="g")])
  with pytest.raises(ValueError, match="'a' and 'b'"):
    carried_devices(graph, {"a": 0, "b": 1}, {})
