import numpy as np
import pytest
from google.protobuf import text_format

from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from tests import models
from tests.tensorflow_setup import tf

# The shape of a step traced on a GPU: what the executor launched, then the
# kernels of all streams, then each stream again, then copies.
GPU_STEP = """
dev_stats {
  device: "/job:localhost/replica:0/task:0/device:GPU:0"
  node_stats {
    node_name: "model/MatMul"
    timeline_label: "model/MatMul = MatMul(x, w)"
    op_start_rel_micros: 2 op_start_rel_nanos: 2000
    op_end_rel_micros: 42 op_end_rel_nanos: 42000
    output { slot: 0 tensor_description {
      dtype: DT_FLOAT shape { dim { size: 8 } dim { size: 4 } }
      allocation_description { requested_bytes: 128 allocated_bytes: 256 } } }
    memory_stats { temp_memory_size: 512 }
  }
  node_stats {
    node_name: "model/Reshape"
    op_start_rel_nanos: 1000 op_end_rel_nanos: 2500
    output { slot: 0 tensor_description {
      dtype: DT_FLOAT shape { dim { size: 32 } } } }
  }
  node_stats {
    node_name: "while" op_start_rel_nanos: 0 op_end_rel_nanos: 900000
  }
  node_stats {
    node_name: "_SINK" op_start_rel_nanos: 0 op_end_rel_nanos: 10
  }
}
dev_stats {
  device: "/device:GPU:0/stream:all"
  node_stats {
    node_name: "model/MatMul:MatMul"
    timeline_label: "volta_sgemm_128x64_nn regs:122 shm:12544"
    all_start_micros: 100 op_end_rel_micros: 300 all_end_rel_micros: 300
  }
  node_stats {
    node_name: "model/MatMul:MatMul"
    timeline_label: "splitKreduce_kernel regs:32"
    all_start_micros: 400 op_end_rel_micros: 20 all_end_rel_micros: 20
  }
  node_stats {
    node_name: "model/Tiny:AddV2" timeline_label: "add regs:8"
    all_start_micros: 420
  }
  node_stats {
    node_name: "model/MatMul:Relu"
    op_end_rel_micros: 7000
  }
  node_stats { node_name: "unannotated_kernel" op_end_rel_micros: 5000 }
}
dev_stats {
  device: "/device:GPU:0/stream:14"
  node_stats { node_name: "model/MatMul:MatMul" op_end_rel_micros: 300 }
  node_stats { node_name: "model/MatMul:MatMul" op_end_rel_micros: 20 }
}
dev_stats {
  device: "/device:GPU:0/stream:16<MemcpyH2D>"
  node_stats { node_name: "model/MatMul:MatMul" op_end_rel_micros: 4000 }
}
dev_stats {
  device: "/device:GPU:0/memcpy"
  node_stats { node_name: "model/MatMul:MatMul" op_end_rel_micros: 4000 }
}
dev_stats {
  device: "/device:GPU:0/sync"
  node_stats { node_name: "model/Reshape" op_end_rel_micros: 4000 }
}
dev_stats {
  device: "/job:localhost/replica:0/task:0/device:CPU:0"
  node_stats {
    node_name: "_arg_feed/x_0_1"
    op_start_rel_nanos: 100 op_end_rel_nanos: 1100
    output { slot: 0 tensor_description {
      dtype: DT_STRING shape { dim { size: 2 } }
      allocation_description { requested_bytes: 48 } } }
  }
}
"""
GPU_OPS = {
  "model/MatMul": "MatMul",
  "model/Reshape": "Reshape",
  "model/Tiny": "AddV2",
  "model/Unseen": "Const",
  "feed/x": "Placeholder",
  "while": "While",
}


@pytest.fixture(scope="module")
def gpu_costs():
  stats = text_format.Parse(GPU_STEP, tf.compat.v1.RunMetadata().step_stats)
  return measured.parse_step_stats(stats, GPU_OPS)


def test_gpu_time_is_the_sum_of_the_ops_kernels(gpu_costs):
  assert gpu_costs["model/MatMul"].compute_time_us == 320


def test_gpu_bytes_come_from_the_launch_row(gpu_costs):
  assert gpu_costs["model/MatMul"].output_bytes == (128,)
  assert gpu_costs["model/MatMul"].temporary_bytes == 512


def test_gpu_kernel_too_short_to_see_is_not_free(gpu_costs):
  assert gpu_costs["model/Tiny"].compute_time_us == 1


def test_gpu_op_without_kernels_costs_its_launch(gpu_costs):
  assert gpu_costs["model/Reshape"].compute_time_us == 1.5


def test_gpu_loop_costs_its_span(gpu_costs):
  assert gpu_costs["while"].compute_time_us == 900


def test_fed_op_is_recognised(gpu_costs):
  assert gpu_costs["feed/x"] == measured.OpCost(
    "Placeholder", 1.0, output_bytes=(48,)
  )


def test_op_not_in_the_trace_is_missing(gpu_costs):
  assert set(gpu_costs) == GPU_OPS.keys() - {"model/Unseen"}


def test_op_that_ran_twice_adds_times_not_bytes():
  stats = text_format.Parse(
    """
    dev_stats {
      device: "/device:CPU:0"
      node_stats {
        node_name: "a" op_end_rel_nanos: 1000
        output { slot: 1 tensor_description {
          dtype: DT_HALF shape { dim { size: 5 } } } }
        memory_stats { temp_memory_size: 7 }
      }
      node_stats {
        node_name: "a" op_end_rel_nanos: 3000
        output { slot: 1 tensor_description {
          dtype: DT_HALF shape { dim { size: 4 } } } }
        memory_stats { temp_memory_size: 9 }
      }
    }
    """,
    tf.compat.v1.RunMetadata().step_stats,
  )
  assert measured.parse_step_stats(stats, {"a": "Split"}) == {
    "a": measured.OpCost("Split", 4.0, 9, 0, (0, 10))
  }


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
  with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
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
