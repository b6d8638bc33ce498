"""A flat graph and its ops' costs as an OpGraph.

Every planned op becomes one op, loops and branches included. Data edges carry
the bytes that the costs say; control edges none. What TensorFlow demands to be
on one device becomes one group: the ops that share a resource or a variant
(a variable and all that read or update it), those joined by a reference edge,
and those that name each other in `_class`. So do ops that run in one kernel:
apart they would not. In a rewritten model, so does a small constant with the
only op that takes it. What is fed is an input, which stays with the caller.
"""

import collections
import math
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from baechi_tf.coarsening.colocation import merge_groups
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import Profile
from baechi_tf.function_library import attr_value
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import definition_of
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import GraphItem
from baechi_tf.op_graph import CONTROL as CONTROL_OUTPUT
from baechi_tf.op_graph import OpGraph
from baechi_tf.rewrites.replicate_constant import is_small_constant

_RESOURCE = tf.resource.as_datatype_enum
_SHARED = (_RESOURCE, tf.variant.as_datatype_enum)
_HANDLES = frozenset({"VarHandleOp"})
_VARIABLES = frozenset({"Variable", "VariableV2"})
# Their output is a buffer that is held anyway: by themselves (`Const`, old
# variables) or by the variable that they read.
_PERSISTENT_OUTPUT = _VARIABLES | {"Const", "ReadVariableOp"}


def op_graph_from_item(
  item: GraphItem, profile: Profile, device_types: Sequence[str]
) -> OpGraph:
  """Returns the planned ops of an item as a graph.

  Args:
    item: the model.
    profile: a cost for every planned op on every type; `profile.complete`
      makes it so. Where types disagree about bytes, the largest counts.
    device_types: the columns of the result's times; repeats count once.

  Raises:
    ValueError: an op has no cost on a type, refers to an op that is not
      planned, or lies on a cycle.
  """
  device_types = list(dict.fromkeys(device_types))
  index = {name: i for i, name in enumerate(item.op_names)}
  nodes = [None] * len(index)
  for node in item.graph_def.node:
    if node.name in index:
      nodes[index[node.name]] = node
  costs = [_costs(profile, x, item.op_names) for x in device_types]
  signatures = _Signatures(functions_by_name(item.graph_def))
  dtypes = [signatures.output_dtypes(node) for node in nodes]
  source, output, target, pairs = _edges(nodes, index, dtypes, signatures)
  output_bytes, is_persistent = _outputs(nodes, dtypes, costs)
  return OpGraph.build(
    item.op_names,
    np.array([[x.compute_time_us for x in row] for row in costs]).T,
    device_types=device_types,
    persistent_bytes=_persistent_bytes(nodes, costs),
    temporary_bytes=np.max(
      [[x.temporary_bytes for x in row] for row in costs], axis=0
    ),
    output_op=np.repeat(np.arange(len(nodes)), [len(x) for x in dtypes]),
    output_bytes=output_bytes,
    output_is_persistent=is_persistent,
    edge_source=source,
    edge_output=output,
    edge_target=target,
    group=_groups(
      nodes,
      index,
      pairs
      + _fused(costs, index)
      + (
        _constants(nodes, index, source, target, item.fetches)
        if item.rewritten_for
        else []
      ),
    ),
    is_input=np.isin(
      item.op_names, [parse_ref(feed.tensor)[0] for feed in item.feeds]
    ),
  )


def _costs(profile, device_type, op_names) -> list[OpCost]:
  costs = profile.get(device_type, {})
  missing = [name for name in op_names if name not in costs]
  if missing:
    raise ValueError(
      f"{len(missing)} of {len(op_names)} ops have no cost on device type"
      f" {device_type!r}, first {missing[0]!r}"
    )
  return [costs[name] for name in op_names]


class _Signatures:
  """What ops take and return, looked up once per op type."""

  def __init__(self, library: Mapping):
    self.library = library
    self.by_type = {}

  def of(self, node):
    """Returns the op's definition."""
    definition = self.by_type.get(node.op)
    if definition is None:
      definition = definition_of(node, self.library)
      self.by_type[node.op] = definition
    return definition

  def output_dtypes(self, node) -> list[int]:
    """Returns the DataType of each output, whether a reference or not."""
    definition = self.of(node)
    return _dtypes(definition.output_arg, node, definition)

  def reference_inputs(self, node) -> list[int]:
    """Returns which inputs must be the very buffer of their producer."""
    definition = self.of(node)
    arguments = definition.input_arg
    if not any(x.is_ref for x in arguments):
      return []
    return [
      i
      for i, is_ref in enumerate(
        x.is_ref for x in arguments for _ in _dtypes([x], node, definition)
      )
      if is_ref
    ]


