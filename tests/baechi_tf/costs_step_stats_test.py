import pytest
from google.protobuf import text_format

from baechi_tf.costs import step_stats
from baechi_tf.costs.profile import OpCost
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
  return step_stats.parse_step_stats(stats, GPU_OPS)


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
  assert gpu_costs["feed/x"] == OpCost("Placeholder", 1.0, output_bytes=(48,))


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
  assert step_stats.parse_step_stats(stats, {"a": "Split"}) == {
    "a": OpCost("Split", 4.0, 9, 0, (0, 10))
  }


def test_op_that_ran_as_several_nodes_is_their_sum():
  stats = text_format.Parse(
    """
    dev_stats {
      device: "/device:CPU:0"
      node_stats { node_name: "a/sum" op_end_rel_nanos: 1000 }
      node_stats { node_name: "a/sum/Internal/_0" op_end_rel_nanos: 2000 }
      node_stats { node_name: "a/sum/Internal/_12" op_end_rel_nanos: 4000 }
      node_stats { node_name: "b/Internal/_0" op_end_rel_nanos: 8000 }
    }
    """,
    tf.compat.v1.RunMetadata().step_stats,
  )
  op_types = {"a/sum": "AccumulateNV2", "b": "Relu", "b/Internal/_0": "Relu"}
  assert step_stats.parse_step_stats(stats, op_types) == {
    "a/sum": OpCost("AccumulateNV2", 7.0),
    "b/Internal/_0": OpCost("Relu", 8.0),
  }


def matched_us(times_us, step_time_us, on_host=True):
  costs = {str(i): OpCost("Relu", x) for i, x in enumerate(times_us)}
  matched = step_stats.match_step(costs, step_time_us, on_host=on_host)
  return [x.compute_time_us for x in matched.values()]


@pytest.mark.parametrize("on_host", [False, True])
def test_costs_beyond_the_step_are_scaled_down_and_keep_their_bytes(on_host):
  costs = {"a": OpCost("Relu", 4.0, 1, 2, (3,)), "b": OpCost("Relu", 6.0)}
  assert step_stats.match_step(costs, 5.0, on_host=on_host) == {
    "a": OpCost("Relu", 2.0, 1, 2, (3,)),
    "b": OpCost("Relu", 3.0),
  }


def test_costs_below_the_step_share_what_is_missing_by_their_room():
  # The ops may take 1 + 0.1 * 10 and 1 + 0.1 * 30 beyond themselves: 2 and 4.
  assert matched_us([10.0, 30.0], 43.0) == pytest.approx([11.0, 32.0])


def test_costs_far_below_the_step_are_raised_by_their_room_only():
  assert matched_us([10.0, 30.0], 1000.0) == pytest.approx([12.0, 34.0])


def test_costs_below_the_step_of_a_gpu_stay():
  # Its kernels do not wait for the work that the host does between ops.
  assert matched_us([10.0, 30.0], 43.0, on_host=False) == [10.0, 30.0]


@pytest.mark.parametrize("times_us", [[], [0.0, 0.0], [1.0, 2.5, 400.0]])
@pytest.mark.parametrize("step_time_us", [0.5, 403.5, 420.0, 1e5])
def test_matched_costs_never_exceed_the_step_nor_shrink_below_it(
  times_us, step_time_us
):
  matched = matched_us(times_us, step_time_us)
  assert sum(matched) <= step_time_us * (1 + 1e-12)
  if sum(times_us) <= step_time_us:
    assert all(x >= y for x, y in zip(matched, times_us, strict=True))
