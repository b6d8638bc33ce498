"""One worker of `tools.slow_links`: trains with each method on each link.

    python -m tools.slow_link_worker DIRECTORY

It reads its `Experiment` from DIRECTORY/experiment.json; worker 0 writes what
was measured, a list of `Measurement`s, to DIRECTORY/measurements.json. Training
is Keras' `fit` under `MultiWorkerMirroredStrategy`. The clock stands still, and
the network too, while the mean of the workers' models is evaluated: they swap
models through files.
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

from robust_tf.distribute.compatibility import allow_multi_worker_fit
from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from tools.network_namespaces import INTERFACE
from tools.network_namespaces import Link
from tools.rendezvous import Rendezvous
from tools.slow_link_experiment import Experiment
from tools.slow_link_experiment import EXPERIMENT_FILE
from tools.slow_link_experiment import Measurement
from tools.slow_link_experiment import MEASUREMENTS_FILE
from tools.slow_link_experiment import PROGRESS
from tools.slow_link_experiment import rate_title
from tools.slow_link_methods import METHODS
from tools.slow_link_methods import MOMENTUM

_IMAGE_SIZE = 28
_LOSS_EXAMPLES = 2000  # of the training examples, at most
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


def make_model(num_inputs: int, hidden, num_classes: int) -> keras.Model:
  """Returns a perceptron that is built."""
  layers = [keras.layers.Dense(size, activation="relu") for size in hidden]
  model = keras.Sequential(
    [keras.Input((num_inputs,)), *layers, keras.layers.Dense(num_classes)]
  )
  return model


def compile_model(model: keras.Model, optimizer) -> None:
  """Gives a model its loss and its optimizer, and makes all variables."""
  model.compile(
    optimizer=optimizer,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  optimizer.build(model.trainable_variables)


class Evaluation:
  """Evaluates the mean of all workers' models; each does a part of it."""

  def __init__(self, data: Dataset, directory, index: int, meeting: Rendezvous):
    self._data = data
    self._directory = pathlib.Path(directory)
    self._index = index
    self._meeting = meeting

  def mean_loss(self, weights: list[np.ndarray], value) -> tuple[float, list]:
    """Returns the training loss of the mean model, and all workers' values.

    Args:
      weights: this worker's model.
      value: anything, as JSON has it.
    """
    flat = np.concatenate([x.ravel() for x in weights])
    np.save(self._directory / f"model_{self._index}.npy", flat)
    values = self._meeting.meet(value)
    models = [
      np.load(self._directory / f"model_{i}.npy") for i in range(len(values))
    ]
    mean = np.mean(models, axis=0)
    ends = np.cumsum([x.size for x in weights])[:-1]
    self._mean_model = [
      part.reshape(x.shape)
      for part, x in zip(np.split(mean, ends), weights, strict=True)
    ]
    count = min(_LOSS_EXAMPLES, len(self._data.x_train))
    losses = self._losses(
      self._data.x_train[:count], self._data.y_train[:count], len(values)
    )
    return sum(self._meeting.meet(losses)) / count, values

  def test_accuracy(self, num_workers: int) -> float:
    """Returns that of the mean model which was evaluated last."""
    x, y = self._data.x_test, self._data.y_test
    mine = slice(self._index, None, num_workers)
    right = np.argmax(self._logits(x[mine]), axis=1) == y[mine]
    return sum(self._meeting.meet(int(right.sum()))) / len(y)

  def _losses(self, x, y, num_workers: int) -> float:
    """Returns the sum of the losses of this worker's part of the examples."""
    mine = slice(self._index, None, num_workers)
    logits = self._logits(x[mine]).astype(np.float64)
    right = np.take_along_axis(logits, y[mine, None], axis=1)
    return float(np.sum(np.logaddexp.reduce(logits, axis=1) - right[:, 0]))

  def _logits(self, x: np.ndarray) -> np.ndarray:
    *hidden, kernel, bias = self._mean_model
    for hidden_kernel, hidden_bias in zip(
      hidden[::2], hidden[1::2], strict=True
    ):
      x = np.maximum(x @ hidden_kernel + hidden_bias, 0)
    return x @ kernel + bias


class Clock(keras.callbacks.Callback):
  """Times steps, counts bytes, and evaluates while the clock stands still.

  The first step is not on the clock: TensorFlow traces it.
  """

  def __init__(self, experiment, evaluation, target_loss, on_end):
    super().__init__()
    self._experiment = experiment
    self._evaluation = evaluation
    self._target_loss = target_loss
    self._on_end = on_end
    self.curve = []
    self.seconds = 0.0
    self.sent_bytes = 0.0
    self.num_steps = 0

  def on_train_batch_end(self, batch, logs=None):
    """Stops the clock, evaluates, and goes on or ends the run."""
    step = batch + 1
    last = step == self._experiment.num_steps
    if step > 1 and step % self._experiment.evaluate_every and not last:
      return
    segment = None
    if step > 1:
      segment = (
        time.perf_counter() - self._resumed,
        _sent_bytes() - self._sent_before,
      )
    loss, segments = self._evaluation.mean_loss(
      local_weights(self.model), segment
    )
    if step > 1:
      # The run goes on when the slowest is there.
      self.seconds += max(seconds for seconds, _ in segments)
      self.sent_bytes += float(np.mean([sent for _, sent in segments]))
    self.num_steps = step
    self.curve.append((step, self.seconds, loss))
    reached = self._target_loss is not None and loss <= self._target_loss
    if last or reached or not np.isfinite(loss):
      self.model.stop_training = True
      self._on_end()
    self._sent_before = _sent_bytes()
    self._resumed = time.perf_counter()


