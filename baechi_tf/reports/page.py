"""A report as one HTML page: no network, no other file, any browser."""

import json
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.reports.page_data import labelled
from baechi_tf.reports.page_data import MOST_OPS
from baechi_tf.reports.page_data import verdict
from baechi_tf.reports.summary import Summary

_FOLDER = pathlib.Path(__file__).parent / "page"
_SCRIPTS = ("timeline.js", "page.js")
# What could end the element that the data is in, or a line in JavaScript.
_ESCAPES = str.maketrans(
  {x: f"\\u{ord(x):04x}" for x in ("<", ">", "&", "\u2028", "\u2029")}
)


def page(
  graph: OpGraph,
  cluster: Cluster,
  summary: Summary,
  plans: Sequence[dict[str, Any]],
) -> Iterator[str]:
  """Yields the page's text.

  Args:
    graph: the ops.
    cluster: the devices.
    summary: the figures of the first plan.
    plans: plans from `page_data.plan_fields`, drawn below each other.
  """
  notes = []
  if graph.num_ops > MOST_OPS:
    notes.append(
      f"the timeline shows the {MOST_OPS:,} longest of {graph.num_ops:,} ops"
    )
  data = {
    "verdict": verdict(summary),
    "summary": summary.fields(),
    "devices": [
      {"name": x.name, "label": label, "memory_bytes": x.memory_bytes}
      for x, label in zip(
        cluster.devices, labelled(cluster).device_names, strict=True
      )
    ],
    "names": graph.names,
    "plans": plans,
    "notes": notes,
  }
  parts = {
    "style": _read("page.css"),
    "data": json.dumps(data, separators=(",", ":")).translate(_ESCAPES),
    "script": "\n".join(map(_read, _SCRIPTS)),
  }
  for text in _read("page.html").split("{{"):
    name, closed, rest = text.partition("}}")
    if closed:
      yield parts[name]
    yield rest if closed else text


def _read(name: str) -> str:
  return (_FOLDER / name).read_text(encoding="utf-8")
