import numpy as np
import pytest
from google.protobuf import text_format

from tests.tensorflow_setup import tf  # isort: skip

# Checked with TensorFlow 2.21: off on some processors and by an environment
# variable, and then no ops are merged.
from tensorflow.python.util import _pywrap_util_port

from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.costs.fused_kernels import find_hosts
from baechi_tf.costs.fused_kernels import Node
from baechi_tf.costs.fused_kernels import share_out
from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem

v1 = tf.compat.v1

PLANNED = {
  "x": Node("Placeholder", ()),
  "w": Node("Const", ()),
  "b": Node("Const", ()),
  "conv": Node("Conv2D", ("x", "w")),
  "bias": Node("BiasAdd", ("conv", "b")),
  "relu": Node("Relu", ("bias",)),
}


def executed(without, **changed):
  return {k: v for k, v in PLANNED.items() if k not in without} | changed


def test_producer_that_its_user_computes_is_inside_it():
  ran = executed(["conv"], bias=Node("_MklConvWithBias", ("x", "w", "b")))
  assert find_hosts(PLANNED, ran) == {"conv": "bias"}


def test_neighbour_whose_output_another_has_is_inside_it():
  planned = PLANNED | {
    "filter": Node("Conv2DBackpropFilter", ("x", "sizes", "relu")),
    "grad": Node("BiasAddGrad", ("relu",)),
    "update": Node("AssignSubVariableOp", ("v", "grad")),
  }
  ran = planned | {
    "filter": Node("_MklFilterWithBias", ("x", "sizes", "relu")),
    "update": Node("AssignSubVariableOp", ("v", "filter")),
  }
  del ran["grad"]
  assert find_hosts(planned, ran) == {"grad": "filter"}
  del ran["update"], planned["update"]
  ran["_retval_grad_0_0"] = Node("_Retval", ("filter",))
  assert find_hosts(planned, ran) == {"grad": "filter"}


@pytest.mark.parametrize(
  ("without", "changed"),
  [
    # A pruned op: its user takes what it took.
    (["bias"], {"relu": Node("_MklRelu", ("conv",))}),
    # Folded: its user takes a new constant, or has it as an attribute.
    (["conv"], {"bias": Node("_MklBiasAdd", ("conv_folded", "b"))}),
    (["b"], {"bias": Node("BiasAddByOne", ("conv",))}),
    # Equal to another op, which ran as planned.
    (["conv"], {"bias": Node("BiasAdd", ("relu", "b"))}),
    # Its user has become another op that does not take what it took.
    (["conv"], {"bias": Node("Fill", ("shape", "w", "b"))}),
    # The host ran as planned, whatever it took.
    (["conv"], {"bias": Node("BiasAdd", ("x", "w", "b"))}),
    # So have its users.
    (["conv", "bias"], {"relu": Node("_MklAll", ("x", "w", "b"))}),
  ],
)
def test_op_that_is_gone_for_another_reason_is_inside_none(without, changed):
  assert "conv" not in find_hosts(PLANNED, executed(without, **changed))
  assert find_hosts(PLANNED, executed(without, **changed)).keys() <= {"bias"}


def test_users_that_disagree_make_no_host():
  planned = PLANNED | {"other": Node("Relu", ("conv",))}
  ran = executed(
    ["conv"],
    bias=Node("_MklConvWithBias", ("x", "w", "b")),
    other=Node("Relu", ("y",)),
  )
  assert find_hosts(planned, ran) == {}


def test_shares_add_up_to_the_kernel_in_the_ratio_of_the_ops_alone():
  costs = {"bias": OpCost("BiasAdd", 80.0, 512, 0, (64,))}
  apart = {
    "conv": OpCost("Conv2D", 90.0, 100, 0, (32,)),
    "bias": OpCost("BiasAdd", 30.0, 0, 0, (64,)),
  }
  assert share_out(costs, apart, {"conv": "bias"}) == {
    "conv": OpCost("Conv2D", 60.0, 512, 0, (32,), "bias"),
    "bias": OpCost("BiasAdd", 20.0, 512, 0, (64,)),
  }


def test_kernel_of_an_op_that_is_never_seen_is_not_shared():
  costs = {"bias": OpCost("BiasAdd", 80.0)}
  assert share_out(costs, costs, {"conv": "bias"}) == costs


