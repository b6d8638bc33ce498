"""A run's figures beside the prediction, as plain data and as text."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import percent
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table
from baechi_tf.reports.summary import Fields
from baechi_tf.runner.cluster_run import ClusterRun
from baechi_tf.runner.measurement import Executed
from baechi_tf.runner.measurement import Measurement
from baechi_tf.runner.measurement import StepTrace
from baechi_tf.runner.tasks import device_key
from baechi_tf.simulator import Simulation


def _predicted_devices(
  graph: OpGraph, cluster: Cluster, simulation: Simulation
) -> list[Fields]:
  """Returns what is predicted of each device in a step."""
  source = simulation.device[graph.tensor_op[simulation.transfer_tensor]]
  sizes = graph.tensor_bytes[simulation.transfer_tensor]
  sent, received = (
    np.bincount(ends, sizes, cluster.num_devices)
    for ends in (source, simulation.transfer_target)
  )
  return [
    {
      "busy_time_us": float(simulation.busy_time_us[k]),
      "idle_time_us": float(
        simulation.makespan_us - simulation.busy_time_us[k]
      ),
      "bytes_in": int(received[k]),
      "bytes_out": int(sent[k]),
      "peak_memory_bytes": int(simulation.peak_memory_bytes[k]),
    }
    for k in range(cluster.num_devices)
  ]


def measured_devices(
  run: ClusterRun,
  trace: StepTrace,
  executed: Executed,
  device_names: Sequence[str],
  bytes_of: Mapping[str, int] | None,
) -> list[Fields]:
  """Returns what a traced step shows of each device.

  Args:
    run: the processes.
    trace: a step of theirs.
    executed: the graph of the step.
    device_names: the cluster's.
    bytes_of: the bytes of each op's output, by the op's name in `executed`;
      None if they are not known.
  """
  index = {device_key(name): k for k, name in enumerate(device_names)}
  index_of = {
    node: index.get(device_key(name))
    for node, name in executed.device_of.items()
  }
  spans = [[] for _ in device_names]
  for op in trace.ops:
    k = index_of.get(op.name, run.tasks[op.task].devices[0])
    if k is not None:
      spans[k].append((op.begin_us, op.end_us))
  moved = {key: [[] for _ in device_names] for key in ("in", "out")}
  for name, send in executed.sends.items():
    size = None
    if bytes_of is not None:
      size = bytes_of.get(send.tensor.partition(":")[0], 0)
    ends = {"out": index_of[name], "in": index.get(device_key(send.receiver))}
    for key, k in ends.items():
      if k is not None:
        moved[key][k].append(size)
  here = zip(run.tasks, run.children, strict=False)  # the first ones
  seen = {k for task, _ in here for k in task.devices}
  fields = []
  for k in range(len(device_names)):
    row = {"busy_time_us": None, "idle_time_us": None}
    if k in seen:
      busy = _union_us(spans[k])
      row = {"busy_time_us": busy, "idle_time_us": trace.time_us - busy}
    for key, sizes in moved.items():
      row[f"tensors_{key}"] = len(sizes[k])
      row[f"bytes_{key}"] = None if bytes_of is None else sum(sizes[k])
    fields.append(row)
  return fields


def run_fields(
  run: ClusterRun,
  cluster: Cluster,
  measured: Measurement,
  devices: Sequence[Fields],
  *,
  model: str,
  traced_us: float,
  prediction: tuple[OpGraph, Simulation] | None,
) -> Fields:
  """Returns the figures of a run, ready for JSON.

  Args:
    run: the processes.
    cluster: the devices.
    measured: the steps.
    devices: each device's measured figures, from `measured_devices`.
    model: what the user calls it.
    traced_us: how long the step took that `devices` is of.
    prediction: the ops with their costs and the simulated step, if there are
      costs.
  """
  makespan_us, predicted = None, [None] * cluster.num_devices
  if prediction is not None:
    graph, simulation = prediction
    makespan_us = simulation.makespan_us
    predicted = _predicted_devices(graph, cluster, simulation)
  median_us = measured.median_us
  limits = run.limits or (None,) * len(run.children)
  return {
    "model": model,
    "num_steps": len(measured.times_us),
    "num_processes": len(run.tasks),
    "predicted_step_us": makespan_us,
    "measured_step_us": median_us,
    "least_step_us": measured.least_us,
    "error": None if makespan_us is None else makespan_us / median_us - 1,
    "step_times_us": list(measured.times_us),
    "traced_step_us": traced_us,
    "devices": [
      {
        "name": device.name,
        "predicted": predicted[k],
        "measured": devices[k],
      }
      for k, device in enumerate(cluster.devices)
    ],
    "processes": [
      {
        "name": child.name,
        "cpu_time_us": cpu_us,
        "peak_memory_bytes": peak,
        "memory_limit_bytes": limit,
      }
      for child, cpu_us, peak, limit in zip(
        run.children, measured.cpu_us, measured.peak_bytes, limits, strict=True
      )
    ],
    "notes": [],
  }


def run_text(fields: Fields) -> str:
  """Returns the figures of a run as a person reads them."""
  fields = printable(fields)
  lines = [
    f"{fields['model']}: {fields['num_steps']} steps on"
    f" {len(fields['devices'])} devices in {_processes(fields)}",
    "",
    f"measured step   {duration(fields['measured_step_us']):>11}  the median;"
    f" the fastest {duration(fields['least_step_us'])}",
  ]
  if fields["predicted_step_us"] is not None:
    lines.append(
      f"predicted step  {duration(fields['predicted_step_us']):>11} "
      f" {percent(abs(fields['error']))}"
      f" {'above' if fields['error'] > 0 else 'below'} the measured one"
    )
  devices = table(
    ["device", "", "busy", "idle", "in", "out", "peak memory"],
    list(_device_rows(fields["devices"])),
  )
  traced = (
    "measured busy and idle are of a step that the profiler recorded, which"
    f" took {duration(fields['traced_step_us'])}"
  )
  processes = table(
    ["process", "processor time", "peak memory", "limit"],
    [
      [
        x["name"],
        duration(x["cpu_time_us"]),
        size(x["peak_memory_bytes"]),
        _size(x["memory_limit_bytes"]),
      ]
      for x in fields["processes"]
    ],
  )
  notes = [f"note: {x}" for x in fields["notes"]]
  parts = [*lines, "", devices.rstrip("\n"), traced, "", processes, *notes]
  return "\n".join(parts).rstrip("\n")


def _processes(fields: Fields) -> str:
  """Returns how many processes ran, and where."""
  count, here = fields["num_processes"], len(fields["processes"])
  if here < count:
    return f"{count} processes, {here} of them on this machine"
  return f"{count} {'process' if count == 1 else 'processes'} of this machine"


def _device_rows(devices: Sequence[Fields]):
  for device in devices:
    name = device["name"]
    for kind in ("predicted", "measured"):
      row = device[kind]
      if row is not None:
        yield [
          name,
          kind,
          _duration(row["busy_time_us"]),
          _duration(row["idle_time_us"]),
          _size(row["bytes_in"]),
          _size(row["bytes_out"]),
          _size(row.get("peak_memory_bytes")),
        ]
        name = ""


def _duration(time_us: float | None) -> str:
  return "-" if time_us is None else duration(time_us)


def _size(num_bytes: int | None) -> str:
  return "-" if num_bytes is None else size(num_bytes)


def _union_us(spans: Sequence[tuple[float, float]]) -> float:
  """Returns for how long at least one of some intervals lasts."""
  total, end = 0.0, float("-inf")
  for first, last in sorted(spans):
    total += max(0.0, last - max(first, end))
    end = max(end, last)
  return total
