"""The report that a subcommand writes besides what it prints."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType

from baechi_tf import atomic
from baechi_tf.cli.help import path
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.output_path import OutputPath
from baechi_tf.placement import Placement
from baechi_tf.reports import directory
from baechi_tf.reports.summary import Summary
from baechi_tf.simulator import Simulation


def add_report(parser: argparse.ArgumentParser) -> None:
  """Adds `--report`."""
  parser.add_argument(
    "--report",
    metavar="DIR",
    type=path,
    help="also write a report: a page for a browser, a summary, a trace for"
    " Perfetto or chrome://tracing, and the plan",
  )


def add_report_alone(parser: argparse.ArgumentParser) -> None:
  """Adds `--report` and the `--overwrite` of a command with no other output."""
  add_report(parser)
  parser.add_argument(
    "--overwrite", action="store_true", help="replace DIR if it exists"
  )


def report_output(
  args: argparse.Namespace, *apart_from: str
) -> OutputPath | None:
  """Returns where the report goes, None if none is asked for.

  Args:
    args: the subcommand's arguments.
    apart_from: paths that the report must not replace.

  Raises:
    ValueError: the path has something that must stay, or is one of the others.
  """
  if not args.report:
    return None
  output = directory.report_output(args.report, args.overwrite)
  output.check(apart_from=apart_from)
  return output


def publish_report(
  output: OutputPath,
  summary: Summary,
  graph: OpGraph,
  cluster: Cluster,
  simulation: Simulation,
  placement: Placement,
  others: Mapping[str, Simulation] = MappingProxyType({}),
) -> None:
  """Writes a report, whole or not at all, see `directory.stage_report`.

  Raises:
    OSError: it cannot be written.
  """
  with atomic.publishing() as outputs:
    directory.stage_report(
      outputs, output, summary, graph, cluster, simulation, placement, others
    )