X = (2, 12, 12, 3)
PADDINGS = [[0, 0], [1, 1], [1, 1], [0, 0]]
FUSED_CONV = """
node {
  name: "conv" op: "_FusedConv2D" input: "x" input: "w" input: "b"
  attr { key: "T" value { type: DT_FLOAT } }
  attr { key: "TArgs" value { list { type: DT_FLOAT } } }
  attr { key: "num_args" value { i: 1 } }
  attr { key: "fused_ops" value { list { s: "BiasAdd" s: "Relu" } } }
  attr { key: "padding" value { s: "VALID" } }
  attr { key: "strides" value { list { i: 1 i: 1 i: 1 i: 1 } } }
}
"""


def weights(*shape):
  return tf.constant(np.full(shape, 0.1, "f"))


def conv(x, padding="VALID"):
  return tf.nn.conv2d(x, weights(3, 3, 3, 4), 1, padding, name="conv")


def conv_with_bias(x):
  return [tf.nn.relu(tf.nn.bias_add(conv(x, "SAME"), weights(4), name="bias"))]


def padded_conv(x):
  return [tf.nn.bias_add(conv(tf.pad(x, PADDINGS, name="pad")), weights(4))]


def padded_fused_conv(x):
  """A graph that TensorFlow's optimizer has been through has such ops."""
  return tf.import_graph_def(
    text_format.Parse(FUSED_CONV, v1.GraphDef()),
    {
      "x": tf.pad(x, PADDINGS, name="pad"),
      "w": weights(3, 3, 3, 4),
      "b": weights(4),
    },
    ["conv:0"],
    name="",
  )


def conv_gradients(x):
  """The gradients of a TF1 model are bound to the ops that they are of."""
  w, b = weights(3, 3, 3, 4), weights(4)
  y = tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "VALID", name="conv"), b)
  return v1.gradients(tf.nn.relu(y), [w, b], colocate_gradients_with_ops=True)


def item_of(build) -> GraphItem:
  with tf.Graph().as_default() as graph:
    fetches = build(v1.placeholder(tf.float32, X, name="x"))
    live = v1.graph_util.extract_sub_graph(
      graph.as_graph_def(), [x.op.name for x in fetches]
    )
  return GraphItem(
    graph_def=live,
    feeds=(Feed("x", "x:0", tf.float32, X),),
    fetches=tuple(x.name for x in fetches),
    targets=(),
    op_names=tuple(node.name for node in live.node),
    paths={},
    source="a graph",
    initializer=lambda session: None,
  )


# Of the ops inside another, which the trace of the kernel does not show.
OUTPUT_BYTES = {
  (conv_with_bias, "Conv2D"): 2 * 12 * 12 * 4 * 4,
  (padded_conv, "Pad"): 2 * 14 * 14 * 3 * 4,
  (padded_fused_conv, "Pad"): 2 * 14 * 14 * 3 * 4,
  (conv_gradients, "Conv2D"): 2 * 10 * 10 * 4 * 4,
  (conv_gradients, "BiasAddGrad"): 4 * 4,
}


@pytest.mark.skipif(
  not _pywrap_util_port.IsMklEnabled(), reason="oneDNN is off here"
)
@pytest.mark.parametrize(
  ("build", "fused"),
  [
    (conv_with_bias, {"Conv2D": "BiasAdd"}),
    (padded_conv, {"Pad": "Conv2D"}),
    (padded_fused_conv, {"Pad": "_FusedConv2D"}),
    (
      conv_gradients,
      {"Conv2D": "BiasAdd", "BiasAddGrad": "Conv2DBackpropFilter"},
    ),
  ],
)
def test_every_op_of_a_fusion_is_measured(build, fused):
  item = item_of(build)
  costs = measured.measure(
    item, inputs.synthesize_inputs(item), num_steps=2, warmup=1
  )
  assert tuple(costs) == item.op_names
  assert {
    cost.op_type: costs[cost.fused_into].op_type
    for cost in costs.values()
    if cost.fused_into
  } == fused
  for cost in costs.values():
    if cost.fused_into:
      host = costs[cost.fused_into]
      assert cost.compute_time_us > 0 < host.compute_time_us
      assert cost.temporary_bytes == host.temporary_bytes
  output_bytes = {x.op_type: x.output_bytes for x in costs.values()}
  for op_type in fused:
    assert output_bytes[op_type] == (OUTPUT_BYTES[build, op_type],)
