"""Runs one step of a placed graph on simulated devices.

`event_loop` says when everything happens, and by which rules. This module adds
up memory: an op's outputs are held from its start until their last consumer on
any device has finished, a received tensor from the start of its transfer until
its last consumer there has. (Jeon et al., *Baechi*, SoCC 2020, count nothing
for the latter.)
"""

import dataclasses
import functools

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.event_loop import NUM_STARTED
from baechi_tf.event_loop import NUM_TRANSFERS
from baechi_tf.event_loop import POLICIES
from baechi_tf.event_loop import run_step
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.schedule import new_schedule
from baechi_tf.schedule import Step
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import RECEIVE
from baechi_tf.transfer import SEND
from baechi_tf.transfer import takes_processors
from baechi_tf.transfer import transfer_work


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
  """What happens in one step: n ops on D devices, c transfers.

  Attributes:
    policy: the one of `POLICIES` by which processors started ops.
    device: int64 `[n]`, where each op ran.
    order: int64 `[n]`, the ops in the order in which they started.
    start_time_us: float64 `[n]`.
    finish_time_us: float64 `[n]`, later than the op's time after its start if
      transfers took some of its processor meanwhile.
    transfer_tensor: int64 `[c]`, the tensor that was sent.
    transfer_target: int64 `[c]`, the device that received it.
    transfer_start_us: float64 `[c]`.
    transfer_finish_us: float64 `[c]`.
    send_work_us: float64 `[c]`, what sending took of the sender's processor.
    receive_work_us: float64 `[c]`, what receiving took of the receiver's.
    makespan_us: when the client knows that the last op has ended: the predicted
      step time.
    busy_time_us: float64 `[D]`, how long each device computed.
    transfer_work_us: float64 `[D]`, what the transfers of each device took of
      its processor.
    bytes_moved: what all transfers carried.
    memory_time_us: per device, float64 `[s]`, when its memory changed.
    memory_bytes: per device, int64 `[s]`, its memory from then on.
  """

  policy: str
  device: np.ndarray
  order: np.ndarray
  start_time_us: np.ndarray
  finish_time_us: np.ndarray
  transfer_tensor: np.ndarray
  transfer_target: np.ndarray
  transfer_start_us: np.ndarray
  transfer_finish_us: np.ndarray
  send_work_us: np.ndarray
  receive_work_us: np.ndarray
  makespan_us: float
  busy_time_us: np.ndarray
  transfer_work_us: np.ndarray
  bytes_moved: int
  memory_time_us: tuple[np.ndarray, ...]
  memory_bytes: tuple[np.ndarray, ...]

  @functools.cached_property
  def peak_memory_bytes(self) -> np.ndarray:
    """Int64 `[D]`: each device's largest use at any instant."""
    return np.array([x.max() for x in self.memory_bytes], np.int64)

  @functools.cached_property
  def transfer_of(self) -> dict[tuple[int, int], int]:
    """The index of each transfer, by its tensor and the device it goes to."""
    sent = zip(
      self.transfer_tensor.tolist(), self.transfer_target.tolist(), strict=True
    )
    return {tensor_and_target: t for t, tensor_and_target in enumerate(sent)}


