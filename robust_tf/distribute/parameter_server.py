"""A model that many processes read and one writes, and how they find another.

The processes are TensorFlow's own servers: workers compute, parameter servers
hold the published model, and one coordinator drives them all.
"""

import os
import socket
import time
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures

import numpy as np
import tensorflow as tf

from robust_tf.distribute import hooks
from robust_tf.distribute import message
from robust_tf.distribute.hooks import hanging_workers

Cluster = Mapping[str, Sequence[str]]

_RETRY_S = 0.1
# What a client of HTTP/2, and so of gRPC, says first, and what type of frame
# it is answered with (RFC 9113, sections 3.4 and 6.5).
_SETTINGS = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
  [0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]
)
_FRAME_HEADER_BYTES = 9
_ANSWER_S = 1.0  # how long an address may take before it is asked again

TORN = -1  # the version of a model that was read during an update

_VERSION = tf.TensorSpec([], tf.int64)


def serve(
  cluster: Cluster, job: str, index: int, *, num_threads: int = 1
) -> None:
  """Is one of a cluster's servers, for as long as the process lives.

  It listens on every interface, whatever its address says, and does what
  anyone asks who connects, reading and writing files included: TensorFlow has
  no passwords. Use a trusted network only.

  Args:
    cluster: the addresses of each job, `worker` and `ps`.
    job: of this process.
    index: of this process among those of its job.
    num_threads: how many cores one op may use, and how many ops run at once.

  Raises:
    ValueError: the cluster has no such process.
  """
  addresses = cluster.get(job, ())
  if not 0 <= index < len(addresses):
    raise ValueError(
      f"there is no {job} {index}: the cluster has {len(addresses)}"
    )
  _reach_directly(cluster)
  server = tf.distribute.Server(
    tf.train.ClusterSpec(cluster),
    job_name=job,
    task_index=index,
    protocol="grpc",
    config=tf.compat.v1.ConfigProto(
      intra_op_parallelism_threads=num_threads,
      inter_op_parallelism_threads=num_threads,
    ),
  )
  print(f"{job} {index} is up at {addresses[index]}", flush=True)
  server.join()


def wait_for_cluster(cluster: Cluster, timeout_s: float) -> None:
  """Returns once every worker and parameter server answers.

  Args:
    cluster: the addresses of each job.
    timeout_s: how long they may take, all together.

  Raises:
    ConnectionError: one does not answer within that time, or its address is
      not a host and a port.
  """
  deadline = time.monotonic() + timeout_s
  waiting = [
    (f"{job} {index} at {address}", address)
    for job in ("ps", "worker")
    for index, address in enumerate(cluster.get(job, ()))
  ]
  while True:
    with futures.ThreadPoolExecutor(max(1, len(waiting))) as pool:
      answers = pool.map(lambda x: _answers(x[1], deadline), waiting)
      waiting = [x for x, y in zip(waiting, answers, strict=True) if not y]
    if not waiting:
      return
    if time.monotonic() >= deadline:
      raise ConnectionError(
        f"no answer within {timeout_s:g} s from"
        f" {', '.join(name for name, _ in waiting)}: start them, or give the"
        " addresses where they listen"
      )
    time.sleep(_RETRY_S)


def connect(
  cluster: Cluster, timeout_s: float
) -> tf.distribute.coordinator.ClusterCoordinator:
  """Returns the coordinator of a cluster, which this process then is.

  It must be called before TensorFlow has run anything here. From then on this
  process listens on every interface too, see `serve`, and does not wait for
  workers that hang, see `hooks.hanging_workers`.

  Args:
    cluster: the addresses of each job, `worker` and `ps`.
    timeout_s: how long all of them may take to answer.

  Raises:
    ConnectionError: one does not.
    ValueError: there is no worker, or no parameter server.
  """
  for job in ("worker", "ps"):
    if not cluster.get(job):
      raise ValueError(f"the cluster has no {job}: it needs at least one")
  wait_for_cluster(cluster, timeout_s)
  _reach_directly(cluster)
  hooks.install(hanging_workers)
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({job: cluster[job] for job in ("worker", "ps")}),
    rpc_layer="grpc",
  )
  return tf.distribute.coordinator.ClusterCoordinator(
    tf.distribute.ParameterServerStrategy(resolver)
  )


