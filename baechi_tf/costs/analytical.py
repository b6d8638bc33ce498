"""Estimates what each op takes on a device that is not here.

Grappler's virtual cluster estimates an op's time from its floating point
operations and bytes and the device's peak rates. Its time grows faster than
the graph, and a step repeats few different ops many times, so each distinct op
(type, attributes, input types and shapes) is estimated once, between inputs of
known shape. It has no model of what the following cost; they are estimated by
the bytes that they move:

- ops on variables: an update reads and writes the variable and its slots;
- ops whose output shapes Grappler does not see without the rest of the graph;
- ops on strings, handles and variants.

A loop costs its condition and body times its rounds, once where their number is
not known (see `control_flow`); a branch its dearest side. No op takes less
than the launch, except that on a GPU ops without a kernel take nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import DeviceType
from baechi_tf.costs.control_flow import body_graph
from baechi_tf.costs.control_flow import constants
from baechi_tf.costs.control_flow import trip_count
from baechi_tf.costs.grappler import DistinctOp
from baechi_tf.costs.grappler import performances
from baechi_tf.costs.grappler import SLOWER
from baechi_tf.costs.grappler import virtual_cluster
from baechi_tf.costs.inputs import concrete_shapes
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import Profile
from baechi_tf.costs.shapes import Inference
from baechi_tf.costs.shapes import item_shapes
from baechi_tf.costs.shapes import LOOPS
from baechi_tf.costs.shapes import Shape
from baechi_tf.costs.shapes import Shapes
from baechi_tf.costs.shapes import tensor_info
from baechi_tf.costs.shapes import TensorInfo
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import GraphItem

v1 = tf.compat.v1

_CHUNK = 300  # distinct ops estimated together

_BRANCHES = {
  "If": ("then_branch", "else_branch"),
  "StatelessIf": ("then_branch", "else_branch"),
  "Case": ("branches",),
  "StatelessCase": ("branches",),
  "PartitionedCall": ("f",),
  "StatefulPartitionedCall": ("f",),
}
_NO_KERNEL = frozenset({
  "Const", "ExpandDims", "Identity", "IdentityN", "ImmutableConst", "NoOp",
  "Placeholder", "PlaceholderWithDefault", "PreventGradient", "Rank",
  "ReadVariableOp", "Reshape", "Shape", "ShapeN", "Size", "Squeeze",
  "StopGradient", "VarHandleOp", "Variable", "VariableV2",
})  # fmt: skip
_HANDLES = (tf.resource, tf.variant)
_LISTS = frozenset({"EmptyTensorList", "TensorListReserve"})
_UPDATES = ("ResourceApply", "AssignAddVariableOp", "AssignSubVariableOp")
_ROW_UPDATES = ("ResourceSparse", "ResourceScatter")
_NOT_NUMBERS = (*_HANDLES, tf.string)


def estimate_missing(
  item: GraphItem,
  cluster: Cluster,
  known: Profile,
  batch_size: int | None = None,
  input_shapes: Mapping[str, Shape] | None = None,
  progress: Callable[[str], None] = lambda stage: None,
) -> tuple[dict[str, dict[str, OpCost]], tuple[str, ...]]:
  """Returns estimates for the cluster's types of which costs are missing.

  Types that the cluster does not describe have none. Shapes are inferred only
  if some type has.

  Args:
    item: the model.
    cluster: its `device_types` describe the devices.
    known: costs that need no estimate.
    batch_size: see `inputs.concrete_shapes`.
    input_shapes: see `inputs.concrete_shapes`.
    progress: called with a line before each stage.

  Returns:
    The estimates by device type, and notes on shapes that they assume.

  Raises:
    ValueError: a dimension of an input stays unknown, or TensorFlow refuses a
      node.
  """
  lacking = [
    name
    for name in dict.fromkeys(cluster.types)
    if name in cluster.device_types
    and not known.get(name, {}).keys() >= set(item.op_names)
  ]
  if not lacking:
    return {}, ()
  fed = concrete_shapes(item, batch_size, input_shapes)
  progress("inferring shapes")
  inference = item_shapes(item, fed)
  estimates, failures = {}, dict(inference.failures)
  for name in lacking:
    progress(f"estimating ops on {name}")
    estimator = _Estimator(item.graph_def, cluster.device_types[name])
    estimates[name] = estimator.item_costs(item, inference)
    failures.update(estimator.failures)
  return estimates, _notes(inference.unknown, failures)


def estimate(
  item: GraphItem,
  device_type: DeviceType,
  input_shapes: Mapping[str, Shape],
) -> dict[str, OpCost]:
  """Returns the estimated cost of every planned op.

  Args:
    item: the model.
    device_type: the device's properties.
    input_shapes: a full shape for every feed, see `inputs.concrete_shapes`.

  Raises:
    ValueError: a feed has no shape, or TensorFlow refuses a node.
  """
  estimator = _Estimator(item.graph_def, device_type)
  return estimator.item_costs(item, item_shapes(item, input_shapes))


def _notes(
  unknown: Sequence[str], failures: Mapping[str, str]
) -> tuple[str, ...]:
  """Returns what a reader of the estimates should know of the shapes."""
  notes = []
  if unknown:
    notes.append(
      f"the shapes of {len(unknown):,} tensors are not known, first"
      f" {unknown[0]}; estimates take their unknown dimensions for 1"
    )
  if failures:
    name, complaint = next(iter(failures.items()))
    notes.append(
      f"TensorFlow's shape inference fails on {len(failures):,} ops, whose"
      f" outputs count as unknown, first {name}: {complaint}"
    )
  return tuple(notes)


class _Estimator:
  """Costs of ops on one device type, each distinct one estimated once."""

  def __init__(self, context: v1.GraphDef, device_type: DeviceType):
    self.context = context
    self.library = functions_by_name(context)
    self.device_type = device_type
    self.cluster = virtual_cluster(device_type)
    self.known: dict[tuple, OpCost] = {}
    self.failures: dict[str, str] = {}  # of shape inference, in bodies

  def item_costs(
    self, item: GraphItem, inference: Inference
  ) -> dict[str, OpCost]:
    """Returns the cost of each planned op."""
    planned = set(item.op_names)
    nodes = [node for node in item.graph_def.node if node.name in planned]
    costs = self.costs(nodes, inference.shapes)
    return {name: costs[name] for name in item.op_names}

  def costs(
    self, nodes: Sequence[v1.NodeDef], shapes: Shapes
  ) -> dict[str, OpCost]:
    """Returns the cost of each node of one graph."""
    by_name = {node.name: node for node in nodes}
    ops = [_describe(node, by_name, shapes) for node in nodes]
    keys = [op.key for op in ops]
    distinct = dict(zip(keys, ops, strict=True))
    new = [
      (key, op)
      for key, op in distinct.items()
      if key not in self.known and not _is_functional(op.node)
    ]
    for i in range(0, len(new), _CHUNK):
      self._estimate_chunk(new[i : i + _CHUNK])
    result, trips = {}, {}
    for op, key in zip(ops, keys, strict=True):
      name = op.node.name
      if _is_functional(op.node):
        result[name] = self._functional_cost(op, by_name, trips)
      else:
        result[name] = self.known[key]
    return result

  def _estimate_chunk(self, new) -> None:
    suited = [op for _, op in new if _suits_grappler(op)]
    measured = iter(performances(suited, self.cluster))
    for key, op in new:
      grappler = next(measured) if _suits_grappler(op) else None
      sizes = tuple(x.num_bytes for x in op.outputs)
      if grappler and tuple(grappler.op_memory.output_memory) == sizes:
        time_us = grappler.compute_cost / 1000 / SLOWER
        temporary = grappler.op_memory.temp_memory
      else:
        time_us = _bytes_moved(op) / self.device_type.bytes_per_us
        temporary = 0
      self.known[key] = OpCost(
        op.node.op,
        self._at_least_launch(op.node, time_us),
        temporary,
        _persistent_bytes(op),
        sizes,
      )

  def _at_least_launch(self, node, time_us: float) -> float:
    if self.device_type.kind == "GPU" and node.op in _NO_KERNEL:
      return 0.0
    return max(time_us, self.device_type.launch_us)

  def _functional_cost(self, op: DistinctOp, by_name, trips) -> OpCost:
    """A loop's rounds or a branch's dearest side."""
    node = op.node
    if node.op in LOOPS:
      rounds = trip_count(node, self.library, constants(by_name, trips))
      if rounds is not None:
        trips[node.name] = rounds
      condition, body = (
        self._body_cost(node.attr[x].func.name, op) for x in ("cond", "body")
      )
      count = 1 if rounds is None else rounds
      time_us = count * body[0] + (count + 1) * condition[0]
      temporary = max(condition[1], body[1])
    else:
      names = [
        x.name
        for attr in _BRANCHES[node.op]
        for x in (node.attr[attr].list.func or [node.attr[attr].func])
      ]
      # The first input of a branch chooses, the others are its arguments.
      skip = 0 if names and node.op.endswith("Call") else 1
      inner = dataclasses.replace(
        op, inputs=op.inputs[skip:], referents=op.referents[skip:]
      )
      sides = [self._body_cost(name, inner) for name in names]
      time_us, temporary = max(sides, default=(0.0, 0))
    return OpCost(
      node.op,
      max(time_us, self.device_type.launch_us),
      temporary,
      0,
      tuple(x.num_bytes for x in op.outputs),
    )

  def _body_cost(self, name: str, op: DistinctOp) -> tuple[float, int]:
    """Returns the sum of a function's ops and the largest op's tensors."""
    key = (name, op.inputs, op.referents)
    if key not in self.known:
      nodes, inference = body_graph(
        self.library[name], op.inputs, op.referents, self.context
      )
      shapes = inference.shapes
      for failing, complaint in inference.failures.items():
        self.failures[f"{name}/{failing}"] = complaint
      costs = self.costs(nodes, shapes)
      working = [
        sum(x.num_bytes for x in shapes[name])
        + sum(
          shapes[source][i].num_bytes
          for source, i in map(parse_ref, node.input)
          if i != CONTROL
        )
        for name, node in ((node.name, node) for node in nodes)
      ]
      self.known[key] = (
        sum(x.compute_time_us for x in costs.values()),
        max(working, default=0),
      )
    return self.known[key]


def _is_functional(node) -> bool:
  return node.op in LOOPS or node.op in _BRANCHES


def _describe(node, by_name, shapes) -> DistinctOp:
  inputs, fixed, referents = [], [], []
  for name in node.input:
    source, output = parse_ref(name)
    if output == CONTROL:
      continue
    info = shapes[source][output]
    inputs.append(info)
    fixed.append(_small_constant(by_name[source], output, by_name, shapes))
    referents.append(
      _referent(source, output, by_name) if info.dtype in _HANDLES else None
    )
  return DistinctOp(
    node,
    tuple(inputs),
    tuple(fixed),
    tuple(referents),
    shapes[node.name],
  )


def _small_constant(node, output, by_name, shapes) -> v1.NodeDef | None:
  """An input whose value decides about shapes: sizes, axes, permutations."""
  if node.op == "Const":
    tensor = node.attr["value"].tensor
    if not tf.as_dtype(tensor.dtype).is_integer:
      return None
    count = math.prod(x.size for x in tensor.tensor_shape.dim)
    return node if count <= 16 else None
  if node.op in ("Shape", "ShapeN"):
    source, of = parse_ref(node.input[output])
    if shapes[source][of].is_known:
      constant = v1.NodeDef(op="Const")
      dtype = shapes[node.name][output].dtype
      constant.attr["dtype"].type = dtype.as_datatype_enum
      constant.attr["value"].tensor.CopyFrom(
        tf.make_tensor_proto(shapes[source][of].shape, dtype)
      )
      return constant
  return None


def _referent(name: str, output: int, by_name) -> TensorInfo | None:
  """Returns the variable or list element behind a handle, if it is known."""
  node = by_name[name]
  while node.op == "Identity" or node.op in LOOPS:
    # What a loop hands back came in at the same place.
    name, output = parse_ref(node.input[output])
    node = by_name[name]
  if node.op == "VarHandleOp":
    shape = tf.TensorShape(node.attr["shape"].shape)
    return tensor_info(tf.as_dtype(node.attr["dtype"].type), shape)
  if node.op in _LISTS:
    element = by_name[parse_ref(node.input[0])[0]]
    if element.op == "Const":
      sizes = tf.make_ndarray(element.attr["value"].tensor)
      if sizes.ndim:
        dims = tuple(int(x) if x >= 0 else None for x in sizes)
        return TensorInfo(tf.as_dtype(node.attr["element_dtype"].type), dims)
  return None


def _suits_grappler(op: DistinctOp) -> bool:
  """Whether an op can be estimated alone, between inputs of its shapes."""
  tensors = (*op.inputs, *op.outputs)
  return (
    bool(op.outputs)
    and op.node.op not in _NO_KERNEL
    and not any(x.dtype in _NOT_NUMBERS for x in tensors)
    and all(x.is_known for x in tensors)
  )


def _bytes_moved(op: DistinctOp) -> int:
  """What an op reads and writes."""
  inputs = sum(x.num_bytes for x in op.inputs)
  outputs = sum(x.num_bytes for x in op.outputs)
  kind = op.node.op
  if kind in _NO_KERNEL or kind == "AssignVariableOp":
    return 0  # a buffer changes hands
  if kind == "ResourceGather":
    return 2 * outputs
  variables = [x.num_bytes for x in op.referents if x]
  if kind.startswith(_ROW_UPDATES):
    # Each row of the update meets as many of every variable, to and fro.
    return inputs * (1 + 2 * len(variables))
  if kind.startswith(_UPDATES):
    return inputs + 2 * sum(variables)
  return inputs + outputs


def _persistent_bytes(op: DistinctOp) -> int:
  if op.node.op == "VarHandleOp":
    return _referent("", 0, {"": op.node}).num_bytes
  if op.node.op in ("Const", "Variable", "VariableV2"):
    return sum(x.num_bytes for x in op.outputs)
  return 0
