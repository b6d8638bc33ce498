"""A step as it was predicted and as it ran, in one trace.

In the Trace Event Format, see `trace`: the predicted step's processes first,
then one for each device as it was measured, with a track for each of the
threads that ran ops there.
"""

from collections.abc import Iterator

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.reports.trace import encode_events
from baechi_tf.reports.trace import Event
from baechi_tf.reports.trace import metadata
from baechi_tf.reports.trace import step_events
from baechi_tf.reports.trace import time_slice
from baechi_tf.runner.measurement import Executed
from baechi_tf.runner.measurement import StepTrace
from baechi_tf.runner.tasks import device_key
from baechi_tf.runner.tasks import tasks_of
from baechi_tf.simulator import Simulation


def run_trace_lines(
  cluster: Cluster,
  trace: StepTrace,
  executed: Executed,
  prediction: tuple[OpGraph, Simulation] | None,
) -> Iterator[str]:
  """Returns the trace's JSON text, an event a line.

  Args:
    cluster: the devices.
    trace: a measured step.
    executed: the graph that ran.
    prediction: the ops with their costs and the simulated step, if there are
      costs.
  """
  return encode_events(_events(cluster, trace, executed, prediction))


def _events(cluster, trace, executed, prediction) -> Iterator[Event]:
  if prediction is not None:
    graph, simulation = prediction
    yield from step_events(graph, cluster, simulation, title="predicted: ")
  first = cluster.num_devices  # of the measured processes
  for k, device in enumerate(cluster.devices):
    number = first + k
    yield metadata("process_name", number, {"name": f"measured: {device.name}"})
    yield metadata("process_sort_index", number, {"sort_index": number})
  index = {device_key(name): k for k, name in enumerate(cluster.device_names)}
  device_of = {
    node: index.get(device_key(name))
    for node, name in executed.device_of.items()
  }
  tasks = tasks_of(cluster.device_names)
  threads = {}
  for op in sorted(trace.ops, key=lambda x: (x.begin_us, x.task, x.thread)):
    k = device_of.get(op.name, tasks[op.task].devices[0])
    if k is None:
      continue
    track = threads.setdefault((k, op.task, op.thread), len(threads))
    args = {"type": op.op_type}
    sent = executed.sends.get(op.name)
    if sent is not None:
      args["to"] = sent.receiver
    yield time_slice(op.name, first + k, track, op.begin_us, op.end_us, args)
  for (k, _, _), track in threads.items():
    yield metadata("thread_name", first + k, {"name": "ops"}, track)
