"""FedAsync: each push is mixed into the model when it comes.

    x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new,  alpha_t = alpha s(t - tau),

where x_new is what a device made of the model x_tau of some versions ago, and s
one of the functions of `staleness`.

Xie, Koyejo and Gupta, Asynchronous Federated Optimization, OPT 2020 (arXiv
1903.03934), Algorithm 1.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from robust_tf.federated import server
from robust_tf.federated.asynchronous_tasks import AsynchronousTasks
from robust_tf.federated.sampling import permutation
from robust_tf.federated.sampling import Sample
from robust_tf.federated.server import Receipt
from robust_tf.federated.staleness import constant
from robust_tf.federated.staleness import Staleness
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task


class FedAsync:
  """A `server.Server` whose model moves with every push.

  The staleness is that of the model before the update: a push that started
  from the newest model has 0, as in the code that the authors released.
  """

  wants_updates = False

  def __init__(
    self,
    weights: Sequence[np.ndarray],
    tasks: DeviceTasks,
    *,
    mixing_weight: float | Callable[[int], float] = 0.6,
    staleness: Staleness | None = None,
    max_staleness: int | None = None,
    concurrency: int = 4,
    sample: Sample = permutation,
  ):
    """Begins at version 0.

    Args:
      weights: x_0, a float array for each exchanged variable.
      tasks: what devices do.
      mixing_weight: alpha, in (0, 1]; or a function of the version of the
        model before the update, with values in [0, 1].
      staleness: s; None is `staleness.constant()`.
      max_staleness: the staleness up to which pushes are taken; None for any.
      concurrency: how many devices are at work at a time.
      sample: draws the devices, see `sampling`.

    Raises:
      ValueError: an argument is out of bounds, or weights are not finite.
    """
    server.check_mixing_weight(mixing_weight)
    self.weights = server.model(weights)
    self.version = 0
    self._mixing_weight = mixing_weight
    self._staleness = constant() if staleness is None else staleness
    self._tasks = AsynchronousTasks(tasks, concurrency, max_staleness, sample)

  def assign(self) -> list[Task]:
    """Returns the tasks to be started now."""
    return self._tasks.assign(self.version)

  def receive(self, push: Push) -> Receipt:
    """Mixes a push into the model, or refuses it.

    Raises:
      ValueError: alpha s(t - tau) is outside [0, 1].
    """
    staleness = server.staleness(push, self.version)
    refused = self._tasks.refusal(push, self.weights, self.version)
    if refused is not None:
      return Receipt(refused, staleness)
    alpha = server.weight_of_version(self._mixing_weight, self.version)
    alpha_t = alpha * float(self._staleness(staleness))
    if not 0 <= alpha_t <= 1:
      raise ValueError(
        f"a push of staleness {staleness} would be mixed with {alpha_t}: the"
        " function of staleness must be between 0 and 1"
      )
    with np.errstate(over="ignore"):
      steps = [
        x - np.asarray(new)
        for x, new in zip(self.weights, push.values, strict=True)
      ]
    weights = server.moved(self.weights, steps, alpha_t)
    if weights is None:  # finite floats, but too large to add
      return Receipt(server.NOT_FINITE, staleness)
    self.weights = weights
    self.version += 1
    return Receipt(None, staleness, alpha_t, advanced=True)

  def give_up(self, task: Task) -> None:
    """Has another device work instead; a late push is mixed in all the same."""
    self._tasks.give_up(task)

  def state(self) -> Mapping[str, object]:
    """Returns what a run that goes on needs beside the weights, as JSON."""
    return {"version": self.version, **self._tasks.state()}

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
