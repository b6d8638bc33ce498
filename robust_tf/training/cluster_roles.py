"""What processes do in a cluster that do not train: supervise, and serve."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NoReturn

from robust_tf.training import output
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import PS
from robust_tf.training.cluster_task import WORKER
from robust_tf.training.data import load
from robust_tf.training.parts import make_parts
from robust_tf.training.private_network import is_private
from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.private_network import private_network
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
      must be, or the system allows no private network.
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
    network = ()
    if settings.listen_on_network:
      warn_of_listening()
    else:
      network = stack.enter_context(_private_network())
    if settings.output:
      stack.enter_context(
        output.run_folder(settings.output, settings.flags, settings.overwrite)
      )
      logs = os.path.join(settings.output, output.PROCESSES)
    else:
      logs = tempfile.mkdtemp(prefix="robust_train_")
    code = Supervisor(
      [*network, sys.executable, "-m", _MEMBER, *argv],
      settings.local_cluster,
      max_restarts=settings.max_restarts,
      log_directory=logs,
    ).run()
  if not (settings.output or code):
    shutil.rmtree(logs)
  return code


def warn_of_listening() -> None:
  """Says on stderr who can use TensorFlow's servers, if others can at all."""
  if not is_private():
    print(
      "robust-train: warning: TensorFlow's servers listen on every interface"
      " and ask for no password; whoever reaches this machine can read and"
      " write files as this user: use a trusted network only",
      file=sys.stderr,
      flush=True,
    )


@contextlib.contextmanager
def _private_network() -> Iterator[tuple[str, ...]]:
  try:
    with private_network() as prefix:
      yield prefix
  except NotAllowedError as error:
    raise ValueError(
      "--local_cluster runs in a network of its own, because TensorFlow's"
      " servers listen on every interface and ask for no password; this system"
      f" allows none: {error}. Give --listen_on_network if you trust everyone"
      " who reaches this machine"
    ) from None


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