def simulate(
  graph: OpGraph,
  cluster: Cluster,
  device: np.ndarray,
  *,
  policy: str = "priority",
  order: np.ndarray | None = None,
) -> Simulation:
  """Returns the simulated step of `graph` with op `i` on `device[i]`.

  Memory limits are reported on, not enforced.

  Args:
    graph: the ops and their costs.
    cluster: the devices and links.
    device: int `[n]`, indices into `cluster.devices`.
    policy: which of its ready ops a processor starts: "priority" (the first in
      `order`), "executor" (TensorFlow's choice) or "strict" (the next in
      `order`, for which it waits); see `event_loop`.
    order: int `[n]`, every op once; the order of ops that `policy` goes by. The
      graph's topological order by default.

  Raises:
    ValueError: the graph has no times for a device's type, `policy` is unknown,
      `order` does not list every op once, or "strict" cannot follow it because
      ops would wait for each other.
  """
  if policy not in POLICIES:
    raise ValueError(
      f"policy is {policy!r}, must be one of {', '.join(POLICIES)}"
    )
  device = np.array(device, np.int64)
  order = _checked_order(graph, graph.order if order is None else order)
  step = _step(graph, cluster)
  run = new_schedule(step, device, order)
  run_step(step, run, POLICIES.index(policy), 0.0, np.inf)
  started = run.started[: run.count[NUM_STARTED]].astype(np.int64)
  if len(started) < graph.num_ops:
    raise ValueError(_why_stuck(graph, cluster, device, order, started))
  booked = slice(run.count[NUM_TRANSFERS])
  tensor, target = run.tensor[booked], run.target[booked]
  sequence = np.lexsort((target, tensor))
  tensor = tensor[sequence].astype(np.int64)
  target = target[sequence].astype(np.int64)
  begin, end = run.begin[booked][sequence], run.end[booked][sequence]
  source = device[graph.tensor_op[tensor]]
  size = graph.tensor_bytes[tensor]
  send_work_us = transfer_work(step.links, SEND, source, target, size)
  receive_work_us = transfer_work(step.links, RECEIVE, source, target, size)
  memory_time_us, memory_bytes = _memory_over_time(
    graph,
    cluster.num_devices,
    device,
    run.start,
    run.finish,
    tensor,
    target,
    begin,
  )
  heard_us = run.finish + cluster.dispatch_us[device]
  return Simulation(
    policy=policy,
    device=device,
    order=started,
    start_time_us=run.start,
    finish_time_us=run.finish,
    transfer_tensor=tensor,
    transfer_target=target,
    transfer_start_us=begin,
    transfer_finish_us=end,
    send_work_us=send_work_us,
    receive_work_us=receive_work_us,
    makespan_us=float(heard_us.max(initial=0.0)),
    busy_time_us=_sum_by(device, run.duration, cluster.num_devices),
    transfer_work_us=_sum_by(source, send_work_us, cluster.num_devices)
    + _sum_by(target, receive_work_us, cluster.num_devices),
    bytes_moved=int(size.sum()),
    memory_time_us=memory_time_us,
    memory_bytes=memory_bytes,
  )


def follow(
  graph: OpGraph, cluster: Cluster, placement: Placement
) -> Simulation:
  """Returns the step of a placement, in its order if it has one.

  Without, each device runs what is ready, as TensorFlow's executor would.

  Raises:
    ValueError: as `simulate`.
  """
  if placement.order is None:
    return simulate(graph, cluster, placement.device, policy="executor")
  return simulate(
    graph, cluster, placement.device, policy="strict", order=placement.order
  )


def _step(graph: OpGraph, cluster: Cluster) -> Step:
  """Returns a graph on a cluster as the arrays of the event loop.

  Raises:
    ValueError: the graph has no times for a device's type.
  """
  tensors = np.arange(len(graph.tensor_op))
  links = link_costs(cluster)
  return Step(
    # A copy: compiled code takes arrays that it may and may not write to for
    # two kinds, and would be compiled twice.
    durations=np.array(graph.times_on(cluster.types)),
    tail=np.zeros(graph.num_ops),
    rank=graph.rank.astype(np.int32),
    num_inputs=np.bincount(graph.edge_op, minlength=graph.num_ops).astype(
      np.int32
    ),
    tensor_offsets=graph.tensor_offsets.astype(np.int32),
    tensor_op=graph.tensor_op.astype(np.int32),
    tensor_bytes=graph.tensor_bytes,
    tensor_id=tensors,
    tensor_of_id=tensors,
    consumer_offsets=graph.consumer_offsets.astype(np.int32),
    consumers=graph.edge_op.astype(np.int32),
    processor=cluster.processor,
    dispatch_us=cluster.dispatch_us,
    links=links,
    works=takes_processors(links),
  )


def _sum_by(device, values, num_devices):
  return np.bincount(device, weights=values, minlength=num_devices)


