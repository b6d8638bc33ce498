"""Says in one error that a process was lost while a placed model ran in it."""

import functools
import re
from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf

from baechi_tf.runner.tasks import tasks_of

_METHODS = (
  "fit",
  "evaluate",
  "predict",
  "train_on_batch",
  "test_on_batch",
  "predict_on_batch",
)
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError)
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")


def report_lost_processes(
  model: keras.Model, device_names: Sequence[str]
) -> None:
  """Has `fit` and its kin raise `ConnectionError` when a process is lost.

  Args:
    model: a placed model.
    device_names: the cluster's. Where they are of one process, nothing changes.
  """
  tasks = tasks_of(device_names)
  if len(tasks) < 2:
    return
  others = [task.name for task in tasks[1:]]
  for name in _METHODS:
    method = getattr(type(model), name).__get__(model)
    setattr(model, name, _reporting(model.name, method, others))


def _reporting(
  model_name: str, method: Callable, others: Sequence[str]
) -> Callable:
  """Returns a method that turns the errors of lost processes into one."""

  @functools.wraps(method)
  def call(*args, **kwargs):
    try:
      return method(*args, **kwargs)
    except _LOST as error:
      named = {f"/job:{x}/task:{i}" for x, i in _TASK.findall(error.message)}
      lost = [task for task in others if task in named]
      if not lost:
        raise
      raise ConnectionError(
        f"model {model_name!r} runs in several processes, and"
        f" {', '.join(lost)} does not answer any more: the variables there are"
        " lost. Start it again, and this program, and go on from what"
        " keras.callbacks.BackupAndRestore or ModelCheckpoint has saved"
      ) from error

  return call
