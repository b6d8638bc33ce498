"""The command `baechi`: parses the arguments and runs a subcommand.

Bad input is one line on stderr and exit code 2, a model that does not fit one
line and exit code 3, Ctrl-C one line and exit code 130, SIGTERM one
line and 143. Anything else is a bug, and may trace.
"""

import argparse
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from absl.flags import argparse_flags

from baechi_tf.cli.flag_names import with_flags
from baechi_tf.cli.help import HelpFormatter
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.printable import printable

BAD_INPUT = 2
INFEASIBLE = 3

_EXAMPLE = """\
examples:
  baechi inspect model/
  baechi place model/ placed/ --cluster configs/clusters/2_cpus.toml
"""


class _Parser(argparse_flags.ArgumentParser):
  """A parser whose complaints are one line."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str]) -> int:
  """Runs `baechi` and returns its exit code.

  Args:
    argv: the arguments, without the program's name.
  """
  # TensorFlow's C++ code reads it when it is loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    args = _parser().parse_args(argv)
    from baechi_tf.cli.flag_rules import check_flags  # slow, see `_parser`

    check_flags(args)
    args.run(args)
    sys.stdout.flush()
  except InfeasiblePlacementError as error:
    return _complain(error, INFEASIBLE)
  except BrokenPipeError:
    # Whoever read our output has seen enough. Python flushes stdout once more
    # when it exits, and must not fail then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (ValueError, OSError, flags.Error) as error:
    return _complain(error, BAD_INPUT)
  except KeyboardInterrupt as stopped:
    number = stopped.args[0] if stopped.args else signal.SIGINT
    return _complain("interrupted", 128 + number)
  return 0


def run() -> NoReturn:
  """The console script."""
  # A character that the terminal's encoding lacks must not fail the run.
  sys.stdout.reconfigure(errors="backslashreplace")
  # Being told to end must end the processes of a run too.
  signal.signal(signal.SIGTERM, _interrupt)
  sys.exit(main(sys.argv[1:]))


def _interrupt(number: int, frame) -> NoReturn:
  """Ends this process as Ctrl-C does: a handler of signals."""
  del frame
  raise KeyboardInterrupt(number)


def _parser() -> argparse_flags.ArgumentParser:
  # Seconds of imports, which Ctrl-C must end with one line too.
  from baechi_tf.cli import bench_links
  from baechi_tf.cli import compare
  from baechi_tf.cli import explain
  from baechi_tf.cli import inspect
  from baechi_tf.cli import place
  from baechi_tf.cli import profile
  from baechi_tf.cli import run as run_command
  from baechi_tf.cli import simulate

  parser = _Parser(
    prog="baechi",
    description="Places TensorFlow models on devices that are too small for"
    " them, so that\na step is as short as it can be.",
    epilog=_EXAMPLE,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  # absl puts the file's lines in its place before the arguments are parsed.
  parser.add_argument(
    "--flagfile",
    metavar="FILE",
    help="take arguments from a file, one a line; can be given anywhere",
  )
  parser.add_argument(
    "--version", action=_Version, nargs=0, help="print the version and exit"
  )
  subparsers = parser.add_subparsers(
    title="commands", metavar="COMMAND", required=True
  )
  for subcommand in (
    place,
    profile,
    inspect,
    compare,
    simulate,
    explain,
    run_command,
    bench_links,
  ):
    subcommand.add_parser(subparsers)
  return parser


class _Version(argparse.Action):
  """Prints the version, which is looked up only then."""

  def __call__(self, parser, namespace, values, option_string=None):
    print(f"baechi {importlib.metadata.version('baechi-tf')}")
    parser.exit()


def _complain(error: Exception | str, code: int) -> int:
  message = with_flags(str(error))
  if isinstance(error, OSError) and error.strerror:
    named = "" if error.filename is None else f"{error.filename}: "
    message = f"{named}{error.strerror}"
  # One line, whatever is in it.
  message = printable(" ".join(message.split()))
  print(f"baechi: {message}", file=sys.stderr)
  return code
