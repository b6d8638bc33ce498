"""`baechi inspect`: what is in a model."""

import argparse
import json
import os
from typing import Any

import numpy as np

from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.cost_graph import read_cost_graph
from baechi_tf.op_graph import OpGraph
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table

_DESCRIPTION = """\
Shows what a model's step consists of: its signatures and inputs, its ops by
type, its variables, which ops must share a device, and the bytes of all that.
Nothing is run. Dimensions that are unknown count as the batch size if they come
first, as 1 elsewhere.
"""
_EXAMPLE = """\
baechi inspect model/ --signature train --batch-size 32
baechi inspect graph.pb --fetch loss
"""
_MOST = 15  # rows of a table

Fields = dict[str, Any]


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "inspect",
    run,
    summary="show what is in a model: ops, bytes, groups, signatures",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "model", type=path, metavar="MODEL", help="a model or cost graph"
  )
  add_json(parser)
  model_input.add_step_arguments(parser)
  model_input.add_rewrite_argument(parser)
  model_input.add_shape_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  with Progress() as progress:
    if model_input.is_cost_graph(args.model):
      progress("reading the cost graph")
      graph = read_cost_graph(args.model)
      fields = {**_graph_fields(args.model, graph), **_time_fields(graph)}
    else:
      fields = _model_fields(args, progress)
  print(json.dumps(fields) if args.json else _text(printable(fields)))


def _graph_fields(model: str, graph: OpGraph) -> Fields:
  members = np.bincount(graph.group, minlength=1)
  largest = int(np.argmax(members))
  of_largest = np.flatnonzero(graph.group == largest)
  is_control = graph.tensor_is_control[graph.edge_tensor]
  return {
    "model": model,
    "num_ops": graph.num_ops,
    "num_data_edges": int((~is_control).sum()),
    "num_control_edges": int(is_control.sum()),
    "longest_path_ops": int(graph.depth.max(initial=-1)) + 1,
    "num_groups": int((members > 1).sum()),
    "num_grouped_ops": int(members[members > 1].sum()),
    "largest_group": [graph.names[x] for x in of_largest[:1]],
    "largest_group_ops": len(of_largest),
    "persistent_bytes": int(graph.persistent_bytes.sum()),
    "output_bytes": int(graph.tensor_held_bytes.sum()),
  }


def _time_fields(graph: OpGraph) -> Fields:
  totals = graph.compute_time_us.sum(axis=0)
  longest = graph.compute_time_us.max(axis=1, initial=0.0)
  slowest = np.lexsort((graph.rank, -longest))[:_MOST]
  return {
    "compute_time_us": dict(
      zip(graph.device_types, totals.tolist(), strict=True)
    ),
    "slowest_ops": {graph.names[x]: float(longest[x]) for x in slowest},
  }


def _model_fields(args: argparse.Namespace, progress) -> Fields:
  item = model_input.read_step(args, progress)
  # These import TensorFlow, which `read_step` has loaded.
  from baechi_tf.costs.profile import OpCost
  from baechi_tf.costs.shapes import item_shapes
  from baechi_tf.graph_import import op_graph_from_item

  progress("inferring shapes")
  shapes = item_shapes(item, _shapes(args, item)).shapes
  planned = set(item.op_names)
  nodes = [x for x in item.graph_def.node if x.name in planned]
  costs = {
    x.name: OpCost(
      x.op, 0.0, output_bytes=tuple(y.num_bytes for y in shapes[x.name])
    )
    for x in nodes
  }
  graph = op_graph_from_item(item, {"": costs}, [""])
  return {
    **_graph_fields(args.model, graph),
    "signatures": _signatures(args.model, args.tags),
    "inputs": {x.name: _tensor_text(x.dtype, x.shape) for x in item.feeds},
    "fetches": list(item.fetches),
    "op_types": _op_types(graph, nodes),
    "variables": _variables(graph, nodes),
  }


def _shapes(args, item) -> dict[str, tuple[int, ...]]:
  """Every input's shape, its unknown dimensions made up."""
  known = dict(args.input_shape)
  first = args.batch_size or 1
  return {
    feed.name: known.get(
      feed.name,
      tuple(
        (first if i == 0 else 1) if x is None else x
        for i, x in enumerate(feed.shape or ())
      ),
    )
    for feed in item.feeds
  }


def _signatures(path: str, tags) -> dict[str, dict[str, dict[str, str]]]:
  # These import TensorFlow.
  from baechi_tf.graph_files import choose_meta_graph
  from baechi_tf.graph_files import read_graph_file
  from baechi_tf.graph_files import read_saved_model
  from baechi_tf.signatures import signature_names

  if os.path.isdir(path):
    meta_graph = choose_meta_graph(read_saved_model(path), tags)
  else:
    meta_graph = read_graph_file(path)
  return {
    name: {
      "inputs": _infos(meta_graph.signature_def[name].inputs),
      "outputs": _infos(meta_graph.signature_def[name].outputs),
    }
    for name in signature_names(meta_graph)
  }


