import dataclasses
import gc

import keras
import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import DeviceType
from baechi_tf.costs import analytical
from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.costs.shapes import item_shapes
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.python_item import item_from_function
from tests import models
from tests.tensorflow_setup import tf

v1 = tf.compat.v1

# 80 multiprocessors x 64 cores x 2 operations (a multiply-add) x 1.5 GHz.
GPU = DeviceType(
  kind="GPU",
  cores=80,
  frequency_mhz=1500,
  bytes_per_us=900_000,
  architecture="7.0",
  launch_us=4,
)
GPU_FLOPS_PER_US = 80 * 64 * 2 * 1500
CPU = DeviceType(
  kind="CPU",
  cores=2,
  frequency_mhz=2000,
  bytes_per_us=10_000,
  flops_per_cycle=32,
  launch_us=0.5,
)


def item_of(build, *feeds):
  """Returns an item of the tensors that `build` makes of the feeds."""
  v1.enable_control_flow_v2()
  with tf.Graph().as_default() as graph:
    placeholders = [
      v1.placeholder(feed.dtype, feed.shape, name=feed.name) for feed in feeds
    ]
    fetched = build(*placeholders)
    graph_def = graph.as_graph_def()
  return GraphItem(
    graph_def=graph_def,
    feeds=feeds,
    fetches=(fetched.name,),
    targets=(),
    op_names=tuple(node.name for node in graph_def.node),
    paths={},
    source="a small graph",
    initializer=lambda session: None,
  )


def feed(name, *shape, dtype=tf.float32):
  return Feed(name, f"{name}:0", dtype, shape)


def estimated(item, device_type, batch_size=None):
  shapes = inputs.concrete_shapes(item, batch_size)
  return analytical.estimate(item, device_type, shapes)


def test_matrix_product_costs_its_operations_and_bytes():
  item = item_of(
    lambda a, b: tf.matmul(a, b, name="c"),
    feed("a", 2048, 1024),
    feed("b", 1024, 4096),
  )
  flops = 2 * 2048 * 1024 * 4096
  num_bytes = 4 * (2048 * 1024 + 1024 * 4096 + 2048 * 4096)
  gpu = estimated(item, GPU)["c"]
  # Within the 0.01 us and 0.1 % that times and rates are rounded to.
  assert gpu.compute_time_us == pytest.approx(
    flops / GPU_FLOPS_PER_US + num_bytes / 900_000, rel=2e-3
  )
  cpu = estimated(item, CPU)["c"]
  assert cpu.compute_time_us == pytest.approx(
    flops / (2 * 2000 * 32) + num_bytes / 10_000, rel=2e-3
  )
  assert gpu.output_bytes == cpu.output_bytes == (4 * 2048 * 4096,)


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
def test_flops_per_cycle_sets_the_peak(kind):
  item = item_of(lambda a: tf.matmul(a, a, name="c"), feed("a", 4096, 4096))
  slow = dataclasses.replace(
    GPU, kind=kind, flops_per_cycle=256, bytes_per_us=1e9
  )
  time_us = estimated(item, slow)["c"].compute_time_us
  assert time_us == pytest.approx(2 * 4096**3 / (80 * 1500 * 256), rel=2e-3)


def test_convolution_gradients_know_their_shapes():
  def build(x, w):
    y = tf.nn.conv2d(x, w, 1, "SAME")
    return tf.add_n(
      [tf.reduce_sum(g) for g in tf.gradients(y, [x, w], name="g")]
    )

  item = item_of(build, feed("x", 8, 56, 56, 64), feed("w", 3, 3, 64, 128))
  costs = estimated(item, GPU)
  types = {node.op: node.name for node in item.graph_def.node}
  flops = 2 * 8 * 56 * 56 * 9 * 64 * 128
  for op in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
    compute = costs[types[op]].compute_time_us
    # The bytes add less than a tenth.
    assert 1 < compute / (flops / GPU_FLOPS_PER_US) < 1.3, op


def test_small_op_costs_a_launch():
  item = item_of(lambda a: tf.nn.relu(a, name="r"), feed("a", 3))
  assert estimated(item, GPU)["r"].compute_time_us == 4
  assert estimated(item, CPU)["r"].compute_time_us == 0.5


def test_op_without_kernel_is_free_on_a_gpu_only():
  item = item_of(lambda a: tf.reshape(a, [-1], name="r"), feed("a", 1000, 1000))
  assert estimated(item, GPU)["r"].compute_time_us == 0
  assert estimated(item, CPU)["r"].compute_time_us == 0.5


