"""The processes that a cluster's device names ask for.

TensorFlow names a device by its job, its task and its index there: one process
per job and task. Names without a job are devices of one process.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

_LOCAL_JOB = "localhost"


@dataclasses.dataclass(frozen=True)
class Task:
  """One process.

  Attributes:
    job: its job's name.
    index: its number in the job.
    devices: its devices, as indices into the cluster's.
    num_cpus: how many CPU devices it needs.
  """

  job: str
  index: int
  devices: tuple[int, ...]
  num_cpus: int

  @property
  def name(self) -> str:
    """How TensorFlow calls it, such as "/job:worker/task:1"."""
    return f"/job:{self.job}/task:{self.index}"


def device_key(name: str) -> tuple[tuple[str, int], str, int]:
  """Returns the job and task, the type and the index that a name says.

  Raises:
    ValueError: the name is none of TensorFlow's.
  """
  fields = _fields(name)
  kind, number = fields.get("device", ("", ""))
  task = fields.get("task", "0")
  if not (kind.isalnum() and number.isdigit() and task.isdigit()):
    raise ValueError(
      f"device {name!r} is no TensorFlow device that can run: its name should"
      ' be like "/job:worker/replica:0/task:0/device:CPU:0"'
    )
  job = fields.get("job", _LOCAL_JOB)
  return (job, int(task)), kind.upper(), int(number)


def tasks_of(device_names: Sequence[str]) -> tuple[Task, ...]:
  """Returns the processes of some devices; the first one is the client.

  Args:
    device_names: `[num_devices]`, TensorFlow's names.

  Raises:
    ValueError: a name is none of TensorFlow's.
  """
  devices, num_cpus = {}, {}
  for k, name in enumerate(device_names):
    key, kind, number = device_key(name)
    devices.setdefault(key, []).append(k)
    cpus = number + 1 if kind == "CPU" else 1
    num_cpus[key] = max(num_cpus.get(key, 1), cpus)
  return tuple(
    Task(*key, tuple(numbers), num_cpus[key])
    for key, numbers in devices.items()
  )


def cluster_spec(
  tasks: Sequence[Task], addresses: Sequence[str]
) -> dict[str, dict[int, str]]:
  """Returns job -> task -> address, as TensorFlow's `ClusterSpec` takes it."""
  spec = {}
  for task, address in zip(tasks, addresses, strict=True):
    spec.setdefault(task.job, {})[task.index] = address
  return spec


def needs_servers(tasks: Sequence[Task]) -> bool:
  """Whether processes have to find each other: devices of one are its own."""
  return len(tasks) > 1 or tasks[0].job != _LOCAL_JOB


def _fields(name: str) -> Mapping[str, str | tuple[str, str]]:
  fields = {}
  for part in name.strip("/").split("/"):
    key, *rest = part.split(":")
    if key == "device" and len(rest) == 2:
      fields[key] = (rest[0], rest[1])
    elif key.upper() in ("CPU", "GPU") and len(rest) == 1:
      fields["device"] = (key, rest[0])
    elif key != "device" and len(rest) == 1:
      fields[key] = rest[0]
  return fields
