"""Starts the processes of a cluster, and ends them.

A process for each task that the devices' names mention. The first device's is
the client; the others serve. `local_run` starts all of them here, each on cores
of its own; `remote_run` starts the client, and `serve` one of the others.
"""

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence

from baechi_tf.cluster import Cluster
from baechi_tf.host_addresses import ANSWER_S
from baechi_tf.host_addresses import check_answer
from baechi_tf.host_addresses import split_address
from baechi_tf.runner import child as processes
from baechi_tf.runner import memory_limit
from baechi_tf.runner import worker
from baechi_tf.runner.child import Child
from baechi_tf.runner.cluster_run import ClusterRun
from baechi_tf.runner.measurement import Usage
from baechi_tf.runner.tasks import cluster_spec
from baechi_tf.runner.tasks import device_key
from baechi_tf.runner.tasks import needs_servers
from baechi_tf.runner.tasks import Task
from baechi_tf.runner.tasks import tasks_of

START_S = 120.0  # for a process to import TensorFlow and to serve
_POLL_S = 0.2
_FIRST_PORT = 2222  # of a network that nobody else is in


@dataclasses.dataclass(frozen=True)
class Host:
  """The place where a process runs.

  Attributes:
    address: where the others find it, as host:port.
    prefix: what its command begins with, such as `ip netns exec NAME`.
    cores: the processor cores that it is pinned to; none for any.
  """

  address: str
  prefix: tuple[str, ...] = ()
  cores: tuple[int, ...] = ()


@contextlib.contextmanager
def local_run(
  cluster: Cluster,
  *,
  hosts: Sequence[Host] | None = None,
  private: bool = True,
  limit_memory: bool = False,
) -> Iterator[ClusterRun]:
  """Starts the processes of a cluster on this machine; ends them all.

  Args:
    cluster: whose devices' names say which processes there are.
    hosts: for each task in the order of `tasks_of`, where it runs; by default
      free ports and an equal part of this process' cores each.
    private: whether the processes are in a new network that nothing else
      reaches. `hosts` with a prefix are in networks of their own.
    limit_memory: whether the system kills a process that needs more than the
      memory of its devices, beyond what it needs without a model.

  Raises:
    ChildProcessError: a process ended before it was up.
    TimeoutError: a process is not up in time.
    PermissionError: the system refuses the network or the limit.
    ValueError: a device's name is none of TensorFlow's, or there are not as
      many hosts as tasks.
  """
  tasks = tasks_of(cluster.device_names)
  own_hosts = hosts is None
  if hosts is None:
    hosts = local_hosts(len(tasks), private)
  _check_count(tasks, [x.address for x in hosts])
  serving = needs_servers(tasks)
  with contextlib.ExitStack() as stack:
    groups = ()
    if limit_memory:
      groups = tuple(_groups(stack, len(tasks)))
    directory, children = stack.enter_context(_children())
    network = "new" if serving and private and own_hosts else None
    for i, (task, host) in enumerate(zip(tasks, hosts, strict=True)):
      child = _start(task, directory, host)
      children.append(child)
      if groups:
        memory_limit.put(groups[i], child.process.pid)
      pid = _set_up(child, task, host, network)
      if network == "new":
        network = pid
    spec = cluster_spec(tasks, [x.address for x in hosts]) if serving else None
    idle = _start_servers(cluster, tasks, children, spec)
    limits = ()
    if groups:
      limits = tuple(
        memory_limit.limit(
          group, sum(cluster.devices[k].memory_bytes for k in task.devices)
        )
        for group, task in zip(groups, tasks, strict=True)
      )
    yield ClusterRun(tasks, tuple(children), idle, directory, groups, limits)


