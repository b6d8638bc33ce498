"""The plan that is written in a model: the devices of its ops."""

from collections.abc import Mapping
from collections.abc import Sequence

from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import GraphItem
from baechi_tf.op_graph import OpGraph


def written_devices(item: GraphItem) -> dict[str, str]:
  """Returns op -> device of the planned ops that have one in the model.

  An op that only inlining makes, such as the end of a call, is in no model: it
  is where its first input is.
  """
  nodes = {node.name: node for node in item.graph_def.node}
  written = {}
  for op in item.op_names:
    node = nodes[op]
    while not node.device and not item.paths[node.name] and node.input:
      node = nodes[parse_ref(node.input[0])[0]]
    if node.device:
      written[op] = node.device
  return written


def executed_names(item: GraphItem) -> dict[str, str]:
  """Returns op -> its name in the graph that TensorFlow runs.

  `load` makes a function of what the signature's node in the top graph calls,
  so that names lose this node's.
  """
  paths = {op: item.paths[op] for op in item.op_names if item.paths[op]}
  return {op: "/".join(x[1:] or x) for op, x in paths.items()}


def output_bytes(item: GraphItem, graph: OpGraph) -> dict[str, int]:
  """Returns the bytes of each op's largest output, by its executed name."""
  executed = executed_names(item)
  sizes = {}
  pairs = zip(
    graph.tensor_op.tolist(), graph.tensor_bytes.tolist(), strict=True
  )
  for op, size in pairs:
    name = executed.get(graph.names[op])
    sizes[name] = max(size, sizes.get(name, 0))
  return sizes


def plan_to_run(
  item: GraphItem,
  written: Mapping[str, str],
  planned: Mapping[str, str] | None,
  devices: Sequence[str],
) -> tuple[dict[str, str] | None, tuple[str, ...]]:
  """Returns the device of every op, as far as it is known, and notes.

  Args:
    item: the model.
    written: op -> device, as `written_devices` reads them.
    planned: the plan that the model is said to have; None if nothing is said.
    devices: the names of the cluster's devices.

  Returns:
    op -> device, None if some ops have no device; and what a reader should
    know, in words.

  Raises:
    ValueError: the model's devices are not the plan's, or not the cluster's.
  """
  if not written:
    if planned is not None:
      raise ValueError(
        f"{item.source} has no devices in it: place it by the plan first"
      )
    everything = dict.fromkeys(item.op_names, devices[0])
    return everything, (
      f"no op has a device: the model is not placed, and runs on {devices[0]}",
    )
  for op, device in written.items():
    if device not in devices:
      raise ValueError(
        f"{item.source}: op {op!r} is on {device}, which is none of the"
        f" cluster's devices {', '.join(devices)}"
      )
    if planned is not None and item.paths[op] and planned.get(op) != device:
      raise ValueError(
        f"{item.source}: op {op!r} is on {device}, in the plan on"
        f" {planned.get(op, 'no device')}: the plan is another model's, or the"
        " model was placed by another plan"
      )
  missing = len(item.op_names) - len(written)
  if missing:
    return None, (
      f"{missing:,} of {len(item.op_names):,} ops have no device: the model was"
      " not placed by baechi, or by another signature, there is nothing to"
      " predict, and TensorFlow puts these ops where it likes",
    )
  return dict(written), ()