def local_weights(model: keras.Model) -> list[np.ndarray]:
  """Returns this worker's model, which may differ from the others'."""
  if hasattr(model.optimizer, "local_models"):
    (weights,) = model.optimizer.local_models()
    return weights
  return [np.asarray(x) for x in model.get_weights()]


def _sent_bytes() -> int:
  path = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
  return int(pathlib.Path(path).read_text())


def _batches(data: Dataset, experiment: Experiment, index: int, num_workers):
  """Returns this worker's batches, without end."""
  mine = slice(index, None, num_workers)
  examples = (data.x_train[mine], data.y_train[mine])
  return (
    tf.data.Dataset.from_tensor_slices(examples)
    .shuffle(len(examples[0]), seed=experiment.seed + index)
    .repeat()
    .batch(experiment.batch_size, drop_remainder=True)
  )


class _StepTimes(keras.callbacks.Callback):
  def __init__(self):
    super().__init__()
    self.ends = []

  def on_train_batch_end(self, batch, logs=None):
    self.ends.append(time.perf_counter())


def _compute_s(data, experiment, index, num_workers, meeting) -> float:
  """Returns a step's time of this worker by itself, while all do the same."""
  model = make_model(data.x_train.shape[1], experiment.hidden, data.num_classes)
  compile_model(
    model,
    keras.optimizers.SGD(
      experiment.learning_rate, momentum=MOMENTUM, nesterov=True
    ),
  )
  times = _StepTimes()
  meeting.meet()
  model.fit(
    _batches(data, experiment, index, num_workers),
    steps_per_epoch=_COMPUTE_STEPS,
    callbacks=[times],
    shuffle=False,
    verbose=0,
  )
  return max(meeting.meet(float(np.median(np.diff(times.ends)))))


def train(strategy, data, experiment, index, name, rate, meeting, directory):
  """Trains with one method on one link; returns the `Measurement`'s fields."""
  links = [Link(**x) for x in experiment.links]
  keras.utils.set_random_seed(experiment.seed)
  with strategy.scope():
    model = make_model(
      data.x_train.shape[1], experiment.hidden, data.num_classes
    )
    optimizer = METHODS[name].make_optimizer(experiment.learning_rate)
    compile_model(model, optimizer)
  batches = strategy.distribute_datasets_from_function(
    lambda context: _batches(data, experiment, index, len(links))
  )
  clock = Clock(
    experiment,
    Evaluation(data, directory, index, meeting),
    None if rate is None else experiment.target_loss,
    lambda: links[index].set_rate(None),
  )
  links[index].set_rate(rate)
  meeting.meet()
  model.fit(
    batches,
    steps_per_epoch=experiment.num_steps,
    callbacks=[clock],
    shuffle=False,
    verbose=0,
  )
  timed = max(clock.num_steps - 1, 1)
  counted = getattr(optimizer, "bytes_sent", None)
  return {
    "method": name,
    "rate": rate,
    "num_parameters": model.count_params(),
    "step_s": clock.seconds / timed,
    "sent_bytes": clock.sent_bytes / timed,
    "counted_bytes": None if counted is None else counted / clock.num_steps,
    "curve": clock.curve,
    "test_accuracy": clock._evaluation.test_accuracy(len(links)),
  }


def main(directory: str) -> None:
  """Runs the experiment; worker 0 writes what it measured."""
  path = pathlib.Path(directory) / EXPERIMENT_FILE
  experiment = Experiment(**json.loads(path.read_text()))
  index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
  num_workers = len(experiment.links)
  tf.config.threading.set_intra_op_parallelism_threads(1)
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  allow_multi_worker_fit()
  meeting = Rendezvous(directory, index, num_workers)
  data = flat_inputs(load(experiment.data, experiment.seed))
  compute_s = _compute_s(data, experiment, index, num_workers, meeting)
  measurements = []
  for rate in experiment.rates:
    for name in experiment.methods:
      fields = train(
        *(strategy, data, experiment, index, name, rate, meeting, directory)
      )
      keras.backend.clear_session()
      gc.collect()
      measurement = Measurement(compute_s=compute_s, **fields)
      measurements.append(dataclasses.asdict(measurement))
      if index == 0:
        step, seconds, loss = measurement.curve[-1]
        print(
          f"{PROGRESS}{rate_title(rate)}, {name}: loss {loss:.4g}"
          f" after {step} steps, {seconds:.1f} s",
          flush=True,
        )
  if index == 0:
    path = pathlib.Path(directory) / MEASUREMENTS_FILE
    path.write_text(json.dumps(measurements))


if __name__ == "__main__":
  main(sys.argv[1])
