"""The costs of a transfer: wall time, and processor time at both ends.

The one arithmetic of simulator, list policies and bounds. A tensor of `b` bytes
is on its way for `latency_us + b / bytes_per_us`; sending it takes `send_us + b
* send_us_per_byte` of the sender's processor, receiving it as much of the
receiver's by the link's other two keys (`cluster.Link`).
"""

from typing import NamedTuple

import numpy as np

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.compiled import inlined

HALF_DUPLEX, FULL_DUPLEX, PARALLEL = range(len(CHANNELS))
SEND, RECEIVE = range(2)  # the ends of a transfer


class LinkCosts(NamedTuple):
  """A cluster's links as arrays that compiled code can take; D devices.

  By sending, then receiving device.
  """

  channel: int  # an index into CHANNELS
  latency_us: np.ndarray  # [D, D]
  us_per_byte: np.ndarray  # [D, D]
  work_us: np.ndarray  # [2, D, D], of the processor at either end
  work_us_per_byte: np.ndarray  # [2, D, D]


def link_costs(cluster: Cluster) -> LinkCosts:
  """Returns what transfers take between every two devices of a cluster."""
  return LinkCosts(
    CHANNELS.index(cluster.channel),
    cluster.latency_us,
    cluster.us_per_byte,
    np.stack([cluster.send_us, cluster.receive_us]),
    np.stack([cluster.send_us_per_byte, cluster.receive_us_per_byte]),
  )


def takes_processors(links: LinkCosts) -> bool:
  """Returns whether a transfer takes processor time on any of the links."""
  return bool(links.work_us.any() or links.work_us_per_byte.any())


def transfer_work(
  links: LinkCosts,
  end: int,
  source: int | np.ndarray,
  target: int | np.ndarray,
  size: int | np.ndarray,
) -> float | np.ndarray:
  """Returns what a transfer takes of a processor, in microseconds.

  Of one transfer or, given arrays `[c]`, of each: float64 `[c]`.

  Args:
    links: the cluster's links.
    end: `SEND` for the sender's processor, `RECEIVE` for the receiver's.
    source: the sending device.
    target: the receiving device.
    size: the tensor's bytes.
  """
  return (
    links.work_us[end, source, target]
    + size * links.work_us_per_byte[end, source, target]
  )


@inlined
def transfer_start(channel, send_free, receive_free, ready):
  """Returns when a tensor that is ready at `ready` can leave.

  `send_free` and `receive_free` are from when the sender's outgoing and the
  receiver's incoming channel are free.
  """
  if channel == PARALLEL:
    return ready
  return max(ready, send_free, receive_free)


@inlined
def wall_end(begin, links, source, target, size):
  """Returns when a tensor of `size` bytes that leaves at `begin` is there."""
  return (
    begin
    + links.latency_us[source, target]
    + size * links.us_per_byte[source, target]
  )


def receive_begin(begin: float, end: float, work: float) -> float:
  """Returns when the receiver's processor starts on a transfer.

  So that it is done as the tensor is there, unless `work` is longer than the
  transfer from `begin` to `end`.
  """
  return max(begin, end - work)
