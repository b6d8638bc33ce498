"""The inputs of `baechi` that need no TensorFlow: graphs, clusters, plans."""

import json
import math
import random
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from baechi_tf.cli.main import main
from baechi_tf.placers import PLACERS
from baechi_tf.planner import BEST
from tools.fuzzing.cases import Command
from tools.fuzzing.cases import damage_file
from tools.fuzzing.cases import Format
from tools.fuzzing.mutations import mutate_bytes
from tools.fuzzing.mutations import mutate_tree

_GRAPH, _CLUSTER, _PLAN = "graph.json", "cluster.toml", "plan.json"
CLUSTER = f"--cluster={_CLUSTER}"
_STRUCTURED = 0.65  # of cases; the others change bytes

# A variable that two ops share, a tensor that goes to several, a control edge:
# not all of it fits on one device.
_GOOD_GRAPH = {
  "directed": True,
  "nodes": [
    {
      "id": "w",
      "compute_time_us": 0,
      "persistent_bytes": 400,
      "output_bytes": [400],
      "persistent_output": True,
      "colocation_group": "w",
    },
    {
      "id": "matmul",
      "compute_time_us": {"CPU": 12.5, "*": 3},
      "temporary_bytes": 24,
      "output_bytes": [56, 64],
    },
    {"id": 7, "name": "seven", "compute_time_us": 9, "output_bytes": [8]},
    {"id": "b", "compute_time_us": 30, "persistent_bytes": 500},
    {"id": "update", "compute_time_us": 3, "colocation_group": "w"},
  ],
  "edges": [
    {"source": "w", "target": "matmul"},
    {"source": "matmul", "target": 7},
    {"source": "matmul", "target": "b", "output": 1},
    {"source": 7, "target": "update"},
    {"source": "w", "target": "update", "control": True},
  ],
}
_GOOD_CLUSTER = {
  "channel": "half_duplex",
  "device": [
    {"name": "/device:CPU:0", "memory": "1 KB", "type": "CPU"},
    {"name": "/device:GPU:0", "memory": 900, "type": "V100"},
    {"name": "/device:CPU:1", "memory": "2KiB", "processor": "other"},
  ],
  "link": {
    "latency_us": 1,
    "bytes_per_us": 10.5,
    "send_us": 2,
    "send_us_per_byte": 0.25,
    "receive_us": 0.5,
    "receive_us_per_byte": 0.125,
    "dispatch_us": 40,
    "between": [
      {
        "devices": ["/device:CPU:0", "/device:CPU:1"],
        "latency_us": 0.5,
        "bytes_per_us": math.inf,
      }
    ],
  },
  "device_type": {
    "V100": {
      "kind": "GPU",
      "cores": 80,
      "frequency_mhz": 1380,
      "bytes_per_us": 900000,
      "architecture": "7.0",
      "flops_per_cycle": 128.5,
      "launch_us": 5,
    },
    "CPU": {
      "kind": "CPU",
      "cores": 2,
      "frequency_mhz": 2000,
      "bytes_per_us": 1e4,
    },
  },
}
_GOOD_PLAN = {
  "devices": ["/device:CPU:0", "/device:GPU:0", "/device:CPU:1"],
  "placement": {
    "w": "/device:CPU:0",
    "matmul": "/device:CPU:1",
    "seven": "/device:CPU:1",
    "b": "/device:CPU:1",
    "update": "/device:CPU:0",
  },
  "makespan_us": 61.5,
  "lower_bound_us": None,
}


def to_toml(value: Any) -> str:
  """Returns plain values as TOML, with everything in inline tables."""
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, int | float):
    return repr(value)
  if isinstance(value, list):
    return f"[{', '.join(map(to_toml, value))}]"
  if isinstance(value, dict):
    pairs = [f"{json.dumps(k)} = {to_toml(x)}" for k, x in value.items()]
    return f"{{{', '.join(pairs)}}}"
  return json.dumps("" if value is None else value)


def write_cluster(tables: Any = _GOOD_CLUSTER) -> None:
  """Writes the cluster file."""
  _write(_CLUSTER, _toml_file(tables))


def _toml_file(tables: Any) -> str:
  if not isinstance(tables, dict):
    return to_toml(tables)
  rows = (f"{json.dumps(k)} = {to_toml(x)}\n" for k, x in tables.items())
  return "".join(rows)


def _write(path: str, text: str) -> None:
  with open(path, "wb") as file:
    file.write(text.encode(errors="surrogatepass"))


def _prepare() -> None:
  _write(_GRAPH, json.dumps(_GOOD_GRAPH))
  _write(_PLAN, json.dumps(_GOOD_PLAN))
  write_cluster()


def _damage(
  path: str, good: Any, render: Callable[[Any], str]
) -> Callable[[random.Random], None]:
  """Returns a function that damages values, or else the bytes of the file."""
  damage_bytes = damage_file(path, mutate_bytes)

  def damage(draw: random.Random) -> None:
    if draw.random() < _STRUCTURED:
      _write(path, render(mutate_tree(good, draw)))
    else:
      damage_bytes(draw)

  return damage


def _place(draw: random.Random) -> Sequence[Command]:
  """Plans, and has the plan simulated, which must find that it fits."""
  placer = draw.choice([BEST, *PLACERS])
  placed = "placed.json"
  flags = (CLUSTER, f"--placer={placer}", "--report=report")
  return [
    Command(main, ("inspect", _GRAPH)),
    Command(
      main,
      ("place", _GRAPH, placed, *flags),
      outputs=(placed, "report"),
    ),
    Command(main, ("simulate", _GRAPH, placed, CLUSTER), must_succeed=True),
  ]


def _simulate(draw: random.Random) -> Sequence[Command]:
  return [Command(main, ("simulate", _GRAPH, _PLAN, CLUSTER))]


FORMATS = (
  Format(
    "cost_graph", _prepare, _damage(_GRAPH, _GOOD_GRAPH, json.dumps), _place
  ),
  Format(
    "cluster", _prepare, _damage(_CLUSTER, _GOOD_CLUSTER, _toml_file), _place
  ),
  Format(
    "placement", _prepare, _damage(_PLAN, _GOOD_PLAN, json.dumps), _simulate
  ),
)
