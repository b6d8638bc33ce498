"""The cluster file of two processes, with the link between them as measured."""

import contextlib
import sys
from collections.abc import Iterator
from collections.abc import Sequence

from baechi_tf.runner.start import Host
from robust_tf.training import child_processes
from tools.benchmarks.plan_processes import BAECHI
from tools.benchmarks.plan_processes import environment
from tools.benchmarks.plan_processes import on
from tools.benchmarks.plan_processes import output_of

DEVICES = tuple(
  f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2)
)
# The largest tensor with which a link is measured: in seconds, not minutes.
LARGEST_TENSOR = {"loopback": "16MiB", "1_gbit": "4MiB", "100_mbit": "1MiB"}

_MEMORY = "8 GiB"  # more than any of the models needs
# A cluster file must have one; there is no pair of devices that it joins.
_OTHER_LINKS = "[link]\nlatency_us = 0\nbytes_per_us = 1\n"
_WAIT = """
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
for _ in range(600):
  try:
    socket.create_connection((host, int(port)), 5).close()
    break
  except OSError:
    time.sleep(0.1)
else:
  sys.exit(f"no server answers at {sys.argv[1]}")
"""


@contextlib.contextmanager
def server(hosts: Sequence[Host], log: str) -> Iterator[None]:
  """Runs TensorFlow's server on the second host until the context ends.

  Args:
    hosts: both hosts.
    log: a file for what the server writes.

  Raises:
    RunError: the server does not answer in time.
  """
  command = [*BAECHI, *_link_arguments(hosts), "--task=1", "--serve"]
  with contextlib.ExitStack() as stack:
    process = child_processes.start([*on(hosts[1]), *command], environment())
    try:
      child_processes.keep_output(process, log, stack)
      # A process in the network of the first host can reach the second.
      address = hosts[1].address
      output_of([*on(hosts[0]), sys.executable, "-c", _WAIT, address])
      yield
    finally:
      child_processes.end([process])


def write_cluster(network: str, hosts: Sequence[Host], path: str) -> None:
  """Measures the link between two hosts; writes them as a cluster file.

  A server must run on the second host.

  Raises:
    RunError: the link could not be measured.
  """
  largest = LARGEST_TENSOR[network]
  link = output_of(
    [
      *on(hosts[0]),
      *BAECHI,
      *_link_arguments(hosts),
      f"--largest={largest}",
    ]
  )
  blocks = device_blocks(_MEMORY)
  with open(path, "w", encoding="utf-8") as file:
    file.write("\n".join([*blocks, _OTHER_LINKS, link]))


def device_blocks(memory: str) -> list[str]:
  """Returns the devices of a cluster file, one in each process.

  Args:
    memory: of each device, as the file has it.
  """
  return [
    f'[[device]]\nname = "{name}"\ntype = "CPU"\nmemory = "{memory}"\n'
    for name in DEVICES
  ]


def _link_arguments(hosts: Sequence[Host]) -> list[str]:
  return [
    "bench-links",
    *(f"--host={host.address}" for host in hosts),
    *(f"--device={name}" for name in DEVICES),
  ]
