"""Processes that are up, of which the client loads models and runs their steps.

See `start` for how they come up.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from baechi_tf.runner import child as processes
from baechi_tf.runner import memory_limit
from baechi_tf.runner.child import Child
from baechi_tf.runner.measurement import Executed
from baechi_tf.runner.measurement import Measurement
from baechi_tf.runner.measurement import Send
from baechi_tf.runner.measurement import StepTrace
from baechi_tf.runner.measurement import TracedOp
from baechi_tf.runner.measurement import Usage
from baechi_tf.runner.tasks import Task

_TRACED_STEPS = 5
# TensorFlow's executor learns in some 100 steps which ops are short, and runs
# them at once: docs/order.md.
_WARM_UP_STEPS = 100
_WARM_UP_S = 10.0


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

  def warm_up(self, key: str) -> None:
    """Has the client run steps of a model until their time has settled.

    Args:
      key: the model's. Its first step, which sends graphs, has run: `load`.

    Raises:
      ChildProcessError: a process ended, or a step fails.
    """
    step_us = self.run(key, 1).median_us
    affordable = int(_WARM_UP_S * 1e6 / step_us)
    self.run(key, min(max(affordable, 1), _WARM_UP_STEPS))

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
      tempfile.mkdtemp(prefix="trace_", dir=self.directory)
      for _ in self.children
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


def _explained(run: ClusterRun, error: processes.LostError) -> Exception:
  """Returns the error, or that the memory limit was the reason."""
  i = run.children.index(error.child)
  if run.groups and memory_limit.was_exceeded(run.groups[i]):
    return ChildProcessError(
      f"the process of {error.child.name} was killed: it needed more than its"
      f" memory limit of {run.limits[i]:,} bytes. That is its devices' memory,"
      " and what it had in use before a model was loaded; a model's graph, and"
      " tensors on their way, take more than a plan counts: give the devices"
      " less memory when you place the model, or more when you run it"
    )
  return error