def _dtypes(arguments, node, definition) -> list[int]:
  dtypes = []
  for x in arguments:
    if x.type_list_attr:
      value = attr_value(node, x.type_list_attr, definition)
      dtypes.extend(value.list.type)
      continue
    dtype = x.type or attr_value(node, x.type_attr, definition).type
    count = 1
    if x.number_attr:
      count = attr_value(node, x.number_attr, definition).i
    dtypes.extend([dtype] * count)
  return dtypes


def _edges(nodes, index, dtypes, signatures):
  """Returns sources, outputs, targets, and pairs that must sit together."""
  source, output, target, pairs = [], [], [], []
  for consumer, node in enumerate(nodes):
    references = signatures.reference_inputs(node)
    for position, name in enumerate(node.input):
      producer_name, tensor = parse_ref(name)
      producer = index.get(producer_name)
      if producer is None:
        raise ValueError(
          f"op {node.name!r} takes {name!r}, which is not planned"
        )
      is_control = tensor == CONTROL
      source.append(producer)
      output.append(CONTROL_OUTPUT if is_control else tensor)
      target.append(consumer)
      if is_control:
        continue
      if position in references or dtypes[producer][tensor] in _SHARED:
        pairs.append((producer, consumer))
  return source, output, target, pairs


def _outputs(nodes, dtypes, costs):
  """Returns the bytes of all outputs, and whether they are held anyway."""
  sizes, is_persistent = [], []
  for op, node in enumerate(nodes):
    known = [row[op].output_bytes for row in costs]
    for i, dtype in enumerate(dtypes[op]):
      # A profile has no bytes for an output that never had a value.
      size = max((x[i] for x in known if i < len(x)), default=0)
      if node.op in _VARIABLES:
        size = max(size, _variable_bytes(node))
      sizes.append(0 if dtype == _RESOURCE else size)
      is_persistent.append(node.op in _PERSISTENT_OUTPUT)
  return sizes, is_persistent


def _persistent_bytes(nodes, costs) -> list[int]:
  result = []
  for op, node in enumerate(nodes):
    known = [row[op] for row in costs]
    size = max(x.persistent_bytes for x in known)
    if node.op == "Const":
      size = max(size, *(sum(x.output_bytes) for x in known))
    elif node.op in _HANDLES | _VARIABLES:
      size = max(size, _variable_bytes(node))
    elif node.op == "ReadVariableOp":
      size = 0  # the variable's own bytes
    result.append(size)
  return result


def _variable_bytes(node) -> int:
  """Returns the bytes of a variable; an unknown dimension counts as one."""
  shape = node.attr["shape"].shape
  count = math.prod(max(x.size, 1) if x.size else 0 for x in shape.dim)
  return count * tf.as_dtype(node.attr["dtype"].type).size


def _fused(costs, index) -> list[tuple[int, int]]:
  """Returns each op that some type runs in another's kernel, with the other.

  Apart, the two take longer than their shares of the kernel's time.
  """
  return [
    (op, index[x.fused_into])
    for row in costs
    for op, x in enumerate(row)
    if x.fused_into in index
  ]


def _constants(nodes, index, source, target, fetches) -> list[tuple[int, int]]:
  """Returns each small constant that a single op takes, with that op."""
  fetched = {index[parse_ref(x)[0]] for x in fetches}
  users = collections.defaultdict(set)
  for producer, consumer in zip(source, target, strict=True):
    if is_small_constant(nodes[producer]) and producer not in fetched:
      users[producer].add(consumer)
  return [(op, *mine) for op, mine in users.items() if len(mine) == 1]


def _groups(nodes, index, pairs) -> np.ndarray:
  """Merges the pairs with what `_class` says.

  All that name "loc:@x" sit together, and with x if it is planned.
  """
  places = dict(index)
  for op, node in enumerate(nodes):
    if "_class" not in node.attr:
      continue
    for value in node.attr["_class"].list.s:
      if value.startswith(b"loc:@"):
        place = value.removeprefix(b"loc:@").decode()
        pairs.append((op, places.setdefault(place, len(places))))
  return merge_groups(len(places), pairs)[: len(nodes)]