def test_update_moves_the_variable_and_its_slots():
  def build(gradient):
    handles = [
      v1.get_variable(n, [1000, 1000], use_resource=True).handle for n in "vm"
    ]
    scalar = tf.constant(0.1)
    op = tf.raw_ops.ResourceApplyMomentum(
      var=handles[0],
      accum=handles[1],
      lr=scalar,
      grad=gradient,
      momentum=scalar,
      name="update",
    )
    with tf.control_dependencies([op]):
      return tf.constant(0.0, name="done")

  costs = estimated(item_of(build, feed("g", 1000, 1000)), CPU)
  size = 4 * 1000 * 1000
  # Reads the gradient and two scalars, reads and writes both variables.
  expected = (size + 8 + 2 * 2 * size) / 10_000
  assert costs["update"].compute_time_us == pytest.approx(expected)
  assert costs["v"].persistent_bytes == size
  assert costs["update"].persistent_bytes == 0


def test_strings_are_estimated_by_their_bytes():
  item = item_of(
    lambda words: tf.strings.join([words, words], name="j"),
    feed("words", 100_000, dtype=tf.string),
  )
  cost = estimated(item, CPU)["j"]
  assert cost.output_bytes == (16 * 100_000,)
  assert cost.compute_time_us == pytest.approx(3 * 16 * 100_000 / 10_000)


def test_equal_ops_are_estimated_once(monkeypatch):
  counts = []
  real = analytical.performances

  def counting(ops, cluster):
    counts.append(len(ops))
    return real(ops, cluster)

  monkeypatch.setattr(analytical, "performances", counting)

  def build(a):
    for _ in range(400):
      a = tf.nn.relu(tf.matmul(a, a))
    return a

  item = item_of(build, feed("a", 32, 32))
  costs = estimated(item, GPU)
  assert len(costs) == 801
  assert sum(counts) == 2
  assert len({x.compute_time_us for x in costs.values()}) <= 3


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
  path = tmp_path_factory.mktemp("models") / "mlp"
  return read_item(models.save_mlp(path), signature="train")


def test_output_bytes_of_a_train_step_equal_the_measured_ones(mlp):
  values = inputs.synthesize_inputs(mlp, batch_size=16)
  measurement = measured.measure(mlp, values, num_steps=1, warmup=0)
  costs = estimated(mlp, CPU, batch_size=16)
  assert tuple(costs) == mlp.op_names
  inference = item_shapes(mlp, inputs.concrete_shapes(mlp, 16))
  shapes, assumed = inference.shapes, inference.unknown
  compared = 0
  for name, cost in measurement.items():
    for i, num_bytes in enumerate(cost.output_bytes):
      if shapes[name][i].dtype != tf.resource and f"{name}:{i}" not in assumed:
        assert costs[name].output_bytes[i] == num_bytes, f"{name}:{i}"
        compared += 1
  assert compared > 50


def test_missing_input_shape_names_the_input(mlp):
  with pytest.raises(ValueError, match="input 'y' has no shape"):
    analytical.estimate(mlp, CPU, {"x": (4, models.FEATURES)})


def test_data_dependent_shape_is_counted_and_assumed():
  item = item_of(lambda a: tf.boolean_mask(a, a > 0, name="m"), feed("a", 100))
  unknown = item_shapes(item, {"a": (100,)}).unknown
  fetched = item.fetches[0]
  assert fetched in unknown
  assert "a:0" not in unknown
  name = fetched.partition(":")[0]
  assert estimated(item, CPU)[name].output_bytes == (4,)


def test_failing_shape_functions_are_counted_and_their_outputs_assumed():
  def build(a):
    failing = [a @ tf.ones([7, 2]) for _ in range(3)]
    return tf.nn.relu(tf.add_n(failing, name="sum"), name="r")

  item = item_of(build, feed("a", None, None))
  inference = item_shapes(item, {"a": (4, 5)})
  products = [x.name for x in item.graph_def.node if x.op == "MatMul"]
  assert list(inference.failures) == products
  assert inference.failures[products[0]] == (
    "Dimensions must be equal, but are 5 and 7"
  )
  assert inference.shapes["r"][0].dims == (None, None)
  cluster = Cluster([Device("d", "CPU", 1000)], device_types={"CPU": CPU})
  estimates, notes = analytical.estimate_missing(
    item, cluster, {}, input_shapes={"a": (4, 5)}
  )
  assert estimates["CPU"].keys() == set(item.op_names)
  assert (
    f"fails on 3 ops, whose outputs count as unknown, first {products[0]}"
    in (notes[1])
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda node: node.input.pop(), "'c': a MatMul does not take 1 inputs"),
    (lambda node: node.input.append("a"), "does not take 3 inputs"),
    (
      lambda node: node.attr["T"].CopyFrom(v1.AttrValue(type=9)),
      "'c': Inconsistent",
    ),
  ],
)
def test_node_that_fails_whatever_its_shapes_is_refused(change, message):
  item = item_of(lambda a: tf.matmul(a, a, name="c"), feed("a", 2, 2))
  change(next(node for node in item.graph_def.node if node.name == "c"))
  with pytest.raises(ValueError, match=message):
    item_shapes(item, {"a": (2, 2)})


