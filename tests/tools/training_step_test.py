"""Exported training steps train, and have the graphs that we plan."""

import numpy as np
import pytest

from tests.tensorflow_setup import tf
from tools import benchmark_models
from tools import training_step

MODELS = [
  pytest.param("inception", marks=pytest.mark.slow),
  pytest.param("gnmt", marks=pytest.mark.slow),
  pytest.param("transformer", marks=pytest.mark.slow),
]


def _step(model, optimizer="fused_adam", **overrides):
  sizes = benchmark_models.sizes_for(model, "tiny", **overrides)
  benchmark = benchmark_models.build(sizes)
  return benchmark, training_step.TrainingStep(benchmark, optimizer)


def _losses(train, batch, num_steps):
  tensors = {name: tf.constant(value) for name, value in batch.items()}
  return [float(train(**tensors)["loss"]) for _ in range(num_steps)]


@pytest.mark.parametrize("model", MODELS)
def test_saved_step_trains_as_the_live_one(model, tmp_path):
  benchmark, step = _step(model)
  training_step.export(step, tmp_path / "model")
  batch = benchmark.example_batch(seed=1)
  live = _losses(step.train.get_concrete_function(), batch, 3)
  saved = tf.saved_model.load(tmp_path / "model").signatures["train"]
  assert 0 < live[0] < 2 * np.log(benchmark.num_labels)  # log: a blind guess
  assert live[2] < live[1] < live[0]
  # The same kernels in the same order; only threads differ in their sums.
  np.testing.assert_allclose(_losses(saved, batch, 3), live, rtol=1e-4)


def test_fused_adam_updates_as_keras_adam():
  def losses(optimizer):
    benchmark, step = _step("transformer", optimizer, layers=1)
    batch = benchmark.example_batch(seed=1)
    return _losses(step.train.get_concrete_function(), batch, 3)

  fused, keras = losses("fused_adam"), losses("adam")
  np.testing.assert_allclose(fused, keras, rtol=1e-4)


def test_fused_adam_runs_one_op_a_variable():
  _, step = _step("transformer", layers=1)
  nodes = step.train.get_concrete_function().graph.as_graph_def().node
  updates = [node for node in nodes if node.op == "ResourceApplyAdam"]
  assert len(updates) == len(step.optimizer.trained)


def test_width_leaves_the_number_of_nodes():
  counts = []
  for width in (4, 8):
    _, step = _step("transformer", layers=1, width=width)
    graph = step.train.get_concrete_function().graph.as_graph_def()
    counts.append(len(graph.node))
  assert counts[0] == counts[1]


def test_weights_depend_on_the_seed_alone():
  sizes = benchmark_models.sizes_for("transformer", "tiny", layers=1)

  def weights(seed):
    step = training_step.TrainingStep(benchmark_models.build(sizes, seed))
    return np.concatenate([np.ravel(x) for x in step.model_variables])

  first, again, other = weights(0), weights(0), weights(1)
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def test_serving_signature_returns_logits(tmp_path):
  benchmark, step = _step("transformer", layers=1)
  training_step.export(step, tmp_path / "model")
  signatures = tf.saved_model.load(tmp_path / "model").signatures
  batch = benchmark.example_batch(seed=1)
  inputs = {x.name: tf.constant(batch[x.name]) for x in benchmark.inputs}
  logits = signatures["serving_default"](**inputs)["logits"]
  assert logits.shape == (*benchmark.labels.shape, benchmark.num_labels)


def test_export_keeps_an_existing_directory(tmp_path):
  with pytest.raises(ValueError, match="exists already"):
    training_step.export(None, tmp_path)


@pytest.mark.parametrize(
  ("arguments", "overrides", "message"),
  [
    (("resnet", "tiny"), {}, "no model 'resnet'; models are inception"),
    (("gnmt", "huge"), {}, "no preset 'huge'; presets are full, tiny"),
    (("inception", "tiny"), {"layers": 2}, "inception has no size 'layers'"),
    (("gnmt", "tiny"), {"batch": 0}, "batch=0 must be at least 1"),
    (("transformer", "tiny"), {"width": 9}, "width=9 must divide by heads=2"),
  ],
)
def test_bad_sizes_are_refused(arguments, overrides, message):
  with pytest.raises(ValueError, match=message):
    benchmark_models.sizes_for(*arguments, **overrides)


def test_unknown_optimizer_is_refused():
  sizes = benchmark_models.sizes_for("transformer", "tiny", layers=1)
  with pytest.raises(ValueError, match="no optimizer 'adagrad'"):
    training_step.TrainingStep(benchmark_models.build(sizes), "adagrad")
