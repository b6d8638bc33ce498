"""Cost graphs: an OpGraph as networkx node-link JSON.

The door for other frameworks and for benchmarks: ops with their costs and the
tensors between them, and nothing of TensorFlow. `docs/cost_graph.md` is the
format. Fields are read column by column, so that a graph of a million ops is
read in seconds; a fault is looked for, and named, only once a column has one.
"""

import collections
import difflib
import functools
import json
import os
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf import atomic
from baechi_tf.json_file import read_json
from baechi_tf.limits import MAX_BYTES
from baechi_tf.limits import MAX_TIME_US
from baechi_tf.limits import shown
from baechi_tf.op_graph import ANY_DEVICE_TYPE
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import OpGraph

if TYPE_CHECKING:
  import networkx as nx

_OP_FIELDS = frozenset({
  "id", "name", "compute_time_us", "persistent_bytes", "temporary_bytes",
  "output_bytes", "colocation_group", "persistent_output", "is_input",
})  # fmt: skip
_EDGE_FIELDS = frozenset({"source", "target", "output", "control", "key"})


def read_cost_graph(path: str | os.PathLike) -> OpGraph:
  """Returns the graph in a cost graph file.

  Raises:
    ValueError: the file breaks the format, or the graph has a cycle; the
      message names the file, the op or edge, and the field.
    OSError: the file cannot be read.
  """
  tables = read_json(path)
  try:
    return _from_tables(tables)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def write_cost_graph(graph: OpGraph, path: str | os.PathLike) -> None:
  """Writes a cost graph file: one op or edge a line, complete or not at all.

  Raises:
    OSError: it cannot be written.
  """
  atomic.write_text(path, _lines(graph))


def to_networkx(graph: OpGraph) -> "nx.MultiDiGraph":
  """Returns the graph with the file's fields as attributes."""
  # Only users of networkx need it.
  import networkx as nx

  result = nx.MultiDiGraph()
  for node in _nodes(graph):
    result.add_node(node.pop("id"), **node)
  for edge in _edges(graph):
    result.add_edge(edge.pop("source"), edge.pop("target"), **edge)
  return result


def from_networkx(graph: "nx.DiGraph | nx.MultiDiGraph") -> OpGraph:
  """Returns the OpGraph of a networkx graph with the file's fields.

  Raises:
    ValueError: as `read_cost_graph`, without a file's name.
  """
  return _from_tables(
    {
      "directed": graph.is_directed(),
      "nodes": [{**fields, "id": x} for x, fields in graph.nodes(data=True)],
      "edges": [
        {**fields, "source": source, "target": target}
        for source, target, fields in graph.edges(data=True)
      ],
    }
  )


def _lines(graph: OpGraph) -> Iterator[str]:
  yield '{"directed": true, "multigraph": true, "graph": {},\n "nodes": [\n'
  yield from _separated(_nodes(graph))
  yield ' ],\n "edges": [\n'
  yield from _separated(_edges(graph))
  yield " ]\n}\n"


def _separated(rows: Iterable[dict]) -> Iterator[str]:
  comma = ""
  for row in rows:
    yield f"{comma}  {json.dumps(row)}"
    comma = ",\n"
  yield "\n"


def _nodes(graph: OpGraph) -> Iterator[dict[str, Any]]:
  """Yields each op's fields; what is zero or absent is left out."""
  any_type = graph.device_types == (ANY_DEVICE_TYPE,)
  times = graph.compute_time_us.tolist()
  persistent = graph.persistent_bytes.tolist()
  temporary = graph.temporary_bytes.tolist()
  groups = graph.group.tolist()
  is_input = graph.is_input.tolist()
  offsets = graph.tensor_offsets.tolist()
  sizes = graph.tensor_bytes.tolist()
  is_persistent = graph.tensor_is_persistent.tolist()
  is_control = graph.tensor_is_control.tolist()
  members = np.bincount(graph.group, minlength=1).tolist()
  for op, name in enumerate(graph.names):
    outputs = [
      x for x in range(offsets[op], offsets[op + 1]) if not is_control[x]
    ]
    row = times[op]
    node = {
      "id": name,
      "compute_time_us": row[0]
      if any_type
      else dict(zip(graph.device_types, row, strict=True)),
      "persistent_bytes": persistent[op],
      "temporary_bytes": temporary[op],
      "output_bytes": [sizes[x] for x in outputs],
    }
    held = [is_persistent[x] for x in outputs]
    if any(held):
      node["persistent_output"] = True if all(held) else held
    if members[groups[op]] > 1:
      node["colocation_group"] = groups[op]
    if is_input[op]:
      node["is_input"] = True
    yield node


