"""Measurements of a model that runs over several processes."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Usage:
  """The processor time and memory that a process used.

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
