"""Which of the processes that train together this one is.

`tf.distribute.MultiWorkerMirroredStrategy` reads the variable TF_CONFIG. What
it would wait for in vain, or fail on without saying why, is found here first.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from collections.abc import Mapping

_EXAMPLE = (
  '{"cluster": {"worker": ["host0:2222", "host1:2222"]},'
  ' "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Process:
  """A process among those of a run.

  Attributes:
    count: how many there are.
    index: of this one, among those of its job.
    is_chief: whether this one writes the results.
  """

  count: int = 1
  index: int = 0
  is_chief: bool = True


def this_process(
  strategy: str, environment: Mapping[str, str] = os.environ
) -> Process:
  """Returns which process this is.

  Args:
    strategy: of the run; only with `multi_worker` are there several.
    environment: holds TF_CONFIG.

  Raises:
    ValueError: TF_CONFIG is missing, or not as it must be.
  """
  if strategy != "multi_worker":
    return Process()
  text = environment.get("TF_CONFIG", "")
  if not text:
    raise ValueError(
      "--strategy=multi_worker needs the variable TF_CONFIG in each process,"
      f" such as {_EXAMPLE}; python -m tools.local_cluster sets it for"
      " processes on one machine"
    )
  return parse_config(text, _parse, _EXAMPLE)


def _parse(config) -> Process:
  cluster, task = (
    config_entry(config, key, dict) for key in ("cluster", "task")
  )
  jobs = {name: config_entry(cluster, name, list) for name in cluster}
  unknown = sorted(jobs.keys() - {"chief", "worker"})
  if unknown:
    raise ValueError(
      f"its cluster has the job {unknown[0]}; only workers train"
    )
  kind, index = (
    config_entry(task, "type", str),
    config_entry(task, "index", int),
  )
  if not 0 <= index < len(jobs.get(kind, [])):
    raise ValueError(f"its cluster has no task {kind} {index}")
  return Process(
    count=sum(map(len, jobs.values())),
    index=index,
    is_chief=kind == "chief" or ("chief" not in jobs and index == 0),
  )


def parse_config(text: str, parse: Callable, example: str):
  """Returns what a function makes of TF_CONFIG.

  Args:
    text: of the variable.
    parse: of its content; raises ValueError where that is not as it must be.
    example: of what it must be.

  Raises:
    ValueError: it is no JSON, or not as it must be.
  """
  try:
    return parse(json.loads(text))
  except ValueError as error:
    raise ValueError(
      f"TF_CONFIG={text} is not as it must be: {error}; an example: {example}"
    ) from None


def config_entry(config, key: str, kind: type):
  """Returns an entry of a part of TF_CONFIG.

  Args:
    config: the part, whatever it is.
    key: of the entry.
    kind: what it must be.

  Raises:
    ValueError: it is missing, or of another kind.
  """
  value = config.get(key) if isinstance(config, dict) else None
  if not isinstance(value, kind):
    raise ValueError(f"{key} is missing, or no {kind.__name__}")
  return value
