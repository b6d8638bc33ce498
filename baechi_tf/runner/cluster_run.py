"""Starts the processes of a cluster, has one of them run steps, and measures.

A process for each task that the devices' names mention, on cores of its own.
The first device's is the client: it loads the model and calls its step; the
others serve. `local_run` starts all of them here.
"""

import contextlib
import dataclasses
import os
import socket
import tempfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.runner import child as processes
from baechi_tf.runner import memory_limit
from baechi_tf.runner import worker
from baechi_tf.runner.child import Child
from baechi_tf.runner.tasks import cluster_spec
from baechi_tf.runner.tasks import needs_servers
from baechi_tf.runner.tasks import Task
from baechi_tf.runner.tasks import tasks_of

START_S = 120.0  # for a process to import TensorFlow and to serve
_TRACED_STEPS = 5
_FIRST_PORT = 2222  # of a network that nobody else is in


@dataclasses.dataclass(frozen=True)
class Host:
  """Where a process runs.

  Attributes:
    address: where the others find it, as host:port.
    prefix: what its command begins with, such as `ip netns exec NAME`.
    cores: the processor cores that it is pinned to; none for any.
  """

  address: str
  prefix: tuple[str, ...] = ()
  cores: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
  """What a process used.

  Attributes:
    cpu_us: processor time.
    peak_bytes: its largest resident memory so far.
    resident_bytes: its resident memory now.
  """

  cpu_us: float
  peak_bytes: int
  resident_bytes: int


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Steps of a model, measured.

  Attributes:
    times_us: wall time of each step, at the client.
    cpu_us: processor time of each task's process in a step, on average.
    peak_bytes: of each task's process, its largest resident memory so far
      beyond what it had before any model was loaded.
  """

  times_us: tuple[float, ...]
  cpu_us: tuple[float, ...]
  peak_bytes: tuple[int, ...]

  @property
  def median_us(self) -> float:
    """The median step."""
    return float(np.median(self.times_us))

  @property
  def least_us(self) -> float:
    """The fastest step."""
    return min(self.times_us)


@dataclasses.dataclass(frozen=True)
class Send:
  """A tensor that leaves a device in every step.

  Attributes:
    tensor: its name in the graph that runs, such as "dense/MatMul".
    receiver: the device that it goes to.
  """

  tensor: str
  receiver: str


@dataclasses.dataclass(frozen=True)
class Executed:
  """The graph that TensorFlow runs for a step, after its own rewriting.

  Attributes:
    device_of: the device of each node.
    sends: by the name of the node that sends.
  """

  device_of: Mapping[str, str]
  sends: Mapping[str, Send]


@dataclasses.dataclass(frozen=True)
class TracedOp:
  """One op that ran.

  Attributes:
    name: its name in the graph that TensorFlow ran.
    op_type: its type, such as "MatMul".
    task: the number of its process.
    thread: the number of its thread there.
    begin_us: its start, counted from the step's.
    end_us: its end, counted likewise.
  """

  name: str
  op_type: str
  task: int
  thread: int
  begin_us: float
  end_us: float


@dataclasses.dataclass(frozen=True)
class StepTrace:
  """A step with the ops that ran in it.

  Attributes:
    time_us: how long it took, recording included.
    ops: those of all processes.
  """

  time_us: float
  ops: tuple[TracedOp, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ClusterRun:
  """Processes that are up, the first of them the client.

  Attributes:
    tasks: what they are.
    children: a process for each task.
    idle: what each used before any model was loaded.
    directory: for files that the client reads; it goes with the processes.
    groups: each process' control group; empty without limits.
    limits: each process' memory limit in bytes; empty without limits.
  """

  tasks: tuple[Task, ...]
  children: tuple[Child, ...]
  idle: tuple[Usage, ...]
  directory: str
  groups: tuple[str, ...] = ()
  limits: tuple[int, ...] = ()

  def load(
    self,
    key: str,
    path: str,
    signature: str | None,
    inputs: Mapping[str, np.ndarray],
    *,
    tags: Iterable[str] | None = None,
    device: str | None = None,
  ) -> Executed:
    """Has the client load a model, and run its step once.

    Args:
      key: what `run` calls it.
      path: a SavedModel, placed or not.
      signature: its step; None for the only one, else serving_default.
      inputs: a value for every feed, used for every step.
      tags: which graph; None if there is only one.
      device: where all of a model goes that is not placed; None for a placed
        one.

    Returns:
      What TensorFlow runs for a step.

    Raises:
      ChildProcessError: a process ended, or the model does not load or run.
    """
    archive = os.path.join(self.directory, f"{key}.npz")
    np.savez(archive, **inputs)
    answer = self._ask(
      0,
      {
        "ask": "load",
        "key": key,
        "path": os.path.abspath(path),
        "signature": signature,
        "tags": None if tags is None else list(tags),
        "inputs": archive,
        "device": device,
      },
    )
    return Executed(
      answer["device_of"],
      {name: Send(*x) for name, x in answer["sends"].items()},
    )

  def unload(self, key: str) -> None:
    """Has the client free a model.

    Raises:
      ChildProcessError: a process ended.
    """
    self._ask(0, {"ask": "unload", "key": key})

  def run(self, key: str, num_steps: int) -> Measurement:
    """Has the client run steps of a model that was loaded.

    Args:
      key: the model's.
      num_steps: how many, at least 1.

    Raises:
      ChildProcessError: a process ended, or a step fails.
    """
    before = self.usage()
    times_us = self._ask(0, {"ask": "run", "key": key, "num_steps": num_steps})[
      "times_us"
    ]
    after = self.usage()
    return Measurement(
      tuple(times_us),
      tuple(
        (y.cpu_us - x.cpu_us) / num_steps
        for x, y in zip(before, after, strict=True)
      ),
      tuple(
        max(0, y.peak_bytes - x.resident_bytes)
        for x, y in zip(self.idle, after, strict=True)
      ),
    )

  def trace(self, key: str) -> StepTrace:
    """Has the client run a few steps and returns the ops of the median one.

    Args:
      key: the model's, which has run before.

    Raises:
      ChildProcessError: a process ended, or a step fails.
    """
    directories = [
      os.path.join(self.directory, f"trace_{key}_{i}")
      for i in range(len(self.children))
    ]
    self._ask_all("start_trace", directories)
    steps = self._ask(0, {"ask": "run", "key": key, "num_steps": _TRACED_STEPS})
    answers = self._ask_all("stop_trace", directories)
    times_us = steps["times_us"]
    middle = sorted(range(len(times_us)), key=times_us.__getitem__)[
      len(times_us) // 2
    ]
    begin = steps["begin_us"][middle]
    end = begin + times_us[middle]
    return StepTrace(
      times_us[middle],
      tuple(
        TracedOp(name, op_type, i, thread, first - begin, last - begin)
        for i, answer in enumerate(answers)
        for name, op_type, thread, first, last in answer["events"]
        if begin <= first < end
      ),
    )

  def _ask_all(self, what: str, directories: Sequence[str]):
    pairs = zip(self.children, directories, strict=True)
    for child, directory in pairs:
      child.tell({"ask": what, "directory": directory})
    return [self._answer(i) for i in range(len(self.children))]

  def usage(self) -> tuple[Usage, ...]:
    """Returns what each process has used up to now."""
    for child in self.children:
      child.tell({"ask": "usage"})
    return tuple(Usage(**self._answer(i)) for i in range(len(self.children)))

  def _ask(self, i: int, question: processes.Message) -> processes.Message:
    self.children[i].tell(question)
    return self._answer(i)

  def _answer(self, i: int) -> processes.Message:
    try:
      return processes.answer(self.children[i], self.children)
    except processes.LostError as error:
      raise _explained(self, error) from None


@contextlib.contextmanager
def local_run(
  cluster: Cluster,
  *,
  hosts: Sequence[Host] | None = None,
  private: bool = True,
  limit_memory: bool = False,
  inter_op: int = 2,
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
    inter_op: ops that a process runs at the same time.

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
  if len(hosts) != len(tasks):
    raise ValueError(
      f"{len(hosts)} hosts for the {len(tasks)} processes of the cluster's"
      f" devices: {', '.join(x.name for x in tasks)}"
    )
  serving = needs_servers(tasks)
  with contextlib.ExitStack() as stack:
    directory = stack.enter_context(tempfile.TemporaryDirectory("baechi_run"))
    groups = ()
    if limit_memory:
      groups = tuple(_groups(stack, len(tasks)))
    children = []
    stack.callback(processes.end, children)
    network = "new" if serving and private and own_hosts else None
    for i, (task, host) in enumerate(zip(tasks, hosts, strict=True)):
      child = processes.start(
        task.name,
        os.path.join(directory, f"{i}.log"),
        module=worker.__name__,
        prefix=host.prefix,
      )
      children.append(child)
      if groups:
        memory_limit.put(groups[i], child.process.pid)
      pid = _set_up(child, task, host, network, inter_op)
      if network == "new":
        network = pid
    spec = cluster_spec(tasks, [x.address for x in hosts]) if serving else None
    idle = _start_servers(tasks, children, spec)
    limits = ()
    if groups:
      limits = tuple(
        memory_limit.limit(
          group, sum(cluster.devices[k].memory_bytes for k in task.devices)
        )
        for group, task in zip(groups, tasks, strict=True)
      )
    yield ClusterRun(tasks, tuple(children), idle, directory, groups, limits)


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
    name = f"baechi-{os.getpid()}-{i}"
    try:
      yield stack.enter_context(memory_limit.memory_group(name))
    except OSError as error:
      raise PermissionError(
        f"this system allows no memory limit for a process ({error}); run"
        " without --limit-memory"
      ) from None


def _set_up(child, task, host, network, inter_op: int) -> int:
  """Returns the process' id, once it is pinned and in its network."""
  child.tell(
    {
      "ask": "setup",
      "cores": host.cores,
      "network": network,
      "num_cpus": task.num_cpus,
      "intra_op": len(host.cores),
      "inter_op": inter_op,
    }
  )
  try:
    return processes.answer(child, [child], START_S)["pid"]
  except processes.LostError:
    raise
  except ChildProcessError as error:
    raise PermissionError(
      f"this system gives the processes no network of their own ({error}); with"
      " --listen-on-network they do without"
    ) from None


def _start_servers(tasks, children, spec) -> tuple[Usage, ...]:
  """Has all but the first serve, then the first connect; returns their usage.

  Raises:
    ChildProcessError, TimeoutError: a process does not come up.
  """
  for i, (child, task) in enumerate(zip(children, tasks, strict=True)):
    question = {"cluster": spec, "job": task.job, "index": task.index}
    if i:
      child.tell({"ask": "serve", **question})
  idle = [processes.answer(child, children, START_S) for child in children[1:]]
  question = {"cluster": spec, "job": tasks[0].job, "index": tasks[0].index}
  children[0].tell({"ask": "connect", **question})
  first = processes.answer(children[0], children, START_S)
  del first["devices"]
  return tuple(Usage(**x) for x in (first, *idle))


def _explained(run: ClusterRun, error: processes.LostError) -> Exception:
  """Returns the error, or that the memory limit was the reason."""
  i = run.children.index(error.child)
  if run.groups and memory_limit.was_exceeded(run.groups[i]):
    return ChildProcessError(
      f"the process of {error.child.name} was killed: it needed more than its"
      f" memory limit of {run.limits[i]:,} bytes"
    )
  return error
