import numpy as np
import pytest

from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from tests import models
from tests.tensorflow_setup import tf


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
  path = tmp_path_factory.mktemp("models") / "mlp"
  item = read_item(models.save_mlp(path), signature="train")
  values = inputs.synthesize_inputs(item, batch_size=64)
  seen = []
  costs = measured.measure(
    item,
    values,
    num_steps=3,
    warmup=1,
    progress=lambda done, total: seen.append((done, total)),
  )
  return item, costs, seen


def test_measure_sees_every_planned_op_in_order(mlp):
  item, costs, _ = mlp
  assert tuple(costs) == item.op_names
  types = {node.name: node.op for node in item.graph_def.node}
  assert all(cost.op_type == types[name] for name, cost in costs.items())
  assert all(cost.compute_time_us >= 0 for cost in costs.values())
  assert sum(cost.compute_time_us for cost in costs.values()) > 0


def test_measure_tells_its_progress(mlp):
  assert mlp[2] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_measure_output_bytes_are_shapes_times_type(mlp):
  item, costs, _ = mlp
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(item.graph_def, name="")
  batch = 64
  checked = 0
  for op in graph.get_operations():
    if op.name not in costs:
      continue
    for i, output in enumerate(op.outputs):
      shape = output.shape
      if not output.dtype.is_floating or shape.rank is None:
        continue
      if not shape[1:].is_fully_defined():
        continue
      # Only a first dimension is unknown: the batch.
      count = np.prod([x or batch for x in shape], dtype=int)
      assert costs[op.name].output_bytes[i] == 4 * count, op.name
      checked += 1
  assert checked > 20


def test_measure_leaves_the_item_as_it_was(mlp):
  item, _, _ = mlp
  assert not any(node.device for node in item.graph_def.node)


def test_measure_loop_is_one_op_with_the_time_of_its_rounds(tmp_path):
  with tf.Graph().as_default() as graph:
    tf.compat.v1.enable_control_flow_v2()
    x = tf.compat.v1.placeholder(tf.float32, [200, 200], name="x")

    def rounds(count, name):
      return tf.while_loop(
        lambda i, a: i < count,
        lambda i, a: (i + 1, tf.tanh(a @ a)),
        [0, x],
        name=name,
      )[1]

    y = rounds(2, "short") + rounds(200, "long")
    graph_def = graph.as_graph_def()
  item = GraphItem(
    graph_def=graph_def,
    feeds=(Feed("x", "x:0", tf.float32, (200, 200)),),
    fetches=(y.name,),
    targets=(),
    op_names=tuple(node.name for node in graph_def.node),
    paths={},
    source="two loops",
    initializer=lambda session: None,
  )
  costs = measured.measure(
    item, inputs.synthesize_inputs(item), num_steps=3, warmup=1
  )
  assert costs["long"].op_type in ("While", "StatelessWhile")
  # A hundred times the rounds.
  assert costs["long"].compute_time_us > costs["short"].compute_time_us


def test_measure_without_a_value_names_the_input(mlp):
  with pytest.raises(ValueError, match="input 'x' has no value"):
    measured.measure(mlp[0], {"y": np.zeros([4, 2], "f")})


def test_measure_no_steps_is_refused(mlp):
  with pytest.raises(ValueError, match="num_steps= must be at least 1, got 0"):
    measured.measure(mlp[0], {}, num_steps=0)


def test_measure_unknown_device_type_is_refused(mlp):
  item = mlp[0]
  values = inputs.synthesize_inputs(item, batch_size=2)
  with pytest.raises(ValueError, match="'V100': it must be 'CPU' or 'GPU'"):
    measured.measure(item, values, device_type="V100")


@pytest.mark.skipif(
  bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU"
)
def test_measure_on_a_gpu_that_is_not_here_is_refused(mlp):
  item = mlp[0]
  values = inputs.synthesize_inputs(item, batch_size=2)
  with pytest.raises(ValueError, match="no GPU here"):
    measured.measure(item, values, device_type="GPU")
