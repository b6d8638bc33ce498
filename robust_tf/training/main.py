"""The command `robust-train`.

Bad input is one line on stderr and exit code 2. Anything else is a bug, and
may trace.
"""

import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from robust_tf.federated.training_loop import ParameterServerLostError
from robust_tf.federated.training_loop import TrainingStalledError
from robust_tf.training import output
from robust_tf.training.algorithms import SYNCHRONOUS
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.cluster_roles import serve
from robust_tf.training.cluster_roles import supervise
from robust_tf.training.cluster_roles import warn_of_listening
from robust_tf.training.cluster_task import CHIEF
from robust_tf.training.cluster_task import this_task
from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from robust_tf.training.help import help_text
from robust_tf.training.parts import make_parts
from robust_tf.training.printable import printable
from robust_tf.training.process import this_process
from robust_tf.training.progress import StepProgress
from robust_tf.training.settings import parse_settings
from robust_tf.training.settings import Settings
from robust_tf.training.supervisor import TRY_AGAIN

STALLED = 1  # all that devices pushed was refused
BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT

_WITH_SERVERS = ("multi_worker", "parameter_server")
_HELP = {"-h", "-help", "--help", "--helpfull", "--helpshort"}


def main(argv: Sequence[str], is_member: bool = False) -> int:
  """Runs `robust-train` and returns its exit code.

  Args:
    argv: the arguments, without the program's name.
    is_member: whether a supervisor started this process, see `supervisor`.
  """
  # TensorFlow's C++ code reads it when it is loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  if _HELP.intersection(argv):
    print(help_text())
    return 0
  if "--version" in argv:
    print(f"robust-train {importlib.metadata.version('baechi-tf')}")
    return 0
  try:
    with contextlib.ExitStack() as stack:
      try:
        settings = parse_settings(argv)
        if settings.local_cluster and not is_member:
          return supervise(settings, argv)
        job = _prepare(settings, is_member, stack)
      except (ValueError, OSError) as error:
        return _complain(error)
      return_code = _finish(job)
    sys.stdout.flush()
    return return_code
  except BrokenPipeError:
    # Whoever read our output has seen enough. Python flushes stdout once more
    # when it exits, and must not fail then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    return _complain(error)
  except KeyboardInterrupt as interrupt:
    if not is_member:  # or the supervisor says so
      print("robust-train: interrupted", file=sys.stderr)
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
  return 0


def run() -> NoReturn:
  """The console script."""
  # What TensorFlow warns of is for those who wrote the program.
  logging.getLogger("tensorflow").setLevel(logging.ERROR)
  sys.exit(main(sys.argv[1:]))


def _prepare(settings: Settings, is_member: bool, stack: contextlib.ExitStack):
  """Returns the job; the stack keeps its folder.

  Args:
    settings: of the run.
    is_member: whether the folder is the supervisor's to keep.
    stack: see above.

  Raises:
    ValueError: the input is bad.
    OSError: a file cannot be read or written, or a process does not answer.
  """
  process = this_process(settings.strategy)
  task = None
  if settings.strategy == "parameter_server":
    task = this_task()
  if settings.strategy in _WITH_SERVERS and not is_member:
    warn_of_listening()
  if task:
    if task.job != CHIEF:
      with _silent_stderr():
        import tensorflow  # noqa: F401  here, where it is silent
      serve(task, settings)
    _bear_with_losses()
  if settings.workers % process.count:
    raise ValueError(
      f"--workers={settings.workers} cannot be spread evenly over the"
      f" {process.count} processes of TF_CONFIG"
    )
  dataset = load(settings.data, settings.seed)
  parts = make_parts(settings, dataset)
  batches = None
  if settings.algorithm == SYNCHRONOUS:
    batches = _batches(settings, dataset, parts)
  if settings.output and process.is_chief and not is_member:
    stack.enter_context(
      output.run_folder(settings.output, settings.flags, settings.overwrite)
    )
  # Takes seconds: --help and many a complaint do without.
  if batches is None:
    with _silent_stderr():
      from robust_tf.training import federated_job
    federated = federated_job.prepare(settings, dataset, parts, task)
    stack.callback(federated.close)
    return federated
  with _silent_stderr():
    from robust_tf.training import job
  return job.prepare(settings, batches, process)


def _finish(job) -> int:
  """Trains, and writes what came of it; returns the exit code.

  Where a parameter server is gone, the process ends here.
  """
  try:
    with StepProgress(job.settings.steps, job.quiet) as progress:
      job.train(progress)
  except ParameterServerLostError as error:
    print(
      f"robust-train: {error}; started again with it, the coordinator goes on"
      " from its latest checkpoint",
      file=sys.stderr,
      flush=True,
    )
    # What TensorFlow does before it ends, it would do with that server.
    os._exit(TRY_AGAIN)
  except TrainingStalledError as error:
    _complain(error)
    return STALLED
  except ValueError as error:
    if job.settings.algorithm == SYNCHRONOUS:
      raise
    return _complain(error)  # a round that the rule cannot work with
  job.write_result()
  return 0


def _batches(
  settings: Settings, dataset: Dataset, parts: Sequence[np.ndarray]
) -> WorkerBatches:
  flips = settings.attack == LABEL_FLIP
  return WorkerBatches(
    dataset,
    parts,
    settings.batch_size,
    settings.seed,
    flipped_workers=settings.byzantine if flips else (),
    flipped_from=settings.attack_start_step,
  )


def _bear_with_losses() -> None:
  """Keeps TensorFlow from writing about processes that are gone.

  That a worker is lost is no error: another one does its tasks.
  """
  logging.getLogger("tensorflow").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
  """Drops what C++ code writes, which does not know `sys.stderr`.

  TensorFlow's libraries log while they are loaded, whatever they are told
  (checked with TensorFlow 2.21). An import that fails still raises.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  null = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(null, 2)
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(null)
    os.close(stderr)


def _complain(error: Exception) -> int:
  message = str(error)
  if isinstance(error, OSError) and error.strerror:
    named = "" if error.filename is None else f"{error.filename}: "
    message = f"{named}{error.strerror}"
  # One line, whatever is in it.
  message = printable(" ".join(message.split()))
  print(f"robust-train: {message}", file=sys.stderr)
  return BAD_INPUT