def _checked_order(graph, order) -> np.ndarray:
  """Returns an order as int64 `[n]`.

  Raises:
    ValueError: the order does not list every op once.
  """
  order = np.array(order, np.int64)
  times = np.bincount(
    order[(order >= 0) & (order < graph.num_ops)], minlength=graph.num_ops
  )
  if order.shape == (graph.num_ops,) and (times == 1).all():
    return order
  for count, problem in ((times == 0, "lacks"), (times > 1, "repeats")):
    if count.any():
      op = graph.names[int(np.argmax(count))]
      raise ValueError(
        f"the order {problem} op {op!r}; it must list each of the"
        f" {graph.num_ops:,} ops once"
      )
  raise ValueError(
    f"the order has {order.size:,} entries, must be a list of the indices of"
    f" {graph.num_ops:,} ops"
  )


def _why_stuck(graph, cluster, device, order, started) -> str:
  """Returns which ops wait for each other, each the next on its processor."""
  waits = np.ones(graph.num_ops, bool)
  waits[started] = False
  processor = cluster.processor[device]
  left = order[waits[order]]
  following = dict(zip(processor[left[::-1]], left[::-1], strict=True))
  awaited = {}
  op = left[0]
  while op not in awaited:
    inputs = graph.edge_source[graph.edge_op == op]
    awaited[op] = inputs[waits[inputs]][0]
    op = following[processor[awaited[op]]]
  reasons = []
  first = op
  while not reasons or op != first:
    needed = awaited[op]
    reason = f"{graph.names[op]!r} needs {graph.names[needed]!r}"
    op = following[processor[needed]]
    if op != needed:
      reason += f", which comes after {graph.names[op]!r}"
    reasons.append(reason)
  return f"the order cannot be followed: {'; '.join(reasons)}"


def _memory_over_time(
  graph,
  num_devices,
  device,
  start,
  finish,
  transfer_tensor,
  transfer_target,
  transfer_start_us,
):
  """Returns, per device, when its memory changes and what it is from then."""
  # Until when each tensor, and each received copy of one, is wanted.
  tensor_end = finish[graph.tensor_op]
  np.maximum.at(tensor_end, graph.edge_tensor, finish[graph.edge_op])
  copy_end = np.zeros(len(transfer_tensor))
  sent = device[graph.edge_op] != device[graph.edge_source]
  copies = transfer_tensor * num_devices + transfer_target
  wanted = graph.edge_tensor[sent] * num_devices + device[graph.edge_op[sent]]
  transfer = np.searchsorted(copies, wanted)
  np.maximum.at(copy_end, transfer, finish[graph.edge_op[sent]])

  where = np.concatenate([device, device[graph.tensor_op], transfer_target])
  begin = np.concatenate([start, start[graph.tensor_op], transfer_start_us])
  end = np.concatenate([finish, tensor_end, copy_end])
  size = np.concatenate(
    [
      graph.temporary_bytes,
      graph.tensor_held_bytes,
      graph.tensor_bytes[transfer_tensor],
    ]
  )
  some = size > 0
  where, begin, end, size = where[some], begin[some], end[some], size[some]

  persistent = np.zeros(num_devices, np.int64)
  np.add.at(persistent, device, graph.persistent_bytes)
  # At one instant, what began earlier is freed first, then what begins is
  # taken, then what began at that very instant is freed.
  at = np.concatenate([begin, end])
  turn = np.concatenate([np.ones(len(begin)), np.where(end > begin, 0, 2)])
  change = np.concatenate([size, -size])
  by_device = np.concatenate([where, where])
  sequence = np.lexsort((turn, at, by_device))
  bounds = np.searchsorted(by_device[sequence], np.arange(num_devices + 1))
  times, levels = [], []
  for k in range(num_devices):
    chosen = sequence[bounds[k] : bounds[k + 1]]
    times.append(np.concatenate([[0.0], at[chosen]]))
    levels.append(
      np.concatenate([[0], np.cumsum(change[chosen])]) + persistent[k]
    )
  return tuple(times), tuple(levels)