@contextlib.contextmanager
def remote_run(
  cluster: Cluster, addresses: Sequence[str]
) -> Iterator[ClusterRun]:
  """Starts the client here, which uses servers that run already; ends it.

  Args:
    cluster: whose devices' names say which processes there are.
    addresses: "host:port" for each task in the order of `tasks_of`; the first
      is the client's.

  Raises:
    ChildProcessError: the client ended, or does not reach a server.
    TimeoutError: a server does not answer in time.
    ValueError: an address is none, nothing listens there, or there are not as
      many as tasks.
  """
  tasks = tasks_of(cluster.device_names)
  check_hosts(tasks, addresses)
  with _children() as (directory, children):
    host = Host(addresses[0], cores=tuple(sorted(os.sched_getaffinity(0))))
    children.append(_start(tasks[0], directory, host))
    _set_up(children[0], tasks[0], host, None)
    spec = cluster_spec(tasks, addresses)
    idle = _start_servers(cluster, tasks[:1], children, spec)
    yield ClusterRun(tasks, tuple(children), idle, directory)


class ServerMissingError(ValueError):
  """No server answers at an address."""


def serve(cluster: Cluster, addresses: Sequence[str], index: int) -> None:
  """Serves one of a cluster's tasks, until it is interrupted.

  Args:
    cluster: whose devices' names say which processes there are.
    addresses: "host:port" for each task in the order of `tasks_of`.
    index: which of them this is.

  Raises:
    ChildProcessError: the server does not start, or ends.
    ValueError: the addresses or the index are refused by `check_server`.
  """
  tasks = tasks_of(cluster.device_names)
  check_server(tasks, addresses, index)
  with _children() as (directory, children):
    host = Host(addresses[index], cores=tuple(sorted(os.sched_getaffinity(0))))
    child = _start(tasks[index], directory, host)
    children.append(child)
    _set_up(child, tasks[index], host, None)
    _ask(child, "serve", tasks[index], cluster_spec(tasks, addresses))
    processes.answer(child, children, START_S)
    while True:
      processes.check_alive(children)
      time.sleep(_POLL_S)


def check_hosts(tasks: Sequence[Task], addresses: Sequence[str]) -> None:
  """Refuses addresses where no server listens, which would be waited for.

  Args:
    tasks: the processes; the first is the client, which is not running yet.
    addresses: "host:port" of each.

  Raises:
    ValueError: an address does not parse or is there twice, nothing answers
      there within `ANSWER_S`, or there are not as many as tasks.
  """
  _check_addresses(tasks, addresses)
  for i, (task, address) in enumerate(zip(tasks, addresses, strict=True)):
    if i:
      try:
        check_answer(address)
      except OSError as error:
        raise ServerMissingError(
          f"{task.name}: no server answers at {address} within {ANSWER_S:g} s"
          f" ({error}); start it there first: baechi run ... --task {i}"
          f" --serve, or baechi_tf.serve(…, {i})"
        ) from None


def check_server(
  tasks: Sequence[Task], addresses: Sequence[str], index: int
) -> None:
  """Refuses to serve a task that is not there, or under a bad address.

  Args:
    tasks: the processes; the first is the client, which does not serve.
    addresses: "host:port" of each.
    index: the task to serve.

  Raises:
    ValueError: an address does not parse or is there twice, there are not as
      many as tasks, or no task after the first has this index.
  """
  _check_addresses(tasks, addresses)
  if index not in range(1, len(addresses)):
    raise ValueError(
      f"index= must be that of a host after the first, 1 to"
      f" {len(addresses) - 1}, got {index}, which serves nothing"
    )


def _check_addresses(tasks: Sequence[Task], addresses: Sequence[str]) -> None:
  _check_count(tasks, addresses)
  for i, address in enumerate(addresses):
    split_address(address)
    if address in addresses[:i]:
      raise ValueError(
        f"address {address} is given twice: each process needs its own"
      )


def _check_count(tasks: Sequence[Task], addresses: Sequence[str]) -> None:
  if len(tasks) != len(addresses):
    raise ValueError(
      f"{len(addresses)} hosts for the {len(tasks)} processes of the cluster's"
      f" devices: {', '.join(x.name for x in tasks)}"
    )


