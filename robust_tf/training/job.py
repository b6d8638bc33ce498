"""The training job: n workers, a rule, an optimizer, until the last step.

Keras' `fit` runs it. Its epochs end where the model is evaluated.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.aggregation_report import AggregationReport
from robust_tf.communication_report import CommunicationReport
from robust_tf.distribute.validation_loss import ValidationLoss
from robust_tf.distribute.vectorized_workers import VectorizedWorkers
from robust_tf.federated.validation_examples import validation_examples
from robust_tf.optimizers.robust import RobustOptimizer
from robust_tf.training import experiment
from robust_tf.training import output
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.checkpoints import Checkpoints
from robust_tf.training.checkpoints import KEPT
from robust_tf.training.data import Dataset
from robust_tf.training.evaluation import EvaluationCallback
from robust_tf.training.evaluation import test_function
from robust_tf.training.journal import Journal
from robust_tf.training.models import MODELS
from robust_tf.training.process import Process
from robust_tf.training.result import write_result
from robust_tf.training.saved_steps import agreed_step
from robust_tf.training.saved_steps import SavedSteps
from robust_tf.training.settings import Settings


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A run that is ready to start, or to go on.

  Attributes:
    settings: of the run.
    batches: of the n workers.
    process: this one.
    strategy: spreads the workers over devices.
    model: what is trained.
    trainer: the model, or its workers on each replica, compiled.
    journal: of the run; says how far it is.
    checkpoints: makes them; None without an output.
  """

  settings: Settings
  batches: WorkerBatches
  process: Process
  strategy: tf.distribute.Strategy
  model: keras.Model
  trainer: keras.Model
  journal: Journal
  checkpoints: Checkpoints | None

  @property
  def quiet(self) -> bool:
    """Whether another process says how far the run is."""
    return not self.process.is_chief

  def train(self, show: Callable[[int, Mapping[str, float]], None]) -> None:
    """Trains to the last step.

    Args:
      show: is told of each step, with what is known of it.
    """
    settings, journal = self.settings, self.journal
    if journal.step >= settings.steps:
      return
    callback = EvaluationCallback(
      settings,
      test_function(self.model, self.batches.dataset),
      journal,
      checkpoints=self.checkpoints,
      writer=_writer(settings, self.process),
      show=show,
    )
    every = settings.evaluate_every
    self.trainer.fit(
      _distributed(
        self.batches, self.strategy, range(journal.step, settings.steps)
      ),
      initial_epoch=journal.step // every,
      epochs=math.ceil(settings.steps / every),
      steps_per_epoch=every,
      callbacks=[_report(settings), callback],
      shuffle=False,
      verbose=0,
    )

  def write_result(self) -> None:
    """Prints what came of the run, and writes it if there is a folder for it.

    Raises:
      OSError: a file cannot be written.
    """
    if not self.quiet:
      write_result(
        self.settings,
        self.batches.dataset,
        self.batches.parts,
        self.journal,
        self.model,
      )


def prepare(
  settings: Settings, batches: WorkerBatches, process: Process
) -> Job:
  """Returns the job, after the step of its latest checkpoint.

  To be called before TensorFlow has run anything.

  Args:
    settings: of the run.
    batches: of the n workers.
    process: this one.

  Raises:
    OSError: a file cannot be read or written.
    ValueError: the settings do not go together, or with the devices; or the
      output holds checkpoints, and none that this run can go on from.
  """
  keras.utils.set_random_seed(settings.seed)
  strategy = experiment.make_strategy(settings)
  dataset = batches.dataset
  with strategy.scope():
    model = MODELS[settings.model](
      dataset.input_shape, dataset.num_classes, settings.seed
    )
    trainer = _compiled(settings, dataset, model, strategy)
  journal = Journal(settings.flags, dataset.digest())
  checkpoints = None
  if settings.output:
    checkpoints = Checkpoints(
      os.path.join(settings.output, output.CHECKPOINTS),
      process,
      journal,
      {"model": model, "optimizer": trainer.optimizer},
      of_each_process=settings.has_local_models,
    )
    step, damage = _agreed(strategy, process, checkpoints.found)
    if step:
      checkpoints.restore(step)
    checkpoints.start(step, damage)
  return Job(
    settings,
    batches,
    process,
    strategy,
    model,
    trainer,
    journal,
    checkpoints,
  )


