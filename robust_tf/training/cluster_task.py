"""What this process is to do in a cluster with parameter servers.

TF_CONFIG says it in each process: one chief, the coordinator, which trains and
writes results; workers, which do devices' tasks; and parameter servers (ps),
which hold the model that tasks start from.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Mapping

from robust_tf.training.process import config_entry
from robust_tf.training.process import parse_config

CHIEF, PS, WORKER = "chief", "ps", "worker"
_JOBS = (CHIEF, PS, WORKER)
_EXAMPLE = (
  '{"cluster": {"chief": ["host0:2222"], "ps": ["host1:2222"], "worker":'
  ' ["host2:2222", "host3:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class ClusterTask:
  """A process of a cluster.

  Attributes:
    cluster: the addresses of the processes of each job.
    job: of this process: chief, ps or worker.
    index: of this process among those of its job.
  """

  cluster: Mapping[str, tuple[str, ...]]
  job: str
  index: int

  def to_json(self) -> str:
    """Returns the text of its TF_CONFIG."""
    return json.dumps(
      {
        "cluster": {job: [*x] for job, x in self.cluster.items()},
        "task": {"type": self.job, "index": self.index},
      }
    )


def this_task(environment: Mapping[str, str] = os.environ) -> ClusterTask:
  """Returns what this process is.

  Args:
    environment: holds TF_CONFIG.

  Raises:
    ValueError: TF_CONFIG is missing, or not as it must be.
  """
  text = environment.get("TF_CONFIG", "")
  if not text:
    raise ValueError(
      "--strategy=parameter_server needs the variable TF_CONFIG in each"
      f" process, such as {_EXAMPLE}; or --local_cluster=workers:2,ps:1, which"
      " starts processes on this machine"
    )
  return parse_config(text, _parse, _EXAMPLE)


def _parse(config) -> ClusterTask:
  cluster = config_entry(config, "cluster", dict)
  task = config_entry(config, "task", dict)
  unknown = sorted(cluster.keys() - set(_JOBS))
  if unknown:
    raise ValueError(
      f"its cluster has the job {unknown[0]}; there are {', '.join(_JOBS)}"
    )
  jobs = {job: _addresses(cluster, job) for job in _JOBS}
  if len(jobs[CHIEF]) > 1:
    raise ValueError(
      f"its cluster has {len(jobs[CHIEF])} processes chief; it must have one"
    )
  counts = collections.Counter(x for job in jobs.values() for x in job)
  address, count = counts.most_common(1)[0]
  if count > 1:
    raise ValueError(f"its cluster has the address {address} {count} times")
  kind = config_entry(task, "type", str)
  index = config_entry(task, "index", int)
  if not 0 <= index < len(jobs.get(kind, ())):
    raise ValueError(f"its cluster has no task {kind} {index}")
  return ClusterTask(jobs, kind, index)


def _addresses(cluster: dict, job: str) -> tuple[str, ...]:
  addresses = config_entry(cluster, job, list)
  if not addresses:
    raise ValueError(f"its cluster has no {job}")
  for address in addresses:
    host, _, port = str(address).rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
      raise ValueError(f"the address {address!r} is not host:port")
  return tuple(addresses)
