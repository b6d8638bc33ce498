import keras
import numpy as np
import pytest

from baechi_tf.graph_item import read_item
from baechi_tf.python_item import item_from_function
from baechi_tf.python_item import item_from_keras
from tests import models
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

# The same ops; TensorFlow's optimiser may reorder float32 sums.
RTOL = 1e-5


def run_steps(item, batches):
  """Runs the item once per batch, given by position; returns the outputs."""
  with session(item.graph_def) as running:
    item.initialize(running)
    return [
      running.run(
        [list(item.fetches), list(item.targets)],
        {
          feed.tensor: value
          for feed, value in zip(item.feeds, batch, strict=True)
        },
      )[0]
      for batch in batches
    ]


def test_item_from_function_trains_as_the_function_does():
  model = models.Mlp()
  item = item_from_function(model.train_step)
  assert [feed.name for feed in item.feeds] == ["x", "y"]
  batches = [models.mlp_batch(seed) for seed in range(3)]
  losses = run_steps(item, [(x["x"], x["y"]) for x in batches])
  expected = [
    [model.train_step(**{k: tf.constant(v) for k, v in x.items()})["loss"]]
    for x in batches
  ]
  np.testing.assert_allclose(losses, expected, rtol=RTOL)


def test_item_from_function_takes_values_at_initialisation():
  variable = tf.Variable(1.0)
  item = item_from_function(tf.function(lambda x: x + variable), 2.0)
  variable.assign(10.0)
  assert run_steps(item, [()]) == [[12.0]]


def test_item_from_function_concrete_function_with_a_captured_constant():
  constant = tf.constant([1.0, 2.0])

  @tf.function
  def scale(x):
    return x * constant

  concrete = scale.get_concrete_function(tf.TensorSpec([2]))
  item = item_from_function(concrete)
  outputs = run_steps(item, [(np.float32([3, 4]),)])
  np.testing.assert_array_equal(outputs[0][0], [3, 8])


def test_item_from_function_runs_effects_without_outputs():
  variable = tf.Variable(1.0)

  @tf.function
  def add(x):
    variable.assign_add(x)

  item = item_from_function(add, tf.TensorSpec([]))
  assert item.fetches == ()
  assert len(item.targets) == 1
  with session(item.graph_def) as running:
    item.initialize(running)
    running.run(list(item.targets), {item.feeds[0].tensor: 2.0})
    (value,) = models.read_variables(running).values()
  assert value == 3.0


def test_item_from_function_that_does_nothing_is_rejected():
  with pytest.raises(ValueError, match="returns nothing and has no effect"):
    item_from_function(tf.function(lambda: None))


def test_item_from_function_with_a_table_is_rejected():
  table = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1
  )
  lookup = tf.function(table.lookup)
  with pytest.raises(ValueError, match="neither a variable nor a constant"):
    item_from_function(lookup, tf.TensorSpec([None], tf.string))


def test_item_from_function_wrong_arguments_are_rejected():
  with pytest.raises(ValueError, match="cannot be traced"):
    item_from_function(models.Mlp().train_step, tf.TensorSpec([1, 1, 1]))


def test_item_from_function_plain_python_is_rejected():
  with pytest.raises(ValueError, match="is no tf.function"):
    item_from_function(lambda x: x, 1.0)


def small_model(optimizer):
  keras.utils.set_random_seed(0)
  model = keras.Sequential(
    [
      keras.Input((models.FEATURES,)),
      keras.layers.Dense(8, "relu", kernel_regularizer="l2"),
      keras.layers.BatchNormalization(),
      keras.layers.Dense(models.CLASSES),
    ]
  )
  model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
  return model


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_item_from_keras_trains_as_fit_does(optimizer):
  model = small_model(optimizer)
  batches = [tuple(models.mlp_batch(seed).values()) for seed in range(3)]
  item = item_from_keras(model, *batches[0])
  with session(item.graph_def) as running:
    item.initialize(running)
    losses = [
      running.run(
        list(item.fetches),
        {
          feed.tensor: value
          for feed, value in zip(item.feeds, batch, strict=True)
        },
      )[0]
      for batch in batches
    ]
    values = models.read_variables(running)
  other = small_model(optimizer)
  expected = [float(other.train_on_batch(*batch)) for batch in batches]
  np.testing.assert_allclose(losses, expected, rtol=RTOL)
  theirs = {
    id(ours.value): their.numpy()
    for ours, their in zip(
      model.variables + model.optimizer.variables,
      other.variables + other.optimizer.variables,
      strict=True,
    )
  }
  captured = item.initializer.variables
  assert len(captured) >= len(model.variables)
  for name, variable in captured.items():
    # Sums that cancel to almost nothing are only as good as their terms.
    np.testing.assert_allclose(
      values[name], theirs[id(variable)], rtol=RTOL, atol=1e-6
    )


def test_item_from_keras_plans_the_whole_step():
  model = small_model("adam")
  item = item_from_keras(model, *models.mlp_batch(0).values())
  nodes = {node.name: node for node in item.graph_def.node}
  ops = [nodes[name].op for name in item.op_names]
  # Two layers forward; backward both weights and the first layer's output.
  assert ops.count("MatMul") == 5
  # 2 kernels, 2 biases, BatchNorm's 4, Adam's 2 slots for each of the 6 that
  # train, its iteration and learning rate.
  assert ops.count("VarHandleOp") == 2 + 2 + 4 + 2 * 6 + 2


def test_item_from_keras_uncompiled_model_is_rejected():
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
  with pytest.raises(ValueError, match="is not compiled"):
    item_from_keras(model, np.ones((1, 4)), np.ones((1, 2)))


def test_saved_keras_step_starts_from_the_saved_variables(tmp_path):
  batches = [models.mlp_batch(seed) for seed in range(2)]
  step = tf.Module()
  step.model = small_model("adam")
  step.optimizer = step.model.optimizer
  variables = step.model.trainable_variables
  step.optimizer.build(variables)

  @tf.function(
    input_signature=[
      tf.TensorSpec(x.shape, x.dtype, name) for name, x in batches[0].items()
    ]
  )
  def train(x, y):
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean((step.model(x, training=True) - y) ** 2)
    step.optimizer.apply(tape.gradient(loss, variables), variables)
    return {"loss": loss}

  path = tmp_path / "model"
  tf.saved_model.save(step, str(path), signatures={"train": train})
  loaded = tf.saved_model.load(str(path)).signatures["train"]
  expected = [
    loaded(**{k: tf.constant(x) for k, x in batch.items()})["loss"]
    for batch in batches
  ]
  item = read_item(path, signature="train")
  with session(item.graph_def) as running:
    item.initialize(running)
    losses = [
      running.run(
        item.fetches[0], {x.tensor: batch[x.name] for x in item.feeds}
      )
      for batch in batches
    ]
  np.testing.assert_allclose(losses, expected, rtol=RTOL)
