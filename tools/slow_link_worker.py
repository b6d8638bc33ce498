"""One worker of `tools.slow_links`: trains with each method on each link.

    python -m tools.slow_link_worker DIRECTORY

It reads its `Experiment` from DIRECTORY/experiment.json; worker 0 writes what
was measured, a list of `Measurement`s, to DIRECTORY/measurements.json. Training
is Keras' `fit` under `MultiWorkerMirroredStrategy`. While the mean of the
workers' models is evaluated, the clock and the network stand still.
"""

import dataclasses
import gc
import json
import os
import pathlib
import sys
import time

import keras
import numpy as np
import scipy.ndimage
import tensorflow as tf

from robust_tf.distribute import hooks
from robust_tf.distribute.hooks import multi_worker_fit
from robust_tf.distribute.hooks.heartbeat import bear_with_slow_links
from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from tools.network_namespaces import INTERFACE
from tools.network_namespaces import Link
from tools.rendezvous import Rendezvous
from tools.slow_link_evaluation import MeanModel
from tools.slow_link_experiment import Experiment
from tools.slow_link_experiment import EXPERIMENT_FILE
from tools.slow_link_experiment import Measurement
from tools.slow_link_experiment import MEASUREMENTS_FILE
from tools.slow_link_experiment import PROGRESS
from tools.slow_link_experiment import rate_title
from tools.slow_link_methods import METHODS

_IMAGE_SIZE = 28
_COMPUTE_STEPS = 20


def flat_inputs(data: Dataset) -> Dataset:
  """Returns vectors; images smaller than 28 x 28 are enlarged to that."""

  def flatten(x):
    if x.ndim == 4 and x.shape[1] < _IMAGE_SIZE:
      factors = (1, _IMAGE_SIZE / x.shape[1], _IMAGE_SIZE / x.shape[2], 1)
      x = scipy.ndimage.zoom(x, factors, order=1)
    return x.reshape(len(x), -1)

  return dataclasses.replace(
    data, x_train=flatten(data.x_train), x_test=flatten(data.x_test)
  )


class Clock(keras.callbacks.Callback):
  """Times steps, and evaluates while the clock stands still.

  The first step is not on the clock: TensorFlow traces it.

  Attributes:
    seconds: on the clock.
    num_steps: on the clock.
    sent_bytes: through the interface, since the first step.
    counted_bytes: by the optimizer, since the first step; None if it does not.
    curve: (step, seconds, training loss) of each evaluation.
  """

  def __init__(
    self,
    experiment: Experiment,
    mean_model: MeanModel,
    target_loss: float | None,
    link: Link,
  ):
    """Has not begun.

    Args:
      experiment: what is run.
      mean_model: evaluated, and left as it was at the end.
      target_loss: ends training; None for all of the experiment's steps.
      link: of this worker; it is no longer shaped once training has ended.
    """
    super().__init__()
    self._experiment = experiment
    self._mean_model = mean_model
    self._target_loss = target_loss
    self._link = link
    self.seconds = 0.0
    self.num_steps = 0
    self.curve = []

  def on_train_batch_end(self, batch, logs=None):
    """Stops the clock, evaluates, and goes on or ends training."""
    now = time.perf_counter()
    self.num_steps = batch
    step = batch + 1
    last = step == self._experiment.num_steps
    if batch and step % self._experiment.evaluate_every and not last:
      return
    segment = now - self._resumed if batch else 0.0
    # Training goes on when the slowest is there.
    self.seconds += max(
      self._mean_model.update(_local_weights(self.model), segment)
    )
    loss = self._mean_model.training_loss()
    self.curve.append((step, self.seconds, loss))
    self._count_bytes(first=not batch)
    reached = self._target_loss is not None and loss <= self._target_loss
    if last or reached or not np.isfinite(loss):
      self.model.stop_training = True
      self._link.set_rate(None)
    self._resumed = time.perf_counter()

  def _count_bytes(self, first: bool) -> None:
    """Reads the counters; all that was sent has arrived by now."""
    counted = getattr(self.model.optimizer, "bytes_sent", None)
    if first:
      self._sent_before, self._counted_before = _sent_bytes(), counted
    self.sent_bytes = _sent_bytes() - self._sent_before
    self.counted_bytes = (
      None if counted is None else counted - self._counted_before
    )


class _StepTimes(keras.callbacks.Callback):
  """Notes when each step ends."""

  def __init__(self):
    super().__init__()
    self.ends = []

  def on_train_batch_end(self, batch, logs=None):
    self.ends.append(time.perf_counter())


def _local_weights(model: keras.Model) -> list[np.ndarray]:
  """Returns this worker's model, which may differ from the others'."""
  if hasattr(model.optimizer, "local_models"):
    (weights,) = model.optimizer.local_models()
    return weights
  return [np.asarray(x) for x in model.get_weights()]


