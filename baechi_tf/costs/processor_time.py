"""Measures the processor time that transfers take at either end.

Sending serialises and copies a tensor, receiving copies it again; processors
that do this run no ops meanwhile. Steps that send many tensors and steps that
send none run in turn, and the processes' CPU time is read before and after
each: the difference divided by the number of tensors is what one takes.

The CPU time of a process stands in `/proc/self/stat` (Linux). An op on the
device reads that file, and so it reads the process of that device on whatever
host it runs; no other service is needed. The file counts ticks of 10 ms, so
that steps are repeated until a tick is a small part. CPU time is divided by the
cores that the process may use: a device's ops use all of them, so that a busy
core delays them by its share.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from baechi_tf.costs import communication

v1 = tf.compat.v1

_BYTES_PER_STEP = 128 << 20  # bounds the messages of large tensors
_MESSAGES = 64
_BETWEEN_READINGS_S = 0.25  # 25 ticks
_TICKS_PER_SECOND = 100  # USER_HZ, the same on every Linux machine


@dataclasses.dataclass(frozen=True)
class ProcessorTimes:
  """The processor time of transfers over a link.

  Attributes:
    sizes: bytes of the tensors sent, `[k]`.
    send_us: microseconds of the sender's processor for each size, `[k]`.
    receive_us: microseconds of the receiver's processor, `[k]`.
    in_flight_us: wall microseconds a tensor with many in flight, `[k]`.
    dispatch_us: half of what a step takes longer that runs one op without
      inputs on the second device instead of the first.
  """

  sizes: tuple[int, ...]
  send_us: tuple[float, ...]
  receive_us: tuple[float, ...]
  in_flight_us: tuple[float, ...]
  dispatch_us: float


@dataclasses.dataclass(frozen=True)
class ProcessorFit:
  """The keys of a cluster file's link for the processor time of transfers.

  Attributes:
    send_us: microseconds a message takes of the sender's processor.
    send_us_per_byte: microseconds a byte takes there.
    receive_us: microseconds a message takes of the receiver's processor.
    receive_us_per_byte: microseconds a byte takes there.
    dispatch_us: a step's fixed cost, one way, of the second device.
  """

  send_us: float
  send_us_per_byte: float
  receive_us: float
  receive_us_per_byte: float
  dispatch_us: float


def share_process(device_a: str, device_b: str) -> bool:
  """Returns whether both devices belong to one process."""
  a, b = map(tf.DeviceSpec.from_string, (device_a, device_b))
  return (a.job, a.replica or 0, a.task) == (b.job, b.replica or 0, b.task)


def measure_processor_time(
  device_a: str,
  device_b: str,
  *,
  target: str,
  sizes: Sequence[int] = communication.SIZES,
  repeats: int = 2,
  progress: communication.Progress | None = None,
) -> ProcessorTimes:
  """Returns the processor time of transfers from one device to another.

  Args:
    device_a: the sender, a TensorFlow device name.
    device_b: the receiver, in another process.
    target: "grpc://address:port" of a server of the cluster.
    sizes: bytes to send.
    repeats: times to run steps with and without sends, a quarter of a second
      each, for each size.
    progress: called with (sizes done, sizes in all).

  Raises:
    ValueError: the devices belong to one process, a device is not there, or a
      process cannot read its CPU time because it does not run on Linux.
  """
  if share_process(device_a, device_b):
    raise ValueError(
      f"{device_a} and {device_b} belong to one process: a transfer between"
      " them has no processor time of its own"
    )
  measured = []
  for done, size in enumerate(sizes):
    if progress:
      progress(done, len(sizes))
    measured.append(_measure_size(device_a, device_b, target, size, repeats))
  if progress:
    progress(len(sizes), len(sizes))
  send_us, receive_us, in_flight_us = zip(*measured, strict=True)
  dispatch_us = _measure_dispatch(device_a, device_b, target, 100 * repeats)
  return ProcessorTimes(
    tuple(sizes), send_us, receive_us, in_flight_us, dispatch_us
  )


def fit_processor_time(times: ProcessorTimes) -> ProcessorFit:
  """Returns the times per message and per byte, fitted as `fit_link` does.

  Raises:
    ValueError: fewer than two different sizes have a positive time.
  """
  send, receive = (
    communication.fit_link(times.sizes, x)
    for x in (times.send_us, times.receive_us)
  )
  return ProcessorFit(
    send_us=send.latency_us,
    send_us_per_byte=1 / send.bytes_per_us,
    receive_us=receive.latency_us,
    receive_us_per_byte=1 / receive.bytes_per_us,
    dispatch_us=times.dispatch_us,
  )


def to_toml(fit: ProcessorFit) -> str:
  """Returns the keys to append to the block of `communication.to_toml`."""
  return "".join(
    f"{name} = {value:.4g}\n" for name, value in dataclasses.asdict(fit).items()
  )


def parse_reading(stat: bytes, status: bytes) -> float:
  """Returns a process' CPU time divided by its cores, in microseconds.

  Args:
    stat: the contents of `/proc/self/stat` (proc_pid_stat(5)).
    status: the contents of `/proc/self/status` (proc_pid_status(5)).
  """
  # A program's name may contain spaces; it ends at the last parenthesis.
  fields = stat.rpartition(b")")[2].split()
  ticks = int(fields[11]) + int(fields[12])  # user and system
  (mask,) = (
    line.split()[1]
    for line in status.splitlines()
    if line.startswith(b"Cpus_allowed:")
  )
  cores = int(mask.replace(b",", b""), 16).bit_count()
  return ticks * 1e6 / _TICKS_PER_SECOND / cores


def _measure_size(device_a, device_b, target, size, repeats):
  count = int(np.clip(_BYTES_PER_STEP // size, 1, _MESSAGES))
  graph = tf.Graph()
  with graph.as_default():
    readings = [_reading(device) for device in (device_a, device_b)]
    across = _batch(size, count, device_a, device_b, send=True)
    alone = _batch(size, count, device_a, device_b, send=False)
  config = communication.session_config((device_a, device_b), target)
  with v1.Session(target, graph=graph, config=config) as session:
    communication.check_devices(session, (device_a, device_b))
    spent = np.zeros((2, 3))
    for _ in range(repeats):
      for i, batch in enumerate((across, alone)):
        spent[i] += _spent_us(session, batch, readings) / repeats
  send_us, receive_us, in_flight_us = np.maximum(spent[0] - spent[1], 0) / count
  return float(send_us), float(receive_us), float(in_flight_us)


def _reading(device):
  """A file's path and its contents, read in the device's process."""
  with tf.device(tf.DeviceSpec.from_string(device).replace(
    device_type="CPU", device_index=0
  )):  # fmt: skip
    # Fed, because TensorFlow reads a file with a constant name only once.
    path = v1.placeholder(tf.string, [])
    return path, tf.io.read_file(path)


def _batch(size, count, device_a, device_b, *, send: bool):
  """Makes tensors on a, and takes a byte of each there and on b."""
  with tf.device(device_a):
    seed = v1.placeholder(tf.uint8, [])
    tensors = [tf.fill([size], seed) for _ in range(count)]
    ends = [tensor[-1].op for tensor in tensors]
  with tf.device(device_b):
    # The same ops run on b whether or not it receives what they read.
    there = tensors if send else [tf.fill([1], np.uint8(0))] * count
    ends += [tensor[-1].op for tensor in there]
  return seed, ends


def _spent_us(session, batch, readings) -> np.ndarray:
  """CPU time at either end and wall time, of one step."""
  seed, ends = batch
  step = session.make_callable(ends, [seed])
  step(np.uint8(0))  # connects and allocates
  before = _read(session, readings)
  steps, start = 0, time.perf_counter()
  while (elapsed_s := time.perf_counter() - start) < _BETWEEN_READINGS_S:
    step(np.uint8(steps % 256))
    steps += 1
  spent_us = np.subtract(_read(session, readings), before)
  return np.array([*spent_us, elapsed_s * 1e6]) / steps


def _read(session, readings) -> list[float]:
  try:
    stats, statuses = (
      session.run(
        [contents for _, contents in readings],
        {path: f"/proc/self/{name}" for path, _ in readings},
      )
      for name in ("stat", "status")
    )
  except tf.errors.NotFoundError as error:
    raise ValueError(
      "the processor time of transfers can be measured on Linux only:"
      f" {error.message.splitlines()[-1]}"
    ) from None
  return list(map(parse_reading, stats, statuses))


def _measure_dispatch(device_a, device_b, target, repeats) -> float:
  graph, targets = tf.Graph(), []
  with graph.as_default():
    for device in (device_a, device_b):
      with tf.device(device):
        targets.append(tf.no_op())
  config = communication.session_config((device_a, device_b), target)
  with v1.Session(target, graph=graph, config=config) as session:
    steps = [session.make_callable(x) for x in targets]
    here, there = (
      statistics.median(_elapsed_us(step) for _ in range(repeats))
      for step in steps
    )
  return max(there - here, 0.0) / 2


def _elapsed_us(step) -> float:
  start = time.perf_counter()
  step()
  return (time.perf_counter() - start) * 1e6
