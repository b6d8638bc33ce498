import pytest

from baechi_tf.costs.profile import OpCost
from tests.tensorflow_setup import tf  # noqa: F401  sets the devices
from tools import estimate_accuracy


@pytest.mark.parametrize(
  ("op_type", "op_class"),
  [
    ("Conv2DBackpropFilter", "convolution"),
    ("BatchMatMulV2", "matrix product"),
    ("FusedBatchNormGradV3", "batch norm"),
    ("MaxPoolGrad", "pooling"),
    ("SparseSoftmaxCrossEntropyWithLogits", "softmax"),
    ("ResourceApplyAdam", "variable update"),
    ("ResourceGather", "gather, scatter"),
    ("BiasAddGrad", "reduction"),
    ("Max", "reduction"),
    ("Maximum", "element-wise"),
    ("ConcatV2", "data movement"),
    ("ReadVariableOp", "no arithmetic"),
    ("BroadcastGradientArgs", "no arithmetic"),
    ("StatelessWhile", "loop, branch"),
    ("Tanh", "element-wise"),
  ],
)
def test_op_class(op_type, op_class):
  assert estimate_accuracy.op_class(op_type) == op_class


def test_compare_sums_and_counts_by_class():
  measurement = {
    "a": OpCost("MatMul", 100.0),
    "b": OpCost("MatMul", 10.0),
    "c": OpCost("Tanh", 1.0),
  }
  estimate = {
    "a": OpCost("MatMul", 60.0),
    "b": OpCost("MatMul", 40.0),
    "c": OpCost("Tanh", 2.0),
  }
  products, others, everything = estimate_accuracy.compare(
    measurement, estimate
  )
  assert products == estimate_accuracy.ClassAccuracy(
    op_class="matrix product",
    num_ops=2,
    measured_us=110.0,
    estimated_us=100.0,
    median_ratio=pytest.approx((0.6 + 4) / 2),
    within_2=0.5,
  )
  assert others.op_class == "element-wise"
  assert others.within_2 == 1
  assert everything.num_ops == 3
  assert everything.estimated_us == 102


def test_table_has_a_row_for_each_class():
  rows = estimate_accuracy.compare(
    {"a": OpCost("MatMul", 4000.0)}, {"a": OpCost("MatMul", 1000.0)}
  )
  lines = estimate_accuracy.table(rows).splitlines()
  assert len(lines) == 4
  assert lines[2] == "| matrix product | 1 | 4.00 | 1.00 | 0.25 | 0.25 | 0% |"
