"""A report as a directory of files: for people, for Perfetto, for programs."""

import os
from collections.abc import Iterable

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.reports.summary import Fields
from baechi_tf.reports.text import report
from baechi_tf.reports.trace import trace_lines
from baechi_tf.simulator import Simulation

TEXT, TRACE, PLACEMENT = "report.txt", "trace.json", "placement.json"


def is_report(path: str) -> bool:
  """Whether a path is a directory with nothing but a report in it."""
  return os.path.isdir(path) and (
    set(os.listdir(path)) <= {TEXT, TRACE, PLACEMENT}
  )


def write_files(
  directory: str,
  summary: Fields,
  graph: OpGraph,
  cluster: Cluster,
  simulation: Simulation,
  placement: Placement,
) -> None:
  """Writes the three files into a directory, see `atomic`.

  Raises:
    OSError: they cannot be written.
  """
  _write(directory, TEXT, [report(summary)])
  _write(directory, TRACE, trace_lines(graph, cluster, simulation))
  _write(directory, PLACEMENT, [placement.to_json()])


def _write(directory: str, name: str, chunks: Iterable[str]) -> None:
  with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
    file.writelines(chunks)
