import keras
import numpy as np
import pytest

import baechi_tf
from tests.tensorflow_setup import tf

layers = keras.layers
X = np.random.default_rng(0).normal(size=(12, 4)).astype("f")
Y = np.random.default_rng(1).integers(0, 3, 12).astype("i4")
WEIGHTS = np.linspace(0.5, 1.5, 12).astype("f")


def classifier():
  keras.utils.set_random_seed(0)
  x = keras.Input((4,))
  y = layers.BatchNormalization()(layers.Dense(5, "relu")(x))
  model = keras.Model(x, layers.Dense(3)(y))
  model.compile(
    keras.optimizers.Adam(0.01),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def batches():
  return [slice(0, 8), slice(8, 12), slice(0, 12)]


def train(function):
  return [
    {
      k: float(v)
      for k, v in function(
        x=tf.constant(X[i]),
        y=tf.constant(Y[i]),
        sample_weight=tf.constant(WEIGHTS[i]),
      ).items()
    }
    for i in batches()
  ]


@pytest.fixture(scope="module", name="expected")
def trained_by_keras():
  """What Keras returns for each batch, and what the model then predicts."""
  model = classifier()
  logs = [
    model.train_on_batch(X[i], Y[i], WEIGHTS[i], return_dict=True)
    for i in batches()
    if model.reset_metrics() is None
  ]
  tested = model.evaluate(X, Y, verbose=0, return_dict=True)
  return logs, tested, model.predict(X, verbose=0)


@pytest.fixture(scope="module", name="exported")
def exported_classifier(tmp_path_factory):
  path = tmp_path_factory.mktemp("export") / "model"
  model = classifier()
  before = model.get_weights()
  baechi_tf.export_keras(model, path, (X[:8], Y[:8], WEIGHTS[:8]))
  for a, b in zip(before, model.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
  return path


def check(loaded, expected):
  logs, tested, predicted = expected
  for ours, theirs in zip(train(loaded.signatures["train"]), logs, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-5)
  evaluated = loaded.signatures["evaluate"](
    x=tf.constant(X), y=tf.constant(Y), sample_weight=tf.ones(12)
  )
  assert {k: float(v) for k, v in evaluated.items()} == pytest.approx(
    tested, rel=1e-5
  )
  (outputs,) = loaded.signatures["serving_default"](x=tf.constant(X)).values()
  np.testing.assert_allclose(outputs, predicted, rtol=1e-4, atol=1e-5)


def test_signatures_train_evaluate_and_predict_as_keras_does(
  exported, expected
):
  check(tf.saved_model.load(exported), expected)


def test_exported_step_is_placed_and_trains_the_same(
  exported, expected, tmp_path
):
  cluster = baechi_tf.read_cluster("configs/clusters/2_cpus.toml")
  baechi_tf.place(
    exported,
    tmp_path / "placed",
    cluster,
    signature="train",
    estimate=True,
    batch_size=8,
    placer="contiguous",
  )
  check(baechi_tf.load(tmp_path / "placed"), expected)


def test_parts_of_a_structure_are_named_after_their_place(tmp_path):
  inputs = {
    "image": keras.Input((4,), name="image"),
    "size": keras.Input((1,), name="size"),
  }
  x = layers.Concatenate()([inputs["image"], inputs["size"]])
  outputs = {"a": layers.Dense(1)(x), "b": layers.Dense(2)(x)}
  model = keras.Model(inputs, outputs)
  model.compile("sgd", {"a": "mse", "b": "mse"})
  batch = (
    {"image": X, "size": X[:, :1]},
    {"a": X[:, :1], "b": X[:, :2]},
  )
  baechi_tf.export_keras(model, tmp_path / "model", batch)
  signatures = tf.saved_model.load(tmp_path / "model").signatures
  _, given = signatures["train"].structured_input_signature
  assert set(given) == {"x_image", "x_size", "y_a", "y_b"}
  assert set(signatures["serving_default"].structured_outputs) == {"a", "b"}
  assert "loss" in signatures["train"].structured_outputs


def with_table():
  text = keras.Input((), dtype="string")
  x = layers.StringLookup(vocabulary=["a", "b"])(text)
  model = keras.Model(text, layers.Dense(1)(layers.Embedding(3, 2)(x)))
  model.compile("sgd", "mse")
  return model


@pytest.mark.parametrize(
  ("make", "batch", "message"),
  [
    (lambda: keras.Sequential([layers.Dense(1)]), (X, Y), "is not compiled"),
    (lambda: "model", (X, Y), "must be a keras.Model"),
    (classifier, (X, Y[:5]), "as many examples in each tensor"),
    (
      with_table,
      (np.array(["a", "b"]), np.zeros((2, 1), "f")),
      "in the tf.data pipeline",
    ),
  ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(
  make, batch, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    baechi_tf.export_keras(make(), tmp_path / "model", batch)
  assert not list(tmp_path.iterdir())


def test_path_that_is_there_is_kept(tmp_path):
  (tmp_path / "model").write_text("mine")
  with pytest.raises(ValueError, match="exists; give overwrite=True"):
    baechi_tf.export_keras(classifier(), tmp_path / "model", (X, Y))
  assert (tmp_path / "model").read_text() == "mine"
