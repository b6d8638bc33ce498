"""A predicted step as a trace that Chrome and Perfetto show.

In the Trace Event Format (Google, "Trace Event Format", 2016): a process per
device; a track for its ops and for what transfers take of its processor, inside
an op that they delay; tracks for what it sends and receives; a counter of its
memory; and an arrow for each transfer, from the op that makes the tensor over
the transfer to the first op there that takes it.
"""

import heapq
import json
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import Simulation
from baechi_tf.transfer import receive_begin

Event = dict[str, Any]
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_COMPUTE = 0  # the track of a process that shows ops
_SEND = 1  # the first that shows what leaves; those that receive follow


def trace_lines(
  graph: OpGraph, cluster: Cluster, simulation: Simulation
) -> Iterator[str]:
  """Returns the trace's JSON text, an event a line."""
  return encode_events(step_events(graph, cluster, simulation))


def encode_events(events: Iterable[Event]) -> Iterator[str]:
  """Yields a trace's JSON text, an event a line."""
  yield '{"displayTimeUnit": "ms", "traceEvents": [\n'
  comma = ""
  for event in events:
    yield comma + _ENCODER.encode(event)
    comma = ",\n"
  yield "\n]}\n"


def step_events(
  graph: OpGraph, cluster: Cluster, simulation: Simulation, title: str = ""
) -> Iterator[Event]:
  """Yields the events of a predicted step.

  Args:
    graph: the ops.
    cluster: the devices; each is a process of the trace.
    simulation: the step.
    title: what the names of the processes begin with.
  """
  source = simulation.device[graph.tensor_op[simulation.transfer_tensor]]
  send_lane = _lanes(simulation, source, cluster.num_devices)
  receive_lane = _lanes(
    simulation, simulation.transfer_target, cluster.num_devices
  )
  # A process's receiving tracks come after its sending ones.
  num_sending = np.zeros(cluster.num_devices, np.int64)
  np.maximum.at(num_sending, source, send_lane + 1)
  send_track = _SEND + send_lane
  receive_track = _SEND + num_sending[simulation.transfer_target] + receive_lane
  for k, device in enumerate(cluster.devices):
    yield metadata("process_name", k, {"name": title + device.name})
    yield metadata("process_sort_index", k, {"sort_index": k})
    yield metadata("thread_name", k, {"name": "ops"}, _COMPUTE)
    for tracks, ends, name in (
      (send_track, source, "send"),
      (receive_track, simulation.transfer_target, "receive"),
    ):
      for track in np.unique(tracks[ends == k]).tolist():
        yield metadata("thread_name", k, {"name": name}, track)
  yield from _op_events(graph, simulation)
  yield from _work_events(graph, cluster, simulation, source)
  yield from _transfer_events(
    graph, simulation, source, send_track, receive_track
  )
  yield from _memory_events(simulation)


def metadata(name: str, device: int, args: Event, track: int = 0) -> Event:
  """Returns an event that names or sorts a process, or one of its tracks."""
  return {"ph": "M", "name": name, "pid": device, "tid": track, "args": args}


def _lanes(simulation, ends, num_devices) -> np.ndarray:
  """Returns a track for each transfer, so that none overlap on a track."""
  lanes = np.zeros(len(ends), np.int64)
  free = [[(0.0, 0)] for _ in range(num_devices)]  # (free from, lane)
  num_lanes = [1] * num_devices
  for t in _in_time(simulation).tolist():
    k = ends[t]
    begin = simulation.transfer_start_us[t]
    if free[k][0][0] > begin:
      heapq.heappush(free[k], (begin, num_lanes[k]))
      num_lanes[k] += 1
    _, lanes[t] = heapq.heappop(free[k])
    end = float(simulation.transfer_finish_us[t])
    heapq.heappush(free[k], (end, int(lanes[t])))
  return lanes


def _in_time(simulation) -> np.ndarray:
  return np.lexsort(
    (
      np.arange(len(simulation.transfer_tensor)),
      simulation.transfer_finish_us,
      simulation.transfer_start_us,
    )
  )


def time_slice(
  name: str, device: int, track: int, begin: float, end: float, args: Event
) -> Event:
  """Returns an event that lasts; its times are microseconds."""
  return {
    "ph": "X",
    "name": name,
    "pid": device,
    "tid": track,
    "ts": round(begin, 3),
    "dur": round(end - begin, 3),
    "args": args,
  }


