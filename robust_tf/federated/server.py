"""What all servers have in common: a model, and what may change it.

A server makes tasks, takes pushes and says what became of each. It knows
nothing of processes, clocks or networks: whoever drives it does, see
`training_loop`. It is driven by one thread.

Exactly once: a push counts if its task's serial is still awaited, and with
that it no longer is. Whatever the network does, nothing is applied twice.
"""

import dataclasses
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
      push that is refused, or waits for the others of its round.
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


def refusal(
  push: Push, weights: Sequence[np.ndarray], version: int
) -> str | None:
  """Returns why no server can take a push; None if one can.

  Args:
    push: which came from anywhere.
    weights: of the server's model.
    version: of the server's model.
  """
  if not (
    isinstance(push.version, int | np.integer) and 0 <= push.version <= version
  ):
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