def test_masked_recurrent_training_step_has_shapes_in_every_body():
  layers = [
    keras.layers.Embedding(9, 3, mask_zero=True),
    keras.layers.GRU(8, return_sequences=True),
    keras.layers.LSTM(8),
  ]
  model = keras.Sequential(layers)
  model.build((None, 5))

  def train(x):
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(model(x, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(
      model.trainable_variables, gradients, strict=True
    ):
      variable.value.assign_sub(0.1 * tf.convert_to_tensor(gradient))
    return loss

  spec = tf.TensorSpec([None, 5], tf.int32, name="x")
  item = item_from_function(tf.function(train), spec)
  cluster = Cluster([Device("d", "CPU", 1000)], device_types={"CPU": CPU})
  estimates, notes = analytical.estimate_missing(item, cluster, {}, 4)
  assert not [x for x in notes if "inference fails" in x]
  loops = [x for x in estimates["CPU"].values() if "While" in x.op_type]
  # Two layers, forward and back: in each of 5 rounds at least a product.
  assert len(loops) == 4
  assert all(x.compute_time_us > 5 * CPU.launch_us for x in loops)


def counting_loop(rounds, **options):
  def build(a):
    return tf.while_loop(
      lambda i, x: i < rounds,
      lambda i, x: (i + 2, tf.matmul(x, x)),
      [0, a],
      name="loop",
      **options,
    )[1]

  return build


A = feed("a", 1024, 1024)
PRODUCT_US = (2 * 1024**3) / GPU_FLOPS_PER_US + 3 * 4 * 1024**2 / 900_000


@pytest.mark.parametrize(
  ("rounds", "options", "expected"),
  [
    (20, {}, 10),
    (21, {}, 11),
    (0, {}, 0),
    (20, {"maximum_iterations": 4}, 4),
  ],
)
def test_loop_costs_its_rounds(rounds, options, expected):
  item = item_of(counting_loop(rounds, **options), A)
  cost = estimated(item, GPU)["loop"]
  # Each round has the product and some small ops of one launch each.
  least = expected * PRODUCT_US
  assert least <= cost.compute_time_us
  assert cost.compute_time_us <= least * 1.002 + 10 * 4 * (expected + 1)
  assert cost.temporary_bytes == 3 * 4 * 1024**2


def test_loop_of_unknown_rounds_costs_one():
  def build(a):
    limit = tf.cast(tf.reduce_sum(a), tf.int32)
    return counting_loop(limit)(a)

  cost = estimated(item_of(build, A), GPU)["loop"]
  assert PRODUCT_US <= cost.compute_time_us < 2 * PRODUCT_US


def test_gradient_loop_runs_as_often_as_its_loop():
  def build(a):
    y = counting_loop(20)(a)
    return tf.gradients(y, a, name="g")[0]

  item = item_of(build, A)
  costs = estimated(item, GPU)
  loops = [x for x in costs.values() if "While" in x.op_type]
  assert len(loops) == 2
  # The gradient of a product is two products.
  assert max(x.compute_time_us for x in loops) >= 2 * 10 * PRODUCT_US * 0.99


def test_shapes_behind_a_loop_over_an_unknown_batch_are_known():
  def build(a):
    x = tf.while_loop(
      lambda i, x: i < 3, lambda i, x: (i + 1, x * 2.0), [0, a], name="loop"
    )[1]
    return tf.identity(x, name="after")

  item = item_of(build, feed("a", None, 7))
  assert estimated(item, GPU, batch_size=5)["after"].output_bytes == (140,)


def test_branch_costs_its_dearest_side():
  def build(a):
    return tf.cond(
      tf.reduce_sum(a) > 0,
      lambda: tf.matmul(tf.matmul(a, a), a),
      lambda: a,
      name="cond",
    )

  item = item_of(build, A)
  (branch,) = (x for x in estimated(item, GPU).values() if "If" in x.op_type)
  assert branch.compute_time_us == pytest.approx(2 * PRODUCT_US, rel=0.05)


def test_loop_of_a_saved_model_reads_its_variable(tmp_path):
  item = read_item(models.save_loop(tmp_path / "loop"))
  # The process forgets the model's functions with the model.
  gc.collect()
  costs = estimated(item, CPU)
  assert tuple(costs) == item.op_names
  (loop,) = (x for x in costs.values() if x.op_type == "While")
  # Three rounds of at least a product, a doubling and a count.
  assert loop.compute_time_us >= 3 * 3 * 0.5
  assert np.isfinite(loop.compute_time_us)
