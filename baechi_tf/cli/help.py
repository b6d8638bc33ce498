"""How `--help` looks, and how a subcommand's parser is made."""

import argparse
import sys


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
  """Keeps examples as they are, and gives options room."""

  def __init__(self, prog: str):
    super().__init__(prog, max_help_position=30, width=80)


def add_subparser(
  subparsers, name: str, run, *, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
  """Returns the parser of a subcommand, which calls `run` with its arguments.

  Args:
    subparsers: what `add_subparsers` returned.
    name: of the subcommand.
    run: called with the parsed arguments.
    summary: half a line for the list of commands.
    description: what the subcommand does.
    example: commands that show its use.
  """
  indented = "".join(f"  {line}\n" for line in example.strip().splitlines())
  parser = subparsers.add_parser(
    name,
    help=summary,
    description=description,
    epilog=f"example:\n{indented}",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.set_defaults(run=run, command=name)
  return parser


def path(text: str) -> str:
  """Returns an argument that is a path.

  Raises:
    argparse.ArgumentTypeError: the path is empty.
  """
  if not text:
    raise argparse.ArgumentTypeError("the path is empty")
  return text


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds `--json`."""
  parser.add_argument(
    "--json",
    action="store_true",
    help="print one JSON object instead of text",
  )


def warn_of_open_server() -> None:
  """Warns on stderr that a server of TensorFlow is about to be reachable."""
  print(
    "baechi: warning: TensorFlow's server listens on every interface and asks"
    " for no password; whoever reaches this machine can read and write files"
    " as this user: use a trusted network only",
    file=sys.stderr,
    flush=True,
  )


def add_network(parser: argparse.ArgumentParser) -> None:
  """Adds `--listen-on-network`."""
  parser.add_argument(
    "--listen-on-network",
    action="store_true",
    help="leave the processes in this machine's network, where TensorFlow's"
    " servers listen on every interface and ask for no password; default: a"
    " network of their own",
  )
