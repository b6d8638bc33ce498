"""Workers and parameter servers on loopback, each a process that can be lost.

    with federated_servers.run(num_workers=2, num_servers=1) as servers:
      coordinator = parameter_server.connect(servers.cluster, timeout_s=60)
      servers.kill("worker", 0)
      servers.start("worker", 0)

Whatever happens to the process that starts them, they end with it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Sequence

from robust_tf.training import child_processes


class Servers:
  """The processes of a cluster, without its coordinator.

  Attributes:
    cluster: the addresses of each job.
  """

  def __init__(
    self, num_workers: int, num_servers: int, network: Sequence[str]
  ):
    """Chooses the addresses; starts nothing."""
    self._network = network
    addresses = child_processes.free_addresses(num_workers + num_servers)
    self.cluster = {
      "worker": addresses[:num_workers],
      "ps": addresses[num_workers:],
    }
    self._processes: dict[tuple[str, int], subprocess.Popen] = {}

  def start(self, job: str, index: int) -> None:
    """Starts a process; it does not answer yet."""
    command = (sys.executable, "-m", __name__, json.dumps(self.cluster))
    self._processes[job, index] = child_processes.start(
      [*self._network, *command, job, str(index)],
      child_processes.peer_environment(os.environ),
      stdin=subprocess.PIPE,
      shows_output=True,
    )

  def start_all(self) -> None:
    """Starts all processes."""
    for job, addresses in self.cluster.items():
      for index in range(len(addresses)):
        self.start(job, index)

  def kill(self, job: str, index: int) -> None:
    """Ends a process at once, as the loss of its machine would."""
    process = self._processes.pop((job, index))
    process.kill()
    process.wait()
    process.stdin.close()

  def pid(self, job: str, index: int) -> int:
    """Returns the number of a process."""
    return self._processes[job, index].pid

  def stop(self, job: str, index: int) -> None:
    """Has a process hang."""
    self._processes[job, index].send_signal(signal.SIGSTOP)

  def resume(self, job: str, index: int) -> None:
    """Has a process that hangs go on."""
    self._processes[job, index].send_signal(signal.SIGCONT)

  def kill_all(self) -> None:
    """Ends all processes."""
    for job, index in list(self._processes):
      self.kill(job, index)


@contextlib.contextmanager
def run(
  num_workers: int, num_servers: int, network: Sequence[str] = ()
) -> Iterator[Servers]:
  """Starts servers, and ends them at the end; they may not answer yet.

  Args:
    num_workers: how many workers.
    num_servers: how many parameter servers.
    network: what a command begins with that runs in their network, see
      `private_network`; the coordinator must be in it too.
  """
  servers = Servers(num_workers, num_servers, network)
  try:
    servers.start_all()
    yield servers
  finally:
    servers.kill_all()


def main(cluster: str, job: str, index: str) -> None:
  """Is one of the servers."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  child_processes.end_with_parent(0)
  from robust_tf.distribute import parameter_server  # after the variables

  parameter_server.serve(json.loads(cluster), job, int(index))


if __name__ == "__main__":
  main(*sys.argv[1:])
