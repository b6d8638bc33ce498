"""The training job of few devices at a time: a server, devices, and a loop.

It runs in this process, or drives a cluster of others.
"""

import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from robust_tf.distribute.parameter_server import connect
from robust_tf.federated import training_loop
from robust_tf.federated.events import Event
from robust_tf.federated.events import FederatedReport
from robust_tf.federated.local_training import exchanged_variables
from robust_tf.federated.remote_devices import RemoteDevices
from robust_tf.federated.server import Server
from robust_tf.federated.simulated_devices import SimulatedDevices
from robust_tf.training import federated_experiment as experiment
from robust_tf.training import output
from robust_tf.training.checkpoints import Checkpoints
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import PS
from robust_tf.training.cluster_task import WORKER
from robust_tf.training.data import Dataset
from robust_tf.training.evaluation import test_function
from robust_tf.training.event_log import DamagedLogError
from robust_tf.training.event_log import EventLog
from robust_tf.training.federated_evaluations import Evaluations
from robust_tf.training.journal import Journal
from robust_tf.training.models import MODELS
from robust_tf.training.process import Process
from robust_tf.training.result import write_result
from robust_tf.training.server_state import ServerState
from robust_tf.training.settings import Settings


class FederatedJob:
  """A run that is ready to start, or to go on.

  Attributes:
    settings: of the run.
    quiet: whether another process says how far the run is: none does.
  """

  quiet = False

  def __init__(
    self,
    settings: Settings,
    dataset: Dataset,
    parts: Sequence[np.ndarray],
    model: keras.Model,
    server: Server,
    devices: training_loop.Devices,
  ):
    """Takes the run up where its latest checkpoint is.

    Args:
      settings: of the run.
      dataset: what is learned.
      parts: the examples of each device, indices into the training examples.
      model: shows the server's model where it is evaluated and saved.
      server: has the model.
      devices: work for it.

    Raises:
      OSError: a file cannot be written.
      ValueError: the output holds a checkpoint that is not this run's.
    """
    self.settings = settings
    self._dataset = dataset
    self._parts = parts
    self._model = model
    self._server = server
    self._devices = devices
    self._journal = Journal(settings.flags, dataset.digest())
    self._report = FederatedReport(sum(x.nbytes for x in server.weights))
    self._events = EventLog(_path(settings, output.EVENTS))
    self._state = ServerState()
    self._checkpoints = None
    if settings.output:
      self._checkpoints = Checkpoints(
        _path(settings, output.CHECKPOINTS),
        Process(),
        self._journal,
        {"model": model, "server": self._state},
      )
      self._go_on()

  def train(self, show: Callable[[int, Mapping[str, float]], None]) -> None:
    """Trains to the last version.

    Args:
      show: is told of each version, with what is known of it.

    Raises:
      ParameterServerLostError: the run cannot go on in this process.
      OSError: a file cannot be written.
    """
    settings = self.settings
    evaluations = Evaluations(
      settings,
      test_function(self._model, self._dataset),
      self._journal,
      show,
    )

    def on_event(event: Event) -> None:
      self._report.add(event)
      self._events.add(event)
      evaluations.add(event)

    def on_version(version: int) -> None:
      show(version, {})
      is_last = version == settings.steps
      if is_last or version % settings.evaluate_every == 0:
        self._show_model()
        evaluations.evaluate(version)
      if is_last or version % settings.checkpoint_every == 0:
        self._save(version)

    if not self._journal.evaluations:
      evaluations.evaluate(0)
    training_loop.run(
      self._server,
      self._devices,
      settings.steps,
      deadline_s=settings.algorithm_arguments["deadline_s"],
      on_event=on_event,
      on_version=on_version,
    )

  def write_result(self) -> None:
    """Prints what came of the run, and writes it if there is a folder for it.

    Raises:
      OSError: a file cannot be written.
    """
    write_result(
      self.settings,
      self._dataset,
      self._parts,
      self._journal,
      self._model,
      self._report.to_json(),
    )

  def close(self) -> None:
    """Closes what is open."""
    self._events.close()

  def _go_on(self) -> None:
    """Takes the run back to the newest version that all is there of.

    Without any it begins.
    """
    damage = {}
    for version in self._checkpoints.found.whole:
      self._checkpoints.restore(version)
      try:
        self._events.open(self._state.values["events"])
      except DamagedLogError as error:
        damage = {output.EVENTS: str(error)}
        continue
      self._restore_server()
      self._checkpoints.start(version, damage)
      return
    self._checkpoints.start(0, damage)
    self._events.open(None)

  def _restore_server(self) -> None:
    values = self._state.values
    weights = [v.numpy() for v in exchanged_variables(self._model)]
    self._server.restore(values["server"], weights)
    self._report = FederatedReport.from_json(values["report"])
    if self._state.models:
      self._devices.restore(values["published"], self._state.models)

  def _save(self, version: int) -> None:
    if not self._checkpoints:
      return
    self._state.values = {
      "server": self._server.state(),
      "report": self._report.to_json(),
      "events": self._events.saved(),
    }
    if isinstance(self._devices, SimulatedDevices):
      kept = self._devices.state()
      self._state.values["published"] = kept["version"]
      self._state.models = kept["models"]
    self._checkpoints.save(version)

  def _show_model(self) -> None:
    variables = exchanged_variables(self._model)
    for variable, value in zip(variables, self._server.weights, strict=True):
      variable.assign(value)


def prepare(
  settings: Settings,
  dataset: Dataset,
  parts: Sequence[np.ndarray],
  task: ClusterTask | None,
) -> FederatedJob:
  """Returns the job, after the version of its latest checkpoint.

  To be called before TensorFlow has run anything.

  Args:
    settings: of the run.
    dataset: what is learned.
    parts: the examples of each device, indices into the training examples.
    task: of this process, the coordinator of a cluster; None without one.

  Raises:
    OSError: a process of the cluster does not answer, or a file cannot be
      written.
    ValueError: the settings do not go together; or the output holds a
      checkpoint that is not this run's.
  """
  keras.utils.set_random_seed(settings.seed)
  coordinator = task and connect(
    {PS: task.cluster[PS], WORKER: task.cluster[WORKER]},
    settings.cluster_timeout_s,
  )
  model = MODELS[settings.model](
    dataset.input_shape, dataset.num_classes, settings.seed
  )
  tasks = experiment.make_tasks(settings, parts)
  num_workers = len(task.cluster[WORKER]) if task else 1
  server = experiment.make_server(settings, model, tasks, dataset, num_workers)
  local_training = experiment.make_local_training(settings, model, server)
  data = experiment.make_data(dataset)
  if coordinator:
    devices = RemoteDevices(
      coordinator,
      local_training,
      data,
      server_timeout_s=settings.cluster_timeout_s,
    )
  else:
    devices = SimulatedDevices(
      local_training,
      data,
      max_staleness=settings.algorithm_arguments.get("simulated_staleness", 0),
      seed=settings.seed,
    )
  return FederatedJob(settings, dataset, parts, model, server, devices)


def _path(settings: Settings, name: str) -> str | None:
  return settings.output and os.path.join(settings.output, name)
