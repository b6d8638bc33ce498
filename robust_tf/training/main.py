"""The command `robust-train`.

Bad input is one line on stderr and exit code 2. Anything else is a bug, and
may trace.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NoReturn

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training import output
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from robust_tf.training.help import help_text
from robust_tf.training.process import this_process
from robust_tf.training.progress import StepProgress
from robust_tf.training.settings import parse_settings
from robust_tf.training.settings import Settings

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT

_HELP = {"-h", "-help", "--help", "--helpfull", "--helpshort"}


def main(argv: Sequence[str]) -> int:
  """Runs `robust-train` and returns its exit code.

  Args:
    argv: the arguments, without the program's name.
  """
  # TensorFlow's C++ code reads it when it is loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  if _HELP.intersection(argv):
    print(help_text())
    return 0
  try:
    with contextlib.ExitStack() as stack:
      try:
        job = _prepare(parse_settings(argv), stack)
      except (ValueError, OSError) as error:
        return _complain(error)
      _finish(job)
    sys.stdout.flush()
  except BrokenPipeError:
    # Whoever read our output has seen enough. Python flushes stdout once more
    # when it exits, and must not fail then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    return _complain(error)
  except KeyboardInterrupt:
    print("robust-train: interrupted", file=sys.stderr)
    return INTERRUPTED
  return 0


def run() -> NoReturn:
  """The console script."""
  # What TensorFlow warns of is for those who wrote the program.
  logging.getLogger("tensorflow").setLevel(logging.ERROR)
  sys.exit(main(sys.argv[1:]))


def _prepare(settings: Settings, stack: contextlib.ExitStack):
  """Returns the job; the stack keeps its folder.

  Raises:
    ValueError: the input is bad.
    OSError: a file cannot be read or written.
  """
  process = this_process(settings.strategy)
  if settings.workers % process.count:
    raise ValueError(
      f"--workers={settings.workers} cannot be spread evenly over the"
      f" {process.count} processes of TF_CONFIG"
    )
  batches = _batches(settings, load(settings.data, settings.seed))
  if settings.output and process.is_chief:
    stack.enter_context(
      output.run_folder(settings.output, settings.flags, settings.overwrite)
    )
  with _silent_stderr():
    # Takes seconds: --help and many a complaint do without.
    from robust_tf.training import job
  return job.prepare(settings, batches, process)


def _finish(job) -> None:
  """Trains, and writes what came of it."""
  from robust_tf.training.result import write_result

  quiet = not job.process.is_chief
  with StepProgress(job.settings.steps, quiet) as progress:
    job.train(progress)
  if job.process.is_chief:
    write_result(job.settings, job.batches, job.journal, job.model)


def _batches(settings: Settings, dataset: Dataset) -> WorkerBatches:
  try:
    parts = PARTITIONS[settings.partition](
      dataset.y_train,
      settings.workers,
      settings.seed,
      **settings.partition_arguments,
    )
  except ValueError as error:
    raise ValueError(f"--partition={settings.partition}: {error}") from None
  flips = settings.attack == LABEL_FLIP
  return WorkerBatches(
    dataset,
    parts,
    settings.batch_size,
    settings.seed,
    flipped_workers=settings.byzantine if flips else (),
    flipped_from=settings.attack_start_step,
  )


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
  print(f"robust-train: {' '.join(message.split())}", file=sys.stderr)
  return BAD_INPUT
