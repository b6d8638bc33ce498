"""Trains a network on replicas that differ, and shows all of them every step.

What a run is made of is in `multi_worker_problem`; a worker's batches are the
same in one process as in several, so one oracle tells what both must do.
"""

import keras
import numpy as np

from robust_tf import compressors
from robust_tf import VectorizedWorkers
from tests.robust_tf import local_oracles as oracles
from tests.robust_tf import multi_worker_problem as network

SIZE = sum(int(np.prod(shape)) for shape in network.SHAPES)


class Recorder(keras.callbacks.Callback):
  """Keeps every worker's model and state after every step.

  Attributes:
    steps: one dict a step, from a name to what the workers of this process
      hold, [n, d]; the name of a model is "models".
    bytes_sent: after each step.
  """

  def __init__(self, states: tuple[str, ...]):
    """Takes the names of the states to keep."""
    super().__init__()
    self._states = states
    self.steps = []
    self.bytes_sent = []

  def on_train_batch_end(self, batch, logs=None):
    """Reads the optimizer of the model."""
    self.record(self.model.optimizer)

  def record(self, optimizer) -> None:
    """Reads an optimizer."""
    step = {"models": rows(optimizer.local_models())}
    for name in self._states:
      step[name] = rows(optimizer.local_state(name))
    self.steps.append(step)
    self.bytes_sent.append(optimizer.bytes_sent)


def rows(by_worker) -> np.ndarray:
  """Returns lists over variables, one a worker, as [n, d]."""
  return np.stack(
    [np.concatenate([x.ravel() for x in values]) for values in by_worker]
  )


def model() -> keras.Model:
  """Returns the network at its first variables."""
  made = keras.Sequential(
    [
      keras.layers.Input((6,)),
      keras.layers.Dense(8, activation="tanh"),
      keras.layers.Dense(network.NUM_CLASSES),
    ]
  )
  made.set_weights(network.initial_variables())
  return made


def compiled(make_optimizer, workers: int | None = None) -> keras.Model:
  """Returns the network with an optimizer; to be called in a scope.

  Args:
    make_optimizer: a function.
    workers: on each replica; None: one, which is the replica itself.
  """
  made = model()
  kwargs = {}
  if workers is not None:
    made = VectorizedWorkers(made, workers)
    kwargs["workers_per_replica"] = workers
  made.compile(
    make_optimizer(**kwargs),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  return made


def global_batches(num_workers: int, num_steps: int):
  """Returns points and labels; each batch holds the workers' in their order.

  Args:
    num_workers: n.
    num_steps: at most `network.NUM_STEPS`.
  """
  points, labels = zip(
    *(network.worker_data(i) for i in range(num_workers)), strict=True
  )
  return (
    np.stack(points, axis=1)[:num_steps].reshape(-1, 6),
    np.stack(labels, axis=1)[:num_steps].reshape(-1),
  )


def problem(
  num_workers: int, num_steps: int, learning_rate, clip=lambda gradients: None
) -> oracles.Problem:
  """Returns what the oracles optimize: the same network, in float64.

  Args:
    num_workers: n.
    num_steps: T; batches come again after `network.NUM_STEPS`.
    learning_rate: of a step.
    clip: changes a worker's gradients, a list over variables, in place.
  """
  data = [network.worker_data(i) for i in range(num_workers)]

  def gradient(i, x, step):
    points, labels = data[i]
    step %= len(points)
    flat = network.gradient(network.unflatten(x), points[step], labels[step])
    parts = network.unflatten(flat)
    clip(parts)
    return np.concatenate([part.ravel() for part in parts])

  x0 = np.concatenate([x.ravel() for x in network.initial_variables()])
  return oracles.Problem(x0, num_workers, num_steps, gradient, learning_rate)


def oracle_of(compressor) -> oracles.Compressor:
  """Returns a compressor in NumPy: only random supports are asked for."""
  if isinstance(compressor, compressors.TopK):
    return oracles.top_k(compressor.ratio)
  if isinstance(compressor, compressors.ScaledSign):
    return oracles.scaled_sign
  if isinstance(compressor, compressors.Identity):
    return oracles.identity
  if isinstance(compressor, compressors.Zero):
    return oracles.zero
  return oracles.on_support(
    lambda size, step: compressor.support(size, step).numpy()
  )


def check_steps(
  case, recorder: Recorder, num_workers: int, tolerance: float
) -> None:
  """Asserts that all states of all steps are the oracle's.

  Args:
    case: see `local_cases.Case`.
    recorder: what was seen of a run.
    num_workers: n.
    tolerance: relative and absolute.
  """
  made = problem(num_workers, len(recorder.steps), case.rate, case.clip)
  for t, (seen, expected) in enumerate(
    zip(recorder.steps, case.expect(made), strict=True), 1
  ):
    for state in seen:
      np.testing.assert_allclose(
        seen[state],
        expected[state],
        rtol=tolerance,
        atol=tolerance,
        err_msg=f"{state} after step {t}",
      )
