"""What all servers have in common: a model, and what may change it.

A server makes tasks, takes pushes and says what became of each. It knows
nothing of processes, clocks or networks: whoever drives it does, see
`training_loop`. It is driven by one thread.

Exactly once: a push counts if its task's serial is still awaited, and with
that it no longer is. Whatever the network does, nothing is applied twice.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task

# Why a push is refused.
LATE = "late"
NOT_AWAITED = "not awaited"
NOT_FINITE = "not finite"
REJECTED = "rejected"
TOO_STALE = "too stale"
WRONG_SHAPES = "wrong shapes"
WRONG_VERSION = "wrong version"


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What a server made of a push.

  Attributes:
    refused: why it was not taken; None if it was.
    staleness: t - tau, in versions, when it arrived; None where the push
      names no version that there was.
    mixing_weight: alpha_t, with which it was mixed in at once; None for a
      push that is refused or waits for the others of its round, and from a
      server that knows no such weight.
    advanced: whether the server has a new model now.
  """

  refused: str | None
  staleness: int | None = None
  mixing_weight: float | None = None
  advanced: bool = False


class Server(Protocol):
  """A server.

  Attributes:
    weights: its model, a float array for each exchanged variable, in order.
      They are replaced, never changed in place.
    version: t, how often the model was updated.
    wants_updates: whether devices are to push x_tau - x_new, not x_new.
  """

  weights: Sequence[np.ndarray]
  version: int
  wants_updates: bool

  def assign(self) -> list[Task]:
    """Returns the tasks to be started now; each is awaited from then on."""

  def receive(self, push: Push) -> Receipt:
    """Takes a push, or refuses it."""

  def give_up(self, task: Task) -> None:
    """Is told that a task is overdue, and need not be waited for."""

  def state(self) -> Mapping[str, object]:
    """Returns what a run that goes on needs beside the weights, as JSON."""

  def restore(
    self, state: Mapping[str, object], weights: Sequence[np.ndarray]
  ) -> None:
    """Becomes what it was when it said this; tasks that were out are lost."""


def model(weights: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
  """Returns copies of weights for a server to begin with.

  Args:
    weights: floats, of any shapes.

  Raises:
    ValueError: there are none, or one is not of finite floats.
  """
  weights = tuple(np.array(x) for x in weights)
  if not weights:
    raise ValueError("weights are empty: a server needs a model")
  for i, weight in enumerate(weights):
    if not np.issubdtype(weight.dtype, np.floating):
      raise ValueError(f"weights[{i}] is {weight.dtype}; it must be floats")
    if not np.isfinite(weight).all():
      raise ValueError(f"weights[{i}] holds values that are not finite")
  return weights


def replaced(
  old: Sequence[np.ndarray], new: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
  """Returns copies of weights that take the place of others.

  Args:
    old: the server's.
    new: of the same shapes and dtypes.

  Raises:
    ValueError: they are not, or not finite.
  """
  new = model(new)
  one, other = ([(x.shape, x.dtype) for x in side] for side in (old, new))
  if one != other:
    raise ValueError(
      f"the weights to restore have shapes {[x.shape for x in new]} and dtypes"
      f" {[str(x.dtype) for x in new]}, not those of the server's model"
    )
  return new


def moved(
  weights: Sequence[np.ndarray], steps: Sequence[np.ndarray], factor: float
) -> tuple[np.ndarray, ...] | None:
  """Returns x - factor * step, or None if that is not finite.

  Args:
    weights: x, a float array for each variable.
    steps: of the same shapes and dtypes.
    factor: alpha, or a learning rate.
  """
  factor = float(factor)  # takes the dtype of what it is multiplied with
  result = []
  with np.errstate(over="ignore", invalid="ignore"):
    for weight, step in zip(weights, steps, strict=True):
      new = np.empty_like(weight)
      np.multiply(step, factor, out=new)
      np.subtract(weight, new, out=new)
      if not np.isfinite(new).all():
        return None
      result.append(new)
  return tuple(result)


def weight_of_version(
  mixing_weight: float | Callable[[int], float], version: int
) -> float:
  """Returns alpha for the update of a model of a version.

  Args:
    mixing_weight: alpha, or a function of the version.
    version: of the model that is updated.

  Raises:
    ValueError: a function's value is outside [0, 1].
  """
  if not callable(mixing_weight):
    return float(mixing_weight)
  value = float(mixing_weight(version))
  if not 0 <= value <= 1:
    raise ValueError(
      f"mixing_weight({version}) is {value}; it must be between 0 and 1"
    )
  return value


def check_mixing_weight(mixing_weight: float | Callable[[int], float]) -> None:
  """Checks alpha, or that of the first version.

  Raises:
    ValueError: it is outside (0, 1].
  """
  if callable(mixing_weight):
    weight_of_version(mixing_weight, 0)
  elif not 0 < mixing_weight <= 1:
    raise ValueError(
      f"mixing_weight={mixing_weight} must be above 0 and at most 1"
    )


def staleness(push: Push, version: int) -> int | None:
  """Returns t - tau; None for a tau that there was not.

  Args:
    push: which came from anywhere.
    version: t, of the server's model.
  """
  tau = push.version
  if not (isinstance(tau, int | np.integer) and 0 <= tau <= version):
    return None
  return version - int(tau)


def refusal(
  push: Push, weights: Sequence[np.ndarray], version: int
) -> str | None:
  """Returns why no server can take a push; None if one can.

  Args:
    push: which came from anywhere.
    weights: of the server's model.
    version: of the server's model.
  """
  if staleness(push, version) is None:
    return WRONG_VERSION
  values = push.values
  if len(values) != len(weights) or any(
    np.shape(value) != weight.shape or np.asarray(value).dtype != weight.dtype
    for value, weight in zip(values, weights, strict=True)
  ):
    return WRONG_SHAPES
  if not all(np.isfinite(value).all() for value in values):
    return NOT_FINITE
  return None
