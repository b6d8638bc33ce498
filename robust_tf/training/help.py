"""What `robust-train --help` prints."""

import re
import textwrap
from collections.abc import Iterator

from absl import flags

from robust_tf.training import job_flags
from robust_tf.training.algorithms import ALGORITHMS
from robust_tf.training.algorithms import SYNCHRONOUS
from robust_tf.training.choices import parameters
from robust_tf.training.choices import Signatures
from robust_tf.training.choices import signatures

_USAGE = """\
usage: robust-train [--flagfile=FILE] [--NAME=VALUE ...]
       robust-train --help | --version

Trains a model on n workers of which some may be Byzantine: an aggregation rule
makes one update of theirs. Or on n workers that send little: with optimizers
such as cser each has a model of its own, or sends a part of its step. Or on
many devices, few at a time: with --algorithm, in this process or a cluster.

A flag that comes later wins, so give --flagfile first and what differs from it
after.

examples:
  robust-train --aggregator=phocas --trim=8 --attack=gaussian --byzantine=0-5
  robust-train --flagfile=configs/train/digits_krum_ipm.flags --output=krum
  robust-train --optimizer=cser --gradient_compressor=grbs:64 --sync_period=8
  robust-train --flagfile=krum/run.flags --seed=1 --output=krum_again
  robust-train --flagfile=configs/train/digits_fed_async.flags
  robust-train --algorithm=fed_avg --devices_per_round=5 \\
    --strategy=parameter_server --local_cluster=workers:2,ps:1
"""
_WIDTH, _INDENT = 80, 30


def help_text() -> str:
  """Returns the usage, examples, and all flags by group."""
  values = flags.FlagValues()
  job_flags.define_flags(values)
  tables = signatures()
  lines = [_USAGE]
  for group, members in values.flags_by_module_dict().items():
    lines.append(f"{group}:")
    for flag in members:
      lines.extend(_flag_lines(flag, tables))
      if flag.name in ("aggregator", "attack", "algorithm", "staleness"):
        lines.extend(_choice_lines(tables[flag.name]))
    lines.append("")
  return "\n".join(lines)


def _flag_lines(
  flag: flags.Flag, tables: dict[str, Signatures]
) -> Iterator[str]:
  """Yields a flag, what takes it, what it does and its default."""
  name = f"  --{'[no]' if flag.boolean else ''}{flag.name}{_value(flag)}"
  takers = [
    taker
    for table in tables.values()
    for taker in parameters(table).get(flag.name, ())
  ]
  takers += [
    name for name, taken in job_flags.OPTIMIZERS.items() if flag.name in taken
  ]
  # absl puts the values of an enum in front.
  text = re.sub(r"^<[^>]*>: ", "", flag.help)
  if set(takers) == ALGORITHMS.keys() - {SYNCHRONOUS}:
    takers = ["all but synchronous"]
  if takers:
    text = f"{', '.join(takers)}: {text[0].lower()}{text[1:]}"
  if flag.default is not None and not flag.boolean:
    text += f" Default: {flag.default}."
  described = textwrap.wrap(text, _WIDTH - _INDENT)
  if len(name) >= _INDENT:
    yield name
    name = ""
  for line in described:
    yield f"{name:{_INDENT}}{line}"
    name = ""


def _value(flag: flags.Flag) -> str:
  if flag.boolean:
    return ""
  choices = getattr(flag.parser, "enum_values", None)
  if choices:
    shown = f"={'|'.join(choices)}"
    return shown if len(shown) < _WIDTH // 2 else "=NAME"
  return {
    "int": "=N",
    "float": "=X",
    "list of integers": "=N,N-N,...",
    "compressor": "=NAME:X",
    "number or range": "=N|N-N",
    "size of a cluster": "=workers:N,ps:N",
  }.get(flag.flag_type(), "=TEXT")


def _choice_lines(table: Signatures) -> list[str]:
  """Returns the functions that a flag can choose, with what they take."""
  taken = parameters(table)
  calls = []
  for name, names in sorted(table.items()):
    arguments = [
      x if default is None else f"{x}={default}"
      for x, default in names.items()
      if x in taken
    ]
    calls.append(f"{name}({', '.join(arguments)})" if arguments else name)
  indent = " " * _INDENT
  return [
    line
    for call in calls
    for line in textwrap.wrap(
      call, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  "
    )
  ]
