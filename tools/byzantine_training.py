"""Trains one model under one rule and many threats, for the Byzantine tables.

The model, its optimizer and the compiled loop over all steps are made once for
a rule; a variable chooses the threat. Everything else is the package's own: the
workers' batches, `VectorizedWorkers`, `RobustOptimizer` and `Byzantine`.
"""

import collections
import functools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.attacks import Byzantine
from robust_tf.attacks import flip_labels
from robust_tf.distribute.validation_loss import ValidationLoss
from robust_tf.distribute.vectorized_workers import VectorizedWorkers
from robust_tf.optimizers.robust import RobustOptimizer
from robust_tf.training.batches import validation_batches
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import Dataset
from tools.byzantine_cells import NUM_VALIDATION
from tools.byzantine_cells import Rule
from tools.byzantine_cells import Table
from tools.byzantine_cells import Threat
from tools.small_models import small_model
from tools.worker_examples import worker_examples

LEARNING_RATE = 0.1
BATCH_SIZE = 32
HIDDEN = 32


def train_and_test(
  table: Table,
  rule: Rule,
  threats: Sequence[Threat],
  data: Dataset,
  seed: int,
  num_steps: int,
) -> dict[str, float]:
  """Returns the test accuracy after training under each threat.

  Args:
    table: says how many workers there are, and when attacks start.
    rule: what aggregates.
    threats: some of the table's.
    data: what is learnt: images of 28 x 28 and more by a small convolutional
      network, all else by a perceptron.
    seed: of the weights, the batches and the attacks.
    num_steps: T.

  Returns:
    By the threat's name, the fraction of test examples with the right answer;
    an answer that is not finite is wrong.
  """
  examples = _worker_examples(data, table.num_workers, seed, num_steps)
  inputs = tf.constant(data.x_train)
  model = small_model(data, seed, HIDDEN)
  initial = model.get_weights()
  groups = collections.defaultdict(list)
  for threat in threats:
    groups[threat.num_suspected if rule.is_zeno else None].append(threat)
  results = {}
  for group in groups.values():
    which = tf.Variable(0, trainable=False)
    workers = _compiled(table, rule, group, which, model, data, seed, num_steps)
    for number, threat in enumerate(group):
      which.assign(number)
      model.set_weights(initial)
      workers.optimizer.iterations.assign(0)
      batches = _batches(data, inputs, examples, threat)
      workers.fit(batches, shuffle=False, verbose=0)
      results[threat.name] = _accuracy(model, data)
  return results


def _compiled(
  table, rule, threats, which, model, data, seed, num_steps
) -> VectorizedWorkers:
  """Returns the model's workers, ready to train under any of the threats."""
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  workers = VectorizedWorkers(model, table.num_workers)
  aggregator, validation_loss = rule.aggregator, None
  if rule.is_zeno:
    aggregator = functools.partial(
      aggregator, num_suspected=threats[0].num_suspected
    )
    validation_loss = ValidationLoss(
      model, loss, _validation(data, seed, num_steps)
    )
  optimizer = RobustOptimizer(
    keras.optimizers.SGD(LEARNING_RATE),
    aggregator,
    byzantine=Byzantine(
      tuple(range(table.num_workers)),
      functools.partial(_attack_of_one, threats=threats, which=which),
      start_step=table.start_step,
      seed=seed,
    ),
    validation_loss=validation_loss,
    workers_per_replica=table.num_workers,
  )
  # XLA would compile convolutions for the processor that are slow.
  workers.compile(
    optimizer, loss, steps_per_execution=num_steps, jit_compile=False
  )
  return workers


def _attack_of_one(updates, byzantine, seed, threats, which):
  """Does what the chosen one of the threats does; any worker may be in it."""
  del byzantine
  branches = [
    functools.partial(_received, threat, updates, seed) for threat in threats
  ]
  return tf.switch_case(tf.convert_to_tensor(which), branches)


def _received(threat: Threat, updates, seed) -> tf.Tensor:
  if threat.attack is None:
    return updates
  return threat.attack(updates, threat.workers, seed)


def _worker_examples(
  data: Dataset, num_workers: int, seed: int, num_steps: int
) -> np.ndarray:
  """Returns what each worker sees at each step, `[T, n, B]`.

  All draw from all examples. Where each has its own few, copies of one worker's
  flipped gradient are against its examples, and the honest ones do not make up
  for that.
  """
  everything = np.arange(len(data.y_train))
  batches = WorkerBatches(data, [everything] * num_workers, BATCH_SIZE, seed)
  return worker_examples(batches, num_steps)


def _batches(
  data: Dataset, inputs: tf.Tensor, examples: np.ndarray, threat: Threat
) -> tf.data.Dataset:
  """Returns the inputs and labels of every step, worker after worker."""
  labels = data.y_train[examples]
  if threat.flips_labels:
    flipped = list(threat.workers)
    labels[:, flipped] = flip_labels(labels[:, flipped], data.num_classes)
  num_steps = len(examples)
  steps = (examples.reshape(num_steps, -1), labels.reshape(num_steps, -1))
  return tf.data.Dataset.from_tensor_slices(steps).map(
    lambda chosen, labels: (tf.gather(inputs, chosen), labels)
  )


def _validation(data: Dataset, seed: int, num_steps: int) -> tf.data.Dataset:
  """Returns the server's batches, which start anew with every training."""
  stream = validation_batches(data, NUM_VALIDATION, seed, first_step=0)
  inputs, labels = zip(*(next(stream) for _ in range(num_steps)), strict=True)
  steps = np.array(inputs), np.array(labels)
  return tf.data.Dataset.from_tensor_slices(steps)


def _accuracy(model: keras.Model, data: Dataset) -> float:
  logits = model(data.x_test, training=False).numpy()
  finite = np.isfinite(logits).all(axis=1)
  return float(np.mean(finite & (logits.argmax(axis=1) == data.y_test)))