def _edges(graph: OpGraph) -> Iterator[dict[str, Any]]:
  # Control tensors come last among an op's, so outputs number from the first.
  output = graph.edge_tensor - graph.tensor_offsets[graph.edge_source]
  for source, target, number, control in zip(
    graph.edge_source.tolist(),
    graph.edge_op.tolist(),
    output.tolist(),
    graph.tensor_is_control[graph.edge_tensor].tolist(),
    strict=True,
  ):
    edge = {"source": graph.names[source], "target": graph.names[target]}
    yield {**edge, **({"control": True} if control else {"output": number})}


def _from_tables(tables: Any) -> OpGraph:
  if not isinstance(tables, dict):
    raise ValueError('not a cost graph: needs {"nodes": [...], "edges": [...]}')
  if tables.get("directed", True) is not True:
    raise ValueError(
      "directed must be true: edges go from producer to consumer"
    )
  if "edges" in tables and "links" in tables:
    raise ValueError('has both "edges" and "links" (its older name); give one')
  nodes = _list_of_objects(tables, "nodes")
  edges = _list_of_objects(tables, "links" if "links" in tables else "edges")
  ids, names = _identities(nodes)
  device_types, times = _times(nodes, names)
  sizes, num_outputs = _output_bytes(nodes, names)
  persistent = _column(nodes, "persistent_bytes", 0, _is_bytes, names, _BYTES)
  temporary = _column(nodes, "temporary_bytes", 0, _is_bytes, names, _BYTES)
  source, output, target = _read_edges(edges, ids)
  return OpGraph.build(
    names,
    times,
    device_types=device_types,
    persistent_bytes=np.array(persistent, np.int64),
    temporary_bytes=np.array(temporary, np.int64),
    output_op=np.repeat(np.arange(len(nodes)), num_outputs),
    output_bytes=np.array(sizes, np.int64),
    output_is_persistent=_persistent_outputs(nodes, names, num_outputs),
    edge_source=source,
    edge_output=output,
    edge_target=target,
    group=_groups(nodes, names),
    is_input=_column(
      nodes, "is_input", False, _is_bool, names, "true or false"
    ),
  )


def _list_of_objects(tables: Mapping, key: str) -> list[dict[str, Any]]:
  rows = tables.get(key)
  if not isinstance(rows, list):
    raise ValueError(f'not a cost graph: "{key}" must be a list of objects')
  for i, row in enumerate(rows):
    if not isinstance(row, dict):
      raise ValueError(f"{key}[{i}] must be an object, got {_shown(row)}")
  return rows


_BYTES = f"a whole number from 0 to {MAX_BYTES:,}"
_ID = "a string or a whole number"


def _is_bytes(value: Any) -> bool:
  return type(value) is int and 0 <= value <= MAX_BYTES


def _is_bool(value: Any) -> bool:
  return type(value) is bool


def _is_id(value: Any) -> bool:
  return type(value) in (str, int)


def _column(
  rows: Sequence[Mapping],
  field: str,
  default: Any,
  is_right: Callable[[Any], bool],
  labels: Sequence[str],
  what: str,
) -> list:
  """Returns one field of every row, all of which `is_right`."""
  values = [row.get(field, default) for row in rows]
  for i, value in enumerate(values):
    if not is_right(value):
      got = f"got {_shown(value)}" if field in rows[i] else "it is missing"
      raise ValueError(f"{_label(labels, i)}: {field} must be {what}; {got}")
  return values


def _label(labels: Sequence[str], i: int) -> str:
  return f"op {labels[i]!r}" if labels else f"nodes[{i}]"


def _shown(value: Any) -> str:
  return shown(value, functools.partial(json.dumps, default=repr))


def _identities(nodes) -> tuple[dict[Hashable, int], list[str]]:
  """Returns the index of each op by what edges call it, and the names."""
  for i, node in enumerate(nodes):
    if "id" not in node and "name" not in node:
      raise ValueError(f'nodes[{i}] has neither "id" nor "name"')
  keys = [node["id"] if "id" in node else node["name"] for node in nodes]
  names = [node["name"] if "name" in node else node["id"] for node in nodes]
  for i, (key, name) in enumerate(zip(keys, names, strict=True)):
    if not (_is_id(key) and _is_id(name)):
      wrong = name if _is_id(key) else key
      raise ValueError(f"nodes[{i}]: id must be {_ID}; got {_shown(wrong)}")
  names = [str(name) for name in names]
  for node, name in zip(nodes, names, strict=True):
    _check_fields(node, _OP_FIELDS, lambda name=name: f"op {name!r}")
  ids = {key: i for i, key in enumerate(keys)}
  if len(ids) < len(keys):
    twice = next(key for i, key in enumerate(keys) if ids[key] != i)
    raise ValueError(f"op {str(twice)!r} is listed twice")
  return ids, names


