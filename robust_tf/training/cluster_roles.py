"""What processes do in a cluster that do not train: supervise, and serve."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from robust_tf.training import output
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import PS
from robust_tf.training.cluster_task import WORKER
from robust_tf.training.data import load
from robust_tf.training.parts import make_parts
from robust_tf.training.settings import Settings
from robust_tf.training.supervisor import Supervisor
from robust_tf.training.uninterrupted import interrupt

_MEMBER = "robust_tf.training.cluster_member"


def supervise(settings: Settings, argv: Sequence[str]) -> int:
  """Runs a cluster on this machine; returns the run's exit code.

  Args:
    settings: of the run.
    argv: its flags, which every process gets.

  Raises:
    OSError: a process cannot be started, or a file not be written.
    ValueError: the examples, the output or the environment are not as they
      must be.
  """
  if os.environ.get("TF_CONFIG"):
    raise ValueError(
      "the variable TF_CONFIG is set, and --local_cluster starts processes with"
      " one of their own: unset it, or leave --local_cluster out"
    )
  # Known to be wrong before anything is started.
  make_parts(settings, load(settings.data, settings.seed))
  signal.signal(signal.SIGTERM, interrupt)  # must end the processes too
  with contextlib.ExitStack() as stack:
    if settings.output:
      stack.enter_context(
        output.run_folder(settings.output, settings.flags, settings.overwrite)
      )
      logs = os.path.join(settings.output, output.PROCESSES)
    else:
      logs = tempfile.mkdtemp(prefix="robust_train_")
    code = Supervisor(
      [sys.executable, "-m", _MEMBER, *argv],
      settings.local_cluster,
      max_restarts=settings.max_restarts,
      log_directory=logs,
    ).run()
  if not (settings.output or code):
    shutil.rmtree(logs)
  return code


def serve(task: ClusterTask, settings: Settings) -> NoReturn:
  """Is a worker or a parameter server, until the process is ended.

  Args:
    task: what this process is.
    settings: of the run.

  Raises:
    OSError: the server cannot be started.
  """
  import tensorflow as tf

  from robust_tf.distribute import parameter_server

  # C++ code waits, which Python's own handlers do not interrupt.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
  size = settings.local_cluster
  shared_by = size.workers + size.ps if size else 1
  try:
    parameter_server.serve(
      {job: task.cluster[job] for job in (PS, WORKER)},
      task.job,
      task.index,
      num_threads=max(1, (os.cpu_count() or 1) // shared_by),
    )
  except tf.errors.OpError as error:
    raise OSError(
      f"{task.job} {task.index} cannot listen at"
      f" {task.cluster[task.job][task.index]}: {str(error).splitlines()[0]}"
    ) from None
  raise AssertionError("a server returned")
