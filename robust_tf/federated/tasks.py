"""What the server asks a device to do, and what the device sends back.

A task says everything that its result depends on, beside the model it starts
from: whoever runs it, and however often, the result is the same. That is what
makes it harmless to run a task again when the process that ran it has died.

A device goes through its own examples in an order that is shuffled anew for
each task, and again each time round.
"""

import dataclasses
from collections.abc import Collection
from collections.abc import Sequence

import numpy as np

# Sets the streams of random numbers apart from each other.
_EXAMPLES, _STEPS, _SEED = 2, 3, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Some local steps of one device.

  Attributes:
    serial: no two tasks of a run share one; they ascend.
    device: who does it.
    version: of the server's model when the task was made.
    examples: which training examples each local step sees, int32 `[H, B]`.
    flipped: whether the device's labels are flipped, y -> classes - 1 - y.
    seed: of what is random in the model, such as dropout.
  """

  serial: int
  device: int
  version: int
  examples: np.ndarray
  flipped: bool
  seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Push:
  """What a device sends.

  Attributes:
    task: what it was asked to do.
    version: tau, of the model that it started from.
    values: a tensor for each exchanged variable of the model, in order; the
      device's model x_new, or its update x_tau - x_new where the server asks
      for that.
  """

  task: Task
  version: int
  values: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceTasks:
  """The devices of a run, and how much each does at a time.

  Attributes:
    parts: the examples of each device, as indices into the training examples.
    batch_size: B, examples that a local step sees; a device that holds less
      sees some of its examples more than once.
    local_steps: H, or the smallest and the largest H, of which one is drawn
      for each task.
    seed: of the order of examples, and of the draws.
    flipped: devices whose labels are flipped.
    flipped_from: the version from which on they are.

  Raises:
    ValueError: there are no local steps, a device holds no example, or
      `flipped` names one twice or one that there is not.
  """

  parts: Sequence[np.ndarray]
  batch_size: int
  local_steps: int | tuple[int, int]
  seed: int
  flipped: Collection[int] = ()
  flipped_from: int = 0

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")
    fewest, most = self._bounds
    if not 1 <= fewest <= most:
      raise ValueError(
        f"local_steps={self.local_steps} must be at least 1, or the smallest"
        " and the largest number of local steps"
      )
    empty = [i for i, part in enumerate(self.parts) if not len(part)]
    if empty:
      raise ValueError(f"device {empty[0]} holds no example")
    if len(set(self.flipped)) < len(self.flipped):
      raise ValueError(f"flipped={[*self.flipped]} names a device twice")
    outside = [x for x in self.flipped if not 0 <= x < len(self.parts)]
    if outside:
      raise ValueError(
        f"there is no device {outside[0]}: there are {len(self.parts)}, from 0"
      )

  @property
  def num_devices(self) -> int:
    """How many devices there are, n."""
    return len(self.parts)

  def task(self, serial: int, device: int, version: int) -> Task:
    """Returns a device's next task.

    Args:
      serial: of the task.
      device: who does it.
      version: of the server's model now.
    """
    fewest, most = self._bounds
    steps = fewest
    if most > fewest:
      steps = int(self._rng(_STEPS, device, serial).integers(fewest, most + 1))
    return Task(
      serial=serial,
      device=device,
      version=version,
      examples=self._examples(device, serial, steps),
      flipped=device in self.flipped and version >= self.flipped_from,
      seed=int(self._rng(_SEED, device, serial).integers(2**31)),
    )

  @property
  def _bounds(self) -> tuple[int, int]:
    if isinstance(self.local_steps, int):
      return self.local_steps, self.local_steps
    return self.local_steps

  def _examples(self, device: int, serial: int, steps: int) -> np.ndarray:
    part = np.asarray(self.parts[device])
    rng = self._rng(_EXAMPLES, device, serial)
    rounds = -(-steps * self.batch_size // len(part))
    order = np.concatenate([rng.permutation(part) for _ in range(rounds)])
    examples = order[: steps * self.batch_size]
    return examples.reshape(steps, self.batch_size).astype(np.int32)

  def _rng(self, stream: int, device: int, serial: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, stream, device, serial])
