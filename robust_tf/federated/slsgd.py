"""SLSGD: rounds of some devices, a robust mean, and a moving average.

In round t, the server asks devices for x_i, what they make of x_{t-1}, and

    x_t = (1 - alpha) x_{t-1} + alpha Aggr({x_i}).

The rule gets the updates x_{t-1} - x_i, which are shorter numbers, and

    x_t = x_{t-1} - alpha Aggr({x_{t-1} - x_i})

is the same for every rule that moves with its inputs, as the mean (option I)
and the trimmed mean (option II) do. With alpha = 1 and the mean this is
FedAvg; with one local step it is synchronous SGD, with any rule.

Xie, Koyejo and Gupta, SLSGD: Secure and Efficient Distributed On-device
Machine Learning, ECML-PKDD 2019 (arXiv 1903.06996), Algorithm 1.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from robust_tf.federated import server
from robust_tf.federated.sampling import permutation
from robust_tf.federated.sampling import Sample
from robust_tf.federated.server import Receipt
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Push
from robust_tf.federated.tasks import Task

Update = Sequence[np.ndarray]
Aggregator = Callable[[list[Update]], Update]
# Updates and the devices that sent them, and the version of the model.
Attack = Callable[[list[Update], Sequence[int], int], list[Update]]


def mean(updates: Sequence[Update]) -> list[np.ndarray]:
  """Returns the mean of each variable's updates, summed in float64.

  Args:
    updates: k lists over variables.
  """
  means = []
  for rows in zip(*updates, strict=True):
    total = np.zeros(rows[0].shape, np.float64)
    for row in rows:
      total += row
    means.append((total / len(rows)).astype(rows[0].dtype))
  return means


class SLSGD:
  """A `server.Server` that updates its model once a round.

  A round ends when the first k of its m devices have pushed; what comes after
  that is late. Where a device takes too long, or pushes what the server must
  refuse, another one is asked; where all were asked already, one that takes
  too long is asked again. When nobody is left to ask, the rule gets what there
  is; a round in which nothing came leaves the model as it is.
  """

  wants_updates = True

  def __init__(
    self,
    weights: Sequence[np.ndarray],
    tasks: DeviceTasks,
    *,
    devices_per_round: int,
    arrivals_per_round: int | None = None,
    aggregator: Aggregator = mean,
    aggregator_at: Callable[[Update, int], Aggregator] | None = None,
    attack: Attack | None = None,
    mixing_weight: float | Callable[[int], float] = 1.0,
    sample: Sample = permutation,
  ):
    """Begins at version 0.

    Args:
      weights: x_0, a float array for each exchanged variable.
      tasks: what devices do.
      devices_per_round: m, how many devices are asked.
      arrivals_per_round: k, how many of them are waited for; None for all.
      aggregator: a rule of `robust_tf.aggregators`, or what else makes one
        update of k. It gets a list over devices, in order of serial, of lists
        over variables of arrays, and returns a list over variables.
      aggregator_at: in place of it, for rules that look at the model:
        `aggregator_at(weights, version)` returns a round's `aggregator`, see
        `zeno_server`.
      attack: `attack(updates, devices, version)` returns what the rule gets,
        for experiments with devices that know each other's updates.
      mixing_weight: alpha, in (0, 1]; or a function of the version of the
        model before the update, with values in [0, 1].
      sample: draws the devices, see `sampling`.

    Raises:
      ValueError: an argument is out of bounds, weights are not finite, or the
        rule does not work with k updates.
    """
    if not 1 <= devices_per_round <= tasks.num_devices:
      raise ValueError(
        f"devices_per_round={devices_per_round} must be at least 1, and at most"
        f" the {tasks.num_devices} devices that there are"
      )
    if arrivals_per_round is None:
      arrivals_per_round = devices_per_round
    if not 1 <= arrivals_per_round <= devices_per_round:
      raise ValueError(
        f"arrivals_per_round={arrivals_per_round} must be at least 1, and at"
        f" most devices_per_round={devices_per_round}"
      )
    server.check_mixing_weight(mixing_weight)
    self.weights = server.model(weights)
    self.version = 0
    self._tasks = tasks
    self._num_asked = devices_per_round
    self._num_arrivals = arrivals_per_round
    self._attack = attack or (lambda updates, devices, version: updates)
    self._aggregator_at = aggregator_at or (lambda weights, version: aggregator)
    self._mixing_weight = mixing_weight
    self._sample = sample
    self._awaited: dict[int, int] = {}  # by serial, the version it is for
    self._next_serial = 0
    self._begin_round()
    self._try_aggregator()

  def assign(self) -> list[Task]:
    """Returns the tasks to be started now."""
    if not self._asked:
      devices = self._sample(
        self._tasks.num_devices,
        self._num_asked,
        self.version,
        self._tasks.seed,
      )
      for device in devices:
        self._ask(device)
    started, self._to_start = self._to_start, []
    return started

  def receive(self, push: Push) -> Receipt:
    """Takes a push into its round, or refuses it.

    Raises:
      ValueError: devices were refused and nobody else was left to ask, and the
        rule does not work with so few updates.
    """
    serial, device = push.task.serial, push.task.device
    staleness = server.staleness(push, self.version)
    version = self._awaited.pop(serial, None)
    if version is None:
      return Receipt(server.NOT_AWAITED, staleness)
    if version != self.version or device in self._arrived_devices:
      return Receipt(server.LATE, staleness)
    refused = server.refusal(push, self.weights, self.version)
    if refused is None and staleness:
      refused = server.LATE  # it started from the model of another round
    if refused is None:
      self._arrived[serial] = push.values
      self._arrived_devices.add(device)
    else:
      self._replace(serial)
    if not self._is_over():
      return Receipt(refused, staleness)
    mixing_weight = self._end_round()
    if refused is not None:
      mixing_weight = None
    return Receipt(refused, staleness, mixing_weight, advanced=True)

  def give_up(self, task: Task) -> None:
    """Asks another device; the first one's push counts if the round is on."""
    if self._awaited.get(task.serial) == self.version:
      self._replace(task.serial)

  def state(self) -> Mapping[str, object]:
    """Returns what a run that goes on needs beside the weights, as JSON."""
    return {"version": self.version, "next_serial": self._first_serial}

  def restore(
    self, state: Mapping[str, object], weights: Sequence[np.ndarray]
  ) -> None:
    """Becomes what it was when its round began; all of it is asked again.

    With the same serials, so the tasks are those of a run that was not stopped.

    Raises:
      ValueError: the weights are not finite, or of another model.
    """
    self.weights = server.replaced(self.weights, weights)
    self.version = int(state["version"])
    self._next_serial = int(state["next_serial"])
    self._awaited.clear()
    self._begin_round()

  def _begin_round(self) -> None:
    self._first_serial = self._next_serial
    self._to_start: list[Task] = []
    self._asked: dict[int, int] = {}  # by serial, the device
    self._replaced: set[int] = set()  # serials
    self._arrived: dict[int, Update] = {}  # by serial
    self._arrived_devices: set[int] = set()

  def _ask(self, device: int) -> None:
    serial = self._next_serial
    self._next_serial += 1
    self._awaited[serial] = self.version
    self._asked[serial] = device
    self._to_start.append(self._tasks.task(serial, device, self.version))

  def _replace(self, serial: int) -> None:
    """Asks another device in place of one, or an overdue one again."""
    if serial in self._replaced:
      return
    self._replaced.add(serial)
    asked = set(self._asked.values())
    n = self._tasks.num_devices
    for device in self._sample(n, n, self.version, self._tasks.seed):
      if device not in asked:
        self._ask(device)
        return
    if serial in self._awaited:
      self._ask(self._asked[serial])

  def _is_over(self) -> bool:
    if len(self._arrived) == self._num_arrivals:
      return True
    return not any(
      serial in self._awaited and device not in self._arrived_devices
      for serial, device in self._asked.items()
    )

  def _end_round(self) -> float:
    """Updates the model; returns with which weight, 0 if it is as before."""
    alpha = 0.0
    if self._arrived:
      serials = sorted(self._arrived)
      alpha = self._update(
        self._attack(
          [self._arrived[x] for x in serials],
          [self._asked[x] for x in serials],
          self.version,
        )
      )
    self.version += 1
    self._begin_round()
    return alpha

  def _update(self, updates: list[Update]) -> float:
    aggregator = self._aggregator_at(self.weights, self.version)
    try:
      step = aggregator(updates)
    except ValueError as error:
      raise ValueError(
        f"round {self.version} has only {len(updates)} arrivals of"
        f" {self._num_arrivals}, as nobody is left to ask: {error}"
      ) from error
    alpha = server.weight_of_version(self._mixing_weight, self.version)
    weights = server.moved(self.weights, [np.asarray(x) for x in step], alpha)
    if weights is None:
      return 0.0
    self.weights = weights
    return alpha

  def _try_aggregator(self) -> None:
    """Lets the rule say now if it does not work with k updates."""
    zeros = [np.zeros_like(x) for x in self.weights]
    aggregator = self._aggregator_at(self.weights, self.version)
    try:
      aggregator([zeros] * self._num_arrivals)
    except ValueError as error:
      raise ValueError(
        f"the aggregator does not work with arrivals_per_round="
        f"{self._num_arrivals} of devices_per_round={self._num_asked}: {error}"
      ) from error


def fed_avg(
  weights: Sequence[np.ndarray],
  tasks: DeviceTasks,
  *,
  devices_per_round: int,
  arrivals_per_round: int | None = None,
  aggregator: Aggregator = mean,
  aggregator_at: Callable[[Update, int], Aggregator] | None = None,
  attack: Attack | None = None,
  sample: Sample = permutation,
) -> SLSGD:
  """Returns a server that takes each round's mean model as it is.

  McMahan et al., Communication-Efficient Learning of Deep Networks from
  Decentralized Data, AISTATS 2017, where each device counts alike, as in the
  code of SLSGD's authors.

  Args, Raises: as in `SLSGD`.
  """
  return SLSGD(
    weights,
    tasks,
    devices_per_round=devices_per_round,
    arrivals_per_round=arrivals_per_round,
    aggregator=aggregator,
    aggregator_at=aggregator_at,
    attack=attack,
    mixing_weight=1.0,
    sample=sample,
  )
