"""The networks over which `tools.benchmarks.plans` joins its two processes."""

import contextlib
import os
from collections.abc import Iterator
from collections.abc import Mapping

from baechi_tf.runner.start import Host
from robust_tf.training.child_processes import free_addresses
from robust_tf.training.private_network import private_network
from tools import local_cluster
from tools import network_namespaces

# A network's name -> bits per second in each direction; None is loopback.
NETWORKS: Mapping[str, float | None] = {
  "loopback": None,
  "1_gbit": 1e9,
  "100_mbit": 1e8,
}
NUM_HOSTS = 2


@contextlib.contextmanager
def pinned_hosts(network: str) -> Iterator[list[Host]]:
  """Yields two hosts of a network, each with a core of its own.

  No other machine reaches them: TensorFlow's servers ask for no password.

  Args:
    network: a key of `NETWORKS`.

  Raises:
    NotAllowedError: the system gives no network of its own; says why.
    ValueError: this process may use fewer than two cores.
  """
  cores = sorted(os.sched_getaffinity(0))[:NUM_HOSTS]
  if len(cores) < NUM_HOSTS:
    raise ValueError(
      f"two processes need a core each; this one may use {len(cores)}"
    )
  with contextlib.ExitStack() as stack:
    rate = NETWORKS[network]
    if rate is None:
      prefix = stack.enter_context(private_network())
      hosts = [local_cluster.Host(x, prefix) for x in free_addresses(NUM_HOSTS)]
    else:
      links = stack.enter_context(network_namespaces.star(NUM_HOSTS))
      for link in links:
        link.set_rate(rate)
      hosts = [link.host for link in links]
    yield [
      Host(host.address, host.prefix, (core,))
      for host, core in zip(hosts, cores, strict=True)
    ]