def _op_events(graph, simulation) -> Iterator[Event]:
  sequence = np.lexsort((graph.rank, simulation.start_time_us))
  device = simulation.device.tolist()
  start, finish = simulation.start_time_us.tolist(), simulation.finish_time_us
  finish = finish.tolist()
  outputs = np.zeros(graph.num_ops, np.int64)
  np.add.at(outputs, graph.tensor_op, graph.tensor_bytes)
  outputs = outputs.tolist()
  for op in sequence.tolist():
    args = {"output_bytes": outputs[op]}
    yield time_slice(
      graph.names[op], device[op], _COMPUTE, start[op], finish[op], args
    )


def _work_events(graph, cluster, simulation, source) -> Iterator[Event]:
  """Yields what transfers take of processors, on the track of the ops.

  A processor works for one transfer after another, its op paused meanwhile.
  """
  works = []
  for t, tensor in enumerate(simulation.transfer_tensor.tolist()):
    begin = float(simulation.transfer_start_us[t])
    end = float(simulation.transfer_finish_us[t])
    name = graph.names[graph.tensor_op[tensor]]
    send = float(simulation.send_work_us[t])
    works.append((begin, 0, t, send, source[t], f"send {name}"))
    receive = float(simulation.receive_work_us[t])
    at, target = (
      receive_begin(begin, end, receive),
      simulation.transfer_target[t],
    )
    works.append((at, 1, t, receive, target, f"receive {name}"))
  free = [0.0] * cluster.num_processors
  for at, _, t, work, k, name in sorted(works):
    if work > 0:
      p = cluster.processor[k]
      begin, free[p] = max(at, free[p]), max(at, free[p]) + work
      yield time_slice(name, int(k), _COMPUTE, begin, free[p], {"transfer": t})


def _transfer_events(
  graph, simulation, source, send_track, receive_track
) -> Iterator[Event]:
  taker = _first_takers(graph, simulation)
  for t in _in_time(simulation).tolist():
    tensor = simulation.transfer_tensor[t]
    producer = int(graph.tensor_op[tensor])
    begin = float(simulation.transfer_start_us[t])
    end = float(simulation.transfer_finish_us[t])
    here, there = int(source[t]), int(simulation.transfer_target[t])
    name = graph.names[producer]
    args = {"bytes": int(graph.tensor_bytes[tensor]), "from": here, "to": there}
    yield time_slice(name, here, int(send_track[t]), begin, end, args)
    yield time_slice(name, there, int(receive_track[t]), begin, end, args)
    made = float(simulation.start_time_us[producer])
    taken = float(simulation.start_time_us[taker[t]])
    yield _arrow("s", t, here, _COMPUTE, made)
    yield _arrow("t", t, there, int(receive_track[t]), begin)
    yield _arrow("f", t, there, _COMPUTE, taken)


def _arrow(phase, number, device, track, at) -> Event:
  event = {
    "ph": phase,
    "name": "tensor",
    "cat": "transfer",
    "id": number,
    "pid": device,
    "tid": track,
    "ts": round(at, 3),
  }
  # An arrow ends at the slice around it, not at the next one.
  return {**event, "bp": "e"} if phase == "f" else event


def _first_takers(graph, simulation) -> np.ndarray:
  """Returns for each transfer the first op to start there that wants it."""
  num_devices = len(simulation.busy_time_us)
  key = graph.edge_tensor * num_devices + simulation.device[graph.edge_op]
  by_start = np.lexsort(
    (graph.rank[graph.edge_op], simulation.start_time_us[graph.edge_op], key)
  )
  wanted = simulation.transfer_tensor * num_devices + simulation.transfer_target
  first = np.searchsorted(key[by_start], wanted)
  return graph.edge_op[by_start[first]]


def _memory_events(simulation) -> Iterator[Event]:
  for k, (times, levels) in enumerate(
    zip(simulation.memory_time_us, simulation.memory_bytes, strict=True)
  ):
    for at, level in zip(times.tolist(), levels.tolist(), strict=True):
      yield {
        "ph": "C",
        "name": "memory",
        "pid": k,
        "tid": 0,
        "ts": round(at, 3),
        "args": {"bytes": level},
      }