def _check_fields(row: Mapping, known: frozenset, label: Callable[[], str]):
  if row.keys() <= known:
    return
  field = next(x for x in row if x not in known)
  near = difflib.get_close_matches(str(field), known, 1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  raise ValueError(
    f"{label()}: unknown field {field!r}; {hint}The fields are"
    f" {', '.join(sorted(known))}"
  )


def _times(nodes, names) -> tuple[tuple[str, ...], np.ndarray]:
  """Returns the device types that are named, and the time on each.

  A number holds for every type; if there are only numbers, for any type.
  """
  what = f"a number from 0 to {MAX_TIME_US:g}, or an object of them by device"
  what += " type"
  values = _column(nodes, "compute_time_us", None, _is_time, names, what)
  types = list(
    dict.fromkeys(x for v in values if type(v) is dict for x in v)
  ) or [ANY_DEVICE_TYPE]
  rows = []
  for name, value in zip(names, values, strict=True):
    if type(value) is not dict:
      rows.append([value] * len(types))
      continue
    for x in types:
      if x not in value and ANY_DEVICE_TYPE not in value:
        raise ValueError(
          f"op {name!r}: compute_time_us lacks device type {x!r}, which other"
          " ops have"
        )
    rows.append([value.get(x, value.get(ANY_DEVICE_TYPE)) for x in types])
  return tuple(types), np.array(rows, np.float64).reshape(-1, len(types))


def _is_time(value: Any) -> bool:
  if type(value) is dict:
    return bool(value) and all(
      type(x) is not dict and _is_time(x) for x in value.values()
    )
  # NaN fails both comparisons.
  return type(value) in (int, float) and 0 <= value <= MAX_TIME_US


def _output_bytes(nodes, names) -> tuple[list[int], list[int]]:
  """Returns the bytes of all outputs in a row, and how many each op has."""
  rows = _column(
    nodes,
    "output_bytes",
    [],
    lambda x: type(x) is list and all(map(_is_bytes, x)),
    names,
    f"a list, each of it {_BYTES}",
  )
  return [x for row in rows for x in row], list(map(len, rows))


def _persistent_outputs(nodes, names, num_outputs) -> np.ndarray:
  rows = _column(
    nodes,
    "persistent_output",
    False,
    lambda x: (
      type(x) is bool or (type(x) is list and all(type(y) is bool for y in x))
    ),
    names,
    "true or false, or a list of them",
  )
  flags = []
  for name, row, count in zip(names, rows, num_outputs, strict=True):
    if type(row) is bool:
      row = [row] * count
    elif len(row) != count:
      raise ValueError(
        f"op {name!r}: persistent_output has {len(row)} entries for {count}"
        " outputs"
      )
    flags.extend(row)
  return np.array(flags, bool)


def _groups(nodes, names) -> np.ndarray:
  values = _column(
    nodes,
    "colocation_group",
    None,
    lambda x: x is None or _is_id(x),
    names,
    _ID,
  )
  numbers = collections.defaultdict(lambda: len(numbers))
  return np.array([-1 if x is None else numbers[x] for x in values], np.int64)


def _read_edges(edges, ids) -> tuple[list[int], list[int], list[int]]:
  """Returns each edge's source op, output number or CONTROL, target op."""
  sources, outputs, targets = [], [], []
  for i, edge in enumerate(edges):
    _check_fields(edge, _EDGE_FIELDS, lambda i=i: f"edge {i}")
    for field, ends in (("source", sources), ("target", targets)):
      end = edge.get(field)
      if not _is_id(end) or end not in ids:
        wrong = f"{_shown(end)} is no op" if field in edge else "it is missing"
        raise ValueError(f"edge {i}: {field} must be an op's id; {wrong}")
      ends.append(ids[end])
    control = edge.get("control", False)
    output = edge.get("output", CONTROL if control is True else 0)
    if type(control) is not bool:
      raise ValueError(
        f"{_arrow(i, edge)}: control must be true or false, got"
        f" {_shown(control)}"
      )
    if control and "output" in edge:
      raise ValueError(
        f"{_arrow(i, edge)}: a control edge carries no output; drop one of the"
        " fields"
      )
    if not control and not _is_bytes(output):
      raise ValueError(
        f"{_arrow(i, edge)}: output must be {_BYTES}, got {_shown(output)}"
      )
    outputs.append(output)
  return sources, outputs, targets


def _arrow(i: int, edge: Mapping) -> str:
  return f"edge {i} ({edge['source']} -> {edge['target']})"