def _compiled(
  settings: Settings,
  dataset: Dataset,
  model: keras.Model,
  strategy: tf.distribute.Strategy,
) -> keras.Model:
  """Returns the model, or its workers on each replica, ready to train."""
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  replicas = strategy.num_replicas_in_sync
  simulated = settings.workers > replicas
  per_replica = settings.workers // replicas if simulated else None
  trainer = VectorizedWorkers(model, per_replica) if simulated else model
  optimizer = experiment.make_optimizer(settings, per_replica)
  if not settings.has_local_models:
    optimizer = _aggregating(settings, dataset, model, optimizer, per_replica)
  optimizer.build(model.trainable_variables)
  trainer.compile(
    optimizer,
    loss,
    metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    # XLA compiles convolutions for CPUs that are slow; rules compile
    # themselves.
    jit_compile=False,
  )
  return trainer


def _report(settings: Settings) -> keras.callbacks.Callback:
  """Returns what adds to the logs what the optimizer says of itself."""
  if settings.has_local_models:
    return CommunicationReport()
  return AggregationReport()


def _aggregating(
  settings: Settings,
  dataset: Dataset,
  model: keras.Model,
  optimizer: keras.optimizers.Optimizer,
  workers_per_replica: int | None,
) -> RobustOptimizer:
  """Returns an optimizer of what the rule makes of the workers' gradients."""
  rule = experiment.make_rule(settings)
  validation_loss = None
  if settings.takes_loss:
    validation_loss = ValidationLoss(
      model,
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      _validation(settings, dataset),
    )
  return RobustOptimizer(
    optimizer,
    rule,
    byzantine=experiment.make_byzantine(settings, rule, model.count_params()),
    validation_loss=validation_loss,
    workers_per_replica=workers_per_replica,
    report=True,
  )


def _validation(settings: Settings, dataset: Dataset) -> tf.data.Dataset:
  """Returns the server's own batches, one a step from the first step on.

  A checkpoint remembers how many of them were drawn.
  """
  examples = [
    validation_examples(
      len(dataset.x_train),
      settings.validation_batch_size,
      settings.seed,
      step,
    )
    for step in range(settings.steps)
  ]
  inputs, labels = tf.constant(dataset.x_train), tf.constant(dataset.y_train)
  options = tf.data.Options()
  # TensorFlow would draw ahead: beyond the last step the first batches again,
  # and a checkpoint would keep those for a run that goes on.
  options.autotune.enabled = False
  stream = tf.data.Dataset.from_tensor_slices(np.array(examples)).map(
    lambda chosen: (tf.gather(inputs, chosen), tf.gather(labels, chosen))
  )
  return stream.with_options(options)


def _distributed(
  batches: WorkerBatches,
  strategy: tf.distribute.Strategy,
  steps: Sequence[int],
):
  """Returns each replica's batches, that of all its workers at a step."""
  replicas = strategy.num_replicas_in_sync
  per_replica = len(batches.parts) // replicas

  def of_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
    local = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * local

    def generate():
      # One replica of this process after the other, step after step.
      for step in steps:
        for replica in range(first, first + local):
          workers = range(replica * per_replica, (replica + 1) * per_replica)
          yield batches.batch(workers, step)

    size = per_replica * batches.batch_size
    return tf.data.Dataset.from_generator(
      generate,
      output_signature=(
        tf.TensorSpec([size, *batches.dataset.input_shape], tf.float32),
        tf.TensorSpec([size], tf.int32),
      ),
    ).prefetch(2 * local)

  return strategy.distribute_datasets_from_function(of_process)


def _agreed(
  strategy: tf.distribute.Strategy, process: Process, found: SavedSteps
) -> tuple[int, Mapping[str, str]]:
  """Returns the step that all processes go on from, see `agreed_step`."""
  row = found.row(KEPT)
  if process.count == 1:
    return agreed_step([row])

  @tf.function(autograph=False)
  def rows():
    return strategy.gather(strategy.run(lambda: tf.constant([row])), axis=0)

  return agreed_step(rows().numpy().tolist())


def _writer(settings: Settings, process: Process) -> tf.summary.SummaryWriter:
  """Returns what writes for TensorBoard; nothing without an output."""
  if not settings.output or not process.is_chief:
    return tf.summary.create_noop_writer()
  return tf.summary.create_file_writer(
    os.path.join(settings.output, output.LOGS)
  )
