"""Measures transfers between two devices and fits latency and bandwidth.

A step passes one tensor to and fro between the two devices, many times: each
hop is one real send and receive. The same chain of ops on the first device
alone is the step's own cost, measured as well; the difference divided by the
number of hops is the time of one transfer. `latency + bytes / bandwidth` is
fitted by least squares on relative errors, because the sizes span eight
orders of magnitude and small transfers matter as much as large ones.

Two logical CPU devices of one process share memory: a "transfer" between them
hands over a pointer, and its time depends on the size hardly or not at all.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from baechi_tf.host_addresses import check_answer

SIZES = tuple(4**k for k in range(14))  # 1 B to 64 MiB
_BYTES_PER_STEP = 256 << 20  # bounds the hops of large tensors
_HOPS = 32

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class LinkFit:
  """A link as the cluster file describes it, and how well that fits.

  Attributes:
    latency_us: microseconds that an empty transfer takes.
    bytes_per_us: bandwidth; infinite where the size makes no difference.
    r_squared: coefficient of determination of the relative fit, at most 1.
  """

  latency_us: float
  bytes_per_us: float
  r_squared: float


@dataclasses.dataclass(frozen=True)
class LinkTimes:
  """What was measured on a link.

  Attributes:
    sizes: bytes of the tensors sent, `[k]`.
    times_us: microseconds of one transfer of each size, `[k]`.
    step_us: the step's own cost for each size, already subtracted, `[k]`.
  """

  sizes: tuple[int, ...]
  times_us: tuple[float, ...]
  step_us: tuple[float, ...]


def start_server(hosts: Sequence[str], task_index: int) -> tf.distribute.Server:
  """Returns a running server for one host of a cluster to measure.

  Start one on every host, then measure from any of them; the devices are
  "/job:worker/task:0/device:CPU:0" and so on.

  Args:
    hosts: "address:port" of every host, in the same order everywhere.
    task_index: which of them this is.

  Raises:
    ValueError: `task_index` is not one of the hosts.
  """
  if not 0 <= task_index < len(hosts):
    raise ValueError(f"task {task_index} is not one of {len(hosts)} hosts")
  return tf.distribute.Server(
    {"worker": list(hosts)}, job_name="worker", task_index=task_index
  )


def check_hosts(hosts: Sequence[str]) -> None:
  """Refuses hosts where no server listens, which would be waited for forever.

  Raises:
    ValueError: an address does not parse, or nothing answers there.
  """
  for i, host in enumerate(hosts):
    try:
      check_answer(host)
    except OSError as error:
      raise ValueError(
        f"no TensorFlow server answers at {host} ({error}); start task {i}"
        " there first"
      ) from None


def measure_link(
  device_a: str,
  device_b: str,
  *,
  target: str = "",
  sizes: Sequence[int] = SIZES,
  repeats: int = 7,
  progress: Progress | None = None,
) -> LinkTimes:
  """Returns the time of one transfer between two devices for each size.

  Both directions count alike: a step's hops go to and fro. The median of the
  repeats is taken, after one step that is dropped.

  Args:
    device_a: a TensorFlow device name; fresh tensors are made here.
    device_b: the other one.
    target: "grpc://address:port" of one of the servers, or "" for devices of
      this process.
    sizes: bytes to send.
    repeats: steps timed for each size.
    progress: called with (sizes done, sizes in all).

  Raises:
    ValueError: a device is not there; the message lists those that are.
  """
  config = session_config((device_a, device_b), target)
  times_us, step_us = [], []
  for done, size in enumerate(sizes):
    if progress:
      progress(done, len(sizes))
    hops = _num_hops(size)
    graph = tf.Graph()
    with graph.as_default():
      across = _ping_pong(size, hops, device_a, device_b)
      alone = _ping_pong(size, hops, device_a, device_a)
    with tf.compat.v1.Session(target, graph=graph, config=config) as session:
      check_devices(session, (device_a, device_b))
      with_hops = _median_step_us(session, across, size, repeats)
      without = _median_step_us(session, alone, size, repeats)
    times_us.append(max(with_hops - without, 0.0) / hops)
    step_us.append(without)
  if progress:
    progress(len(sizes), len(sizes))
  return LinkTimes(tuple(sizes), tuple(times_us), tuple(step_us))


def fit_link(sizes: Sequence[int], times_us: Sequence[float]) -> LinkFit:
  """Returns the latency and bandwidth that fit best in relative terms.

  Minimises `sum(((latency + size / bandwidth - time) / time)^2)` subject to
  both being non-negative, in closed form.

  Args:
    sizes: bytes, at least two different ones.
    times_us: microseconds; those of zero (too fast to see) are left out.

  Raises:
    ValueError: fewer than two different sizes have a positive time.
  """
  x = np.asarray(sizes, np.float64)
  t = np.asarray(times_us, np.float64)
  x, t = x[t > 0], t[t > 0]
  if len(np.unique(x)) < 2:
    raise ValueError(
      "a fit needs positive times for two different sizes, got"
      f" {len(np.unique(x))}; measure with more repeats"
    )
  weight = 1 / t**2
  weight /= weight.sum()
  mean_x, mean_t = weight @ x, weight @ t
  slope = weight @ ((x - mean_x) * (t - mean_t)) / (weight @ (x - mean_x) ** 2)
  if mean_t < slope * mean_x:
    # The best line has a negative latency: the best one through the origin.
    slope = weight @ (x * t) / (weight @ x**2)
  slope = max(slope, 0.0)
  latency = max(mean_t - slope * mean_x, 0.0)
  residual = weight @ (latency + slope * x - t) ** 2
  total = weight @ (t - mean_t) ** 2
  return LinkFit(
    latency_us=float(latency),
    bytes_per_us=float(1 / slope) if slope > 0 else math.inf,
    r_squared=float(1 - residual / total) if np.ptp(t) > 0 else 1.0,
  )


def to_toml(device_a: str, device_b: str, fit: LinkFit) -> str:
  """Returns the block to paste into a cluster file."""
  a, b = map(tf.DeviceSpec.from_string, (device_a, device_b))
  shared = (
    "# CPU devices of one process share memory: a tensor's buffer is handed"
    " over, not copied.\n"
    if a.device_type == "CPU" and a.replace(device_index=b.device_index) == b
    else ""
  )
  return (
    f"{shared}[[link.between]]  # measured, R² = {fit.r_squared:.3f}\n"
    f'devices = ["{device_a}", "{device_b}"]\n'
    f"latency_us = {fit.latency_us:.4g}\n"
    f"bytes_per_us = {fit.bytes_per_us:.6g}\n"
  )


def _num_hops(size: int) -> int:
  """Even, so that the tensor ends where it began."""
  return int(np.clip(_BYTES_PER_STEP // (2 * size), 1, _HOPS // 2)) * 2


def _ping_pong(size, hops, device_a, device_b):
  """One byte of a fresh tensor after it hopped between the devices."""
  with tf.device(device_a):
    seed = tf.compat.v1.placeholder(tf.uint8, [], name=None)
    tensor = tf.fill([size], seed)
  for hop in range(hops):
    with tf.device(device_a if hop % 2 else device_b):
      tensor = tf.identity(tensor)
  with tf.device(device_a):
    return seed, tensor[-1]


def _median_step_us(session, chain, size, repeats) -> float:
  seed, last = chain
  step = session.make_callable(last, [seed])
  elapsed = []
  for value in range(repeats + 1):
    start = time.perf_counter()
    arrived = step(np.uint8(value))
    elapsed.append((time.perf_counter() - start) * 1e6)
    if arrived != value:
      raise RuntimeError(f"sent {value}, {arrived} came back ({size} bytes)")
  return statistics.median(elapsed[1:])


def _cpu_index(device: str) -> int:
  spec = tf.DeviceSpec.from_string(device)
  return spec.device_index or 0 if spec.device_type == "CPU" else 0


def session_config(
  devices: Sequence[str], target: str
) -> tf.compat.v1.ConfigProto:
  """Returns a session's configuration that runs every op as it is placed.

  Args:
    devices: the TensorFlow devices to use.
    target: the server to use, or "" for this process.
  """
  config = tf.compat.v1.ConfigProto(allow_soft_placement=False)
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  config.graph_options.optimizer_options.opt_level = -1  # L0: merges no ops
  if not target:
    # Makes the logical CPUs exist; GPUs are found without this.
    config.device_count["CPU"] = 1 + max(map(_cpu_index, devices))
  return config


def check_devices(session: tf.compat.v1.Session, wanted: Sequence[str]) -> None:
  """Refuses devices that a session does not have.

  Raises:
    ValueError: a device is not there; the message lists those that are.
  """
  names = [device.name for device in session.list_devices()]
  specs = [tf.DeviceSpec.from_string(name) for name in names]
  for device in wanted:
    spec = tf.DeviceSpec.from_string(device)
    if not any(_matches(spec, x) for x in specs):
      raise ValueError(
        f"device {device!r} is not there; there are {', '.join(names)}"
      )


def _matches(wanted: tf.DeviceSpec, there: tf.DeviceSpec) -> bool:
  fields = ("job", "replica", "task", "device_type", "device_index")
  return all(getattr(wanted, x) in (None, getattr(there, x)) for x in fields)