class PublishedModel:
  """A model on the parameter servers, whole and of one version to any reader.

  Its bytes are cut into as many equal pieces as there are servers. A piece is
  one variable, with the version in front: its server replaces it and reads it
  as one tensor, so that a piece is never of two versions, and a reader sees
  whether all are of the same.
  """

  def __init__(self, specs: Sequence[tf.TensorSpec]):
    """Makes room on the parameter servers of the cluster that is connected.

    Args:
      specs: of the model's tensors.
    """
    self._specs = tuple(specs)
    devices = [
      device.name
      for device in tf.config.list_logical_devices("CPU")
      if tf.DeviceSpec.from_string(device.name).job == "ps"
    ]
    cuts = np.arange(len(devices) + 1) * message.num_bytes(specs)
    cuts = cuts // len(devices)
    self._cuts = cuts[1:-1]
    self._pieces = []
    for device, size in zip(devices, np.diff(cuts), strict=True):
      size += message.num_bytes([_VERSION])
      with tf.device(device):
        self._pieces.append(tf.Variable(tf.zeros([size], tf.uint8)))
    self._replace = tf.function(self._assign, autograph=False)

  def write(self, values: Sequence[np.ndarray], version: int) -> None:
    """Replaces the model.

    Args:
      values: an array for each tensor, of its shape and dtype.
      version: of the model.

    Raises:
      tf.errors.UnavailableError: a parameter server is gone.
    """
    stamp = np.array([version], np.int64)
    model = message.bytes_of_arrays(values)
    self._replace(
      [
        tf.constant(message.bytes_of_arrays([stamp, piece]))
        for piece in np.split(model, self._cuts)
      ]
    )

  def check(self) -> None:
    """Returns if all parameter servers answer.

    Raises:
      tf.errors.UnavailableError: one is gone.
    """
    for piece in self._pieces:
      with tf.device(piece.device):
        tf.identity(_version(piece.read_value())).numpy()

  def read(self) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the model, and its version, int64; for use in a `tf.function`.

    The version is `TORN` if servers were read before and after an update: then
    read again. A loop here would have a parameter server wait for a worker,
    and with as many workers as it has threads they would wait for ever.
    """
    pieces = [piece.read_value() for piece in self._pieces]
    start = message.num_bytes([_VERSION])
    model = tf.concat([piece[start:] for piece in pieces], axis=0)
    versions = tf.stack([_version(piece) for piece in pieces])
    torn = tf.reduce_any(versions != versions[0])
    version = tf.where(torn, tf.constant(TORN, tf.int64), versions[0])
    return message.tensors_of_bytes(model, self._specs), version

  def _assign(self, pieces: Sequence[tf.Tensor]) -> None:
    for variable, piece in zip(self._pieces, pieces, strict=True):
      variable.assign(piece, read_value=False)


def _version(piece: tf.Tensor) -> tf.Tensor:
  stamp = piece[: message.num_bytes([_VERSION])]
  return message.tensors_of_bytes(stamp, [_VERSION])[0]


def _reach_directly(cluster: Cluster) -> None:
  """Has gRPC reach the cluster past any proxy, and say so when it cannot."""
  addresses = [address for job in cluster.values() for address in job]
  hosts = sorted({address.rpartition(":")[0] for address in addresses})
  os.environ["no_grpc_proxy"] = ",".join(hosts)
  # At once when a peer is gone, not after gRPC's own retries.
  os.environ["GRPC_FAIL_FAST"] = "use_caller"


def _answers(address: str, deadline: float) -> bool:
  """Returns whether a gRPC server listens there, and does answer."""
  host, _, port = address.rpartition(":")
  left = min(_ANSWER_S, deadline - time.monotonic())
  if not port.isdecimal() or left <= 0:
    return False
  try:
    with socket.create_connection((host, int(port)), timeout=left) as peer:
      peer.settimeout(left)
      peer.sendall(_PREFACE)
      with peer.makefile("rb") as answer:
        frame = answer.read(_FRAME_HEADER_BYTES)
  except (OSError, OverflowError):
    return False
  return len(frame) == _FRAME_HEADER_BYTES and frame[3] == _SETTINGS
