"""A report as a directory of files: for people, for Perfetto, for programs."""

import os
import types
from collections.abc import Iterable
from collections.abc import Mapping

from baechi_tf import atomic
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.output_path import OutputPath
from baechi_tf.placement import Placement
from baechi_tf.reports.page import page
from baechi_tf.reports.page_data import plan_fields
from baechi_tf.reports.summary import Summary
from baechi_tf.reports.text import report
from baechi_tf.reports.trace import trace_lines
from baechi_tf.simulator import Simulation

TEXT, TRACE, PLACEMENT = "report.txt", "trace.json", "placement.json"
PAGE = "report.html"


def is_report(path: str) -> bool:
  """Whether a path is a directory with nothing but a report in it."""
  return os.path.isdir(path) and (
    set(os.listdir(path)) <= {PAGE, TEXT, TRACE, PLACEMENT}
  )


def report_output(path: str, overwrite: bool) -> OutputPath:
  """Returns the path of a report to write."""
  return OutputPath(path, overwrite, is_report, "a report")


def stage_report(
  outputs: atomic.Outputs,
  output: OutputPath,
  summary: Summary,
  graph: OpGraph,
  cluster: Cluster,
  simulation: Simulation,
  placement: Placement,
  others: Mapping[str, Simulation] = types.MappingProxyType({}),
) -> None:
  """Adds a report to outputs that are published together.

  Args:
    outputs: the outputs that are published together.
    output: the report's path.
    summary: the figures of the plan.
    graph: the ops and their costs.
    cluster: the devices.
    simulation: the plan's predicted step.
    placement: the plan.
    others: predicted steps of other plans to show, by the plans' names.

  Raises:
    OSError: it cannot be written.
  """
  with outputs.directory(output.path, output.check_replaced) as directory:
    plans = [plan_fields(graph, cluster, simulation, summary.placer or "plan")]
    for title, other in others.items():
      plans.append(plan_fields(graph, cluster, other, title, explained=False))
    _write(directory, PAGE, page(graph, cluster, summary, plans))
    _write(directory, TEXT, [report(summary)])
    _write(directory, TRACE, trace_lines(graph, cluster, simulation))
    _write(directory, PLACEMENT, [placement.to_json()])


def _write(directory: str, name: str, chunks: Iterable[str]) -> None:
  with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
    file.writelines(chunks)