def local_hosts(count: int, private: bool = True) -> list[Host]:
  """Returns where some processes of this machine run: ports, and cores.

  Args:
    count: how many processes.
    private: whether they are in a network where every port is free.
  """
  cores = sorted(os.sched_getaffinity(0))
  if private:
    ports = range(_FIRST_PORT, _FIRST_PORT + count)
  else:
    ports = _free_ports(count)
  return [
    Host(f"localhost:{port}", cores=_share(cores, i, count))
    for i, port in enumerate(ports)
  ]


def core_note(num_processes: int) -> str | None:
  """Returns a warning if processes of this machine must share its cores."""
  num_cores = len(os.sched_getaffinity(0))
  if num_processes <= num_cores:
    return None
  return (
    f"{num_processes} processes share {num_cores}"
    f" {'core' if num_cores == 1 else 'cores'}: the step takes longer than on"
    " cores of their own; plan with the same `processor` for the devices that"
    " share one, or run on more hosts"
  )


def _share(cores: Sequence[int], i: int, count: int) -> tuple[int, ...]:
  """Returns the cores of process `i`: equal parts, or one that it shares."""
  if len(cores) < count:
    return (cores[i % len(cores)],)
  return tuple(cores[i * len(cores) // count : (i + 1) * len(cores) // count])


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [
      stack.enter_context(socket.create_server(("localhost", 0)))
      for _ in range(count)
    ]
    return [x.getsockname()[1] for x in sockets]


def _groups(stack: contextlib.ExitStack, count: int) -> Iterator[str]:
  for i in range(count):
    try:
      yield stack.enter_context(memory_limit.memory_group(i))
    except OSError as error:
      raise PermissionError(
        f"this system allows no memory limit for a process ({error}); run"
        " without limit_memory=True"
      ) from None


@contextlib.contextmanager
def _children() -> Iterator[tuple[str, list[Child]]]:
  """Yields a directory and a list of processes, which it ends before it."""
  with tempfile.TemporaryDirectory(prefix="baechi_run") as directory:
    children = []
    try:
      yield directory, children
    finally:
      processes.end(children)


def _ask(child: Child, what: str, task: Task, spec) -> None:
  """Tells a process to serve as a task of the cluster, or to connect as it."""
  child.tell(
    {"ask": what, "cluster": spec, "job": task.job, "index": task.index}
  )


def _start(task: Task, directory: str, host: Host) -> Child:
  return processes.start(
    task.name,
    os.path.join(directory, f"{task.job}_{task.index}.log"),
    module=worker.__name__,
    prefix=host.prefix,
  )


def _set_up(child, task, host, network) -> int:
  """Returns the process' id, once it is pinned and in its network."""
  child.tell(
    {
      "ask": "setup",
      "directory": os.path.dirname(child.log),
      "cores": host.cores,
      "network": network,
      "num_cpus": task.num_cpus,
      "intra_op": len(host.cores),
    }
  )
  try:
    return processes.answer(child, [child], START_S)["pid"]
  except processes.LostError:
    raise
  except ChildProcessError as error:
    raise PermissionError(
      f"this system gives the processes no network of their own ({error}); with"
      " private=False they do without"
    ) from None


def _start_servers(cluster, tasks, children, spec) -> tuple[Usage, ...]:
  """Has all but the first serve, then the first connect; returns their usage.

  Raises:
    ChildProcessError, TimeoutError: a process does not come up.
    ValueError: a device is not there.
  """
  for child, task in list(zip(children, tasks, strict=True))[1:]:
    _ask(child, "serve", task, spec)
  idle = [processes.answer(child, children, START_S) for child in children[1:]]
  _ask(children[0], "connect", tasks[0], spec)
  first = processes.answer(children[0], children, START_S)
  there = first.pop("devices")
  for name in cluster.device_names:
    if device_key(name) not in map(device_key, there):
      raise ValueError(
        f"the cluster's device {name} is not there; the processes have"
        f" {', '.join(there)}"
      )
  return tuple(Usage(**x) for x in (first, *idle))