def _sent_bytes() -> int:
  path = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
  return int(pathlib.Path(path).read_text())


class Worker:
  """One of the processes that train together."""

  def __init__(self, directory: str, strategy: tf.distribute.Strategy):
    """Reads the experiment.

    Args:
      directory: where all workers meet.
      strategy: of all workers.
    """
    text = (pathlib.Path(directory) / EXPERIMENT_FILE).read_text()
    self.experiment = Experiment(**json.loads(text))
    self.index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    self._links = [Link(**x) for x in self.experiment.links]
    self._directory = directory
    self._strategy = strategy
    self._meeting = Rendezvous(directory, self.index, len(self._links))
    data = load(self.experiment.data, self.experiment.seed)
    self._data = flat_inputs(data)

  def compute_s(self) -> float:
    """Returns a step's time of a worker by itself, while all do the same."""
    model = self._compiled_model("sync_sgd")
    times = _StepTimes()
    self._meeting.meet()
    model.fit(
      self._batches(),
      steps_per_epoch=_COMPUTE_STEPS,
      callbacks=[times],
      shuffle=False,
      verbose=0,
    )
    return max(self._meeting.meet(float(np.median(np.diff(times.ends)))))

  def measure(
    self, name: str, rate: float | None, compute_s: float
  ) -> Measurement:
    """Returns how a method trains on links of a rate."""
    with self._strategy.scope():
      model = self._compiled_model(name)
    batches = self._strategy.distribute_datasets_from_function(
      lambda context: self._batches()
    )
    mean_model = MeanModel(
      self._data, self._directory, self.index, self._meeting
    )
    target_loss = None if rate is None else self.experiment.target_loss
    link = self._links[self.index]
    clock = Clock(self.experiment, mean_model, target_loss, link)
    link.set_rate(rate)
    self._meeting.meet()
    model.fit(
      batches,
      steps_per_epoch=self.experiment.num_steps,
      callbacks=[clock],
      shuffle=False,
      verbose=0,
    )
    # A run that diverges in its first step has no step on the clock.
    num_steps = max(clock.num_steps, 1)
    counted = clock.counted_bytes
    return Measurement(
      method=name,
      rate=rate,
      num_parameters=model.count_params(),
      compute_s=compute_s,
      step_s=clock.seconds / num_steps,
      sent_bytes=float(np.mean(self._meeting.meet(clock.sent_bytes)))
      / num_steps,
      counted_bytes=None if counted is None else counted / num_steps,
      curve=clock.curve,
      test_accuracy=mean_model.test_accuracy(),
    )

  def _compiled_model(self, method: str) -> keras.Model:
    """Returns a new model, the same in all workers, with all variables."""
    keras.utils.set_random_seed(self.experiment.seed)
    model = keras.Sequential(
      [
        keras.Input(self._data.input_shape),
        *(
          keras.layers.Dense(size, activation="relu")
          for size in self.experiment.hidden
        ),
        keras.layers.Dense(self._data.num_classes),
      ]
    )
    optimizer = METHODS[method].make_optimizer(self.experiment.learning_rate)
    model.compile(
      optimizer=optimizer,
      loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # Worker 0 sends variables to the others when they are made: now, not later.
    optimizer.build(model.trainable_variables)
    return model

  def _batches(self) -> tf.data.Dataset:
    """Returns this worker's batches, without end."""
    mine = slice(self.index, None, len(self._links))
    examples = (self._data.x_train[mine], self._data.y_train[mine])
    return (
      tf.data.Dataset.from_tensor_slices(examples)
      .shuffle(len(examples[0]), seed=self.experiment.seed + self.index)
      .repeat()
      .batch(self.experiment.batch_size, drop_remainder=True)
    )


def main(directory: str) -> None:
  """Runs the experiment; worker 0 writes what was measured."""
  tf.config.threading.set_intra_op_parallelism_threads(1)
  bear_with_slow_links()
  worker = Worker(directory, tf.distribute.MultiWorkerMirroredStrategy())
  hooks.install(multi_worker_fit)
  compute_s = worker.compute_s()
  measurements = []
  for rate in worker.experiment.rates:
    for name in worker.experiment.methods:
      measurement = worker.measure(name, rate, compute_s)
      keras.backend.clear_session()
      gc.collect()
      measurements.append(dataclasses.asdict(measurement))
      if worker.index == 0:
        step, seconds, loss = measurement.curve[-1]
        print(
          f"{PROGRESS}{rate_title(rate)}, {name}: loss {loss:.4g}"
          f" after {step} steps, {seconds:.1f} s",
          flush=True,
        )
  if worker.index == 0:
    path = pathlib.Path(directory) / MEASUREMENTS_FILE
    path.write_text(json.dumps(measurements))


if __name__ == "__main__":
  main(sys.argv[1])
