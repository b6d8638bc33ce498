"""Zeno++: each push is judged by a gradient of the server's own, then taken.

With v, a gradient on examples that the server holds, some versions old at
most, and u~ the push u scaled to the length of v, the server moves

    x_t = x_{t-1} - gamma u~    where    gamma <v, u~> - rho ||u~||^2
                                         >= -gamma epsilon,

and rejects the push elsewhere. So nothing need be known of how many devices
are Byzantine.

Xie, Koyejo and Gupta, Zeno++: Robust Fully Asynchronous SGD, ICML 2020 (arXiv
1903.07020), Algorithm 1.
"""

import base64
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_tf.aggregators.zeno import zeno_plus_plus
from robust_tf.federated import server
from robust_tf.federated.asynchronous_tasks import AsynchronousTasks
from robust_tf.federated.sampling import permutation
from robust_tf.federated.sampling import Sample
from robust_tf.federated.server import Receipt
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task


class ZenoPlusPlus:
  """A `server.Server` whose model moves with every push that it accepts.

  A push is an update x_tau - x_new. Only its direction counts, so that of one
  local step stands for the gradient, whatever the device's learning rate.
  """

  wants_updates = True

  def __init__(
    self,
    weights: Sequence[np.ndarray],
    tasks: DeviceTasks,
    *,
    validation_gradient: Callable[[Sequence[np.ndarray], int], Sequence[Any]],
    learning_rate: float,
    refresh_every: int = 10,
    rho: float = 0.001,
    epsilon: float = 0.0,
    max_staleness: int | None = None,
    concurrency: int = 4,
    sample: Sample = permutation,
  ):
    """Begins at version 0.

    Args:
      weights: x_0, a float array for each exchanged variable, which must all
        be trainable.
      tasks: what devices do.
      validation_gradient: v as a function of the weights and the version, an
        array for each of the weights; see `zeno_server.validation_gradient`.
      learning_rate: gamma, of the server's steps.
      refresh_every: versions after which v is computed anew.
      rho: how much the length counts against a push.
      epsilon: how much the loss may rise, as far as v can tell.
      max_staleness: the staleness up to which pushes are taken; None for any.
      concurrency: how many devices are at work at a time.
      sample: draws the devices, see `sampling`.

    Raises:
      ValueError: an argument is out of bounds, weights are not finite, or v is
        not of their shapes.
    """
    for name, value in (("rho", rho), ("epsilon", epsilon)):
      if not (value >= 0 and np.isfinite(value)):
        raise ValueError(
          f"{name}={value} must be a finite number of at least 0"
        )
    if not (learning_rate > 0 and np.isfinite(learning_rate)):
      raise ValueError(
        f"learning_rate={learning_rate} must be a finite number above 0"
      )
    if refresh_every < 1:
      raise ValueError(f"refresh_every={refresh_every} must be at least 1")
    self.weights = server.model(weights)
    self.version = 0
    self._tasks = AsynchronousTasks(tasks, concurrency, max_staleness, sample)
    self._validation_gradient = validation_gradient
    self._learning_rate = learning_rate
    self._refresh_every = refresh_every
    self._rho = rho
    self._epsilon = epsilon
    self._refresh()
    self._check_gradient()

  def assign(self) -> list[Task]:
    """Returns the tasks to be started now."""
    return self._tasks.assign(self.version)

  def receive(self, push: Push) -> Receipt:
    """Moves the model by a push, or refuses it."""
    staleness = server.staleness(push, self.version)
    refused = self._tasks.refusal(push, self.weights, self.version)
    if refused is not None:
      return Receipt(refused, staleness)
    if self.version // self._refresh_every != self._refreshed:
      self._refresh()
    accepted, scaled = zeno_plus_plus(
      [np.asarray(x) for x in push.values],
      self._gradient,
      self._learning_rate,
      self._rho,
      self._epsilon,
    )
    if not accepted:
      return Receipt(server.REJECTED, staleness)
    weights = server.moved(self.weights, scaled, self._learning_rate)
    if weights is None:
      return Receipt(server.NOT_FINITE, staleness)
    self.weights = weights
    self.version += 1
    return Receipt(None, staleness, advanced=True)

  def give_up(self, task: Task) -> None:
    """Has another device work instead; a late push is judged all the same."""
    self._tasks.give_up(task)

  def state(self) -> Mapping[str, object]:
    """Returns what a run that goes on needs beside the weights, as JSON."""
    return {
      "version": self.version,
      "refreshed": self._refreshed,
      "gradient": [
        base64.b64encode(v.tobytes()).decode("ascii") for v in self._gradient
      ],
      **self._tasks.state(),
    }

  def restore(
    self, state: Mapping[str, object], weights: Sequence[np.ndarray]
  ) -> None:
    """Becomes what it was when it said this.

    Tasks that were out are lost, and their serials not used again: a push of
    one of them is not awaited.

    Raises:
      ValueError: the weights are not finite, or of another model.
    """
    self.weights = server.replaced(self.weights, weights)
    self.version = int(state["version"])
    self._tasks.restore(state)
    self._refreshed = int(state["refreshed"])
    self._gradient = [
      np.frombuffer(base64.b64decode(v), x.dtype).reshape(x.shape)
      for v, x in zip(state["gradient"], self.weights, strict=True)
    ]

  def _refresh(self) -> None:
    self._refreshed = self.version // self._refresh_every
    gradient = self._validation_gradient(self.weights, self.version)
    self._gradient = [np.asarray(x) for x in gradient]

  def _check_gradient(self) -> None:
    if len(self._gradient) != len(self.weights):
      raise ValueError(
        f"Zeno++ judges gradients, and of the model's {len(self.weights)}"
        f" exchanged variables only {len(self._gradient)} have one; take a"
        " model without moving statistics, as BatchNormalization has them"
      )
    for i, (v, x) in enumerate(zip(self._gradient, self.weights, strict=True)):
      if (v.shape, v.dtype) != (x.shape, x.dtype):
        raise ValueError(
          f"the validation gradient of weights[{i}] is {v.dtype}"
          f" {list(v.shape)}, not {x.dtype} {list(x.shape)}"
        )