def _infos(infos) -> dict[str, str]:
  import tensorflow as tf  # loaded already; not wanted by cost graphs

  return {
    name: "an op to run"
    if not info.dtype
    else _tensor_text(
      tf.as_dtype(info.dtype),
      None
      if info.tensor_shape.unknown_rank
      else [None if x.size < 0 else x.size for x in info.tensor_shape.dim],
    )
    for name, info in sorted(infos.items())
  }


def _tensor_text(dtype, shape) -> str:
  if shape is None:
    return f"{dtype.name} of any shape"
  dims = ", ".join("?" if x is None else str(x) for x in shape)
  return f"{dtype.name} [{dims}]"


def _op_types(graph: OpGraph, nodes) -> dict[str, Fields]:
  """The op types, most frequent first."""
  types = {}
  held = graph.output_held_bytes.tolist()
  persistent = graph.persistent_bytes.tolist()
  for node in nodes:
    op = graph.index[node.name]
    count = types.setdefault(
      node.op, {"num_ops": 0, "persistent_bytes": 0, "output_bytes": 0}
    )
    count["num_ops"] += 1
    count["persistent_bytes"] += persistent[op]
    count["output_bytes"] += held[op]
  return dict(sorted(types.items(), key=lambda x: (-x[1]["num_ops"], x[0])))


def _variables(graph: OpGraph, nodes) -> dict[str, Fields]:
  """The variables that the step touches, largest first."""
  import tensorflow as tf  # loaded already; not wanted by cost graphs

  variables = {}
  for node in nodes:
    if node.op in ("VarHandleOp", "Variable", "VariableV2"):
      shared = node.attr["shared_name"].s.decode()
      shape = tf.TensorShape(node.attr["shape"].shape)
      variables[node.name] = {
        "name": shared or node.name,
        "tensor": _tensor_text(
          tf.as_dtype(node.attr["dtype"].type),
          None if shape.rank is None else shape.as_list(),
        ),
        "bytes": int(graph.persistent_bytes[graph.index[node.name]]),
      }
  return dict(sorted(variables.items(), key=lambda x: (-x[1]["bytes"], x[0])))


def _text(fields: Fields) -> str:
  lines = [
    f"{fields['model']}: {fields['num_ops']:,} ops,"
    f" {fields['num_data_edges']:,} data and"
    f" {fields['num_control_edges']:,} control edges; the longest path has"
    f" {fields['longest_path_ops']:,} ops",
    f"persistent: {size(fields['persistent_bytes'])}; all outputs together:"
    f" {size(fields['output_bytes'])}",
    _groups_text(fields),
  ]
  if "compute_time_us" in fields:
    lines += _times_text(fields)
  for name, signature in fields.get("signatures", {}).items():
    lines += [
      f"signature {name}: {_named(signature['inputs'])} ->"
      f" {_named(signature['outputs'])}"
    ]
  if "op_types" in fields:
    lines += ["inputs of the step: " + _named(fields["inputs"]), ""]
    lines.append(_op_types_text(fields["op_types"]))
    lines.append(_variables_text(fields["variables"]))
  return "\n".join(lines).rstrip("\n")


def _groups_text(fields: Fields) -> str:
  if not fields["num_groups"]:
    return "no ops must share a device"
  return (
    f"{fields['num_grouped_ops']:,} ops must share devices in"
    f" {fields['num_groups']:,} groups, the largest of"
    f" {fields['largest_group_ops']:,} with {fields['largest_group'][0]}"
  )


def _times_text(fields: Fields) -> list[str]:
  lines = [
    f"all ops on device type {name}: {duration(time_us)}"
    for name, time_us in fields["compute_time_us"].items()
  ]
  rows = [[x, duration(us)] for x, us in fields["slowest_ops"].items()]
  return [*lines, "", table(["slowest ops", "time"], rows)]


def _op_types_text(op_types: dict[str, Fields]) -> str:
  rows = [
    [
      name,
      f"{x['num_ops']:,}",
      size(x["persistent_bytes"]),
      size(x["output_bytes"]),
    ]
    for name, x in op_types.items()
  ]
  header = ["op type", "ops", "persistent", "outputs"]
  return table(header, rows[:_MOST]) + _more(rows, "op types")


def _variables_text(variables: dict[str, Fields]) -> str:
  rows = [
    [x["name"], x["tensor"], size(x["bytes"])] for x in variables.values()
  ]
  header = ["variable", "type", "bytes"]
  return table(header, rows[:_MOST]) + _more(rows, "variables")


def _more(rows: list, what: str) -> str:
  if len(rows) <= _MOST:
    return ""
  return f"and {len(rows) - _MOST:,} more {what} (--json shows all)\n"


def _named(tensors: dict[str, str]) -> str:
  return ", ".join(f"{name}: {x}" for name, x in tensors.items()) or "nothing"
