"""The flags that have no effect beside others, which are refused.

A flag that silently does nothing lets a user believe that it did. Arguments of
the library that exclude each other are refused there.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable

from baechi_tf.cli.model_input import is_cost_graph
from baechi_tf.cli.place import emits_plan
from baechi_tf.planner import BEST

_PREDICTING = ("place", "compare", "simulate", "explain")


@dataclasses.dataclass(frozen=True)
class _Rule:
  """Flags that have no effect in some case.

  Attributes:
    commands: the subcommands that it is about.
    flags: the flags, by the names that they have in Python.
    has_no_effect: whether it is so with these arguments.
    reason: what follows the flag in the message; arguments in braces.
  """

  commands: tuple[str, ...]
  flags: tuple[str, ...]
  has_no_effect: Callable[[argparse.Namespace], bool]
  reason: str


_RULES = (
  _Rule(
    (*_PREDICTING, "inspect"),
    ("signature", "fetch", "tags", "no_rewrite", "profile", "estimate",
     "batch_size", "input_shape", "inputs", "keep_devices"),
    lambda args: is_cost_graph(args.model),
    "is for TensorFlow models; {model} is a cost graph, which has its costs in"
    " it",
  ),
  _Rule(
    ("place",),
    ("search_seconds", "search_evaluations", "search_seed", "no_coplacement",
     "no_fusion", "verify"),
    lambda args: bool(args.plan),
    "is for planning: --plan gives a plan",
  ),
  _Rule(
    ("place",),
    ("placer",),
    lambda args: bool(args.plan) and args.placer != BEST,
    "is for planning: --plan gives a plan",
  ),
  _Rule(
    ("place",),
    ("search_seconds", "search_evaluations", "search_seed"),
    lambda args: args.placer != BEST,
    "is of no use with --placer {placer}: only best searches",
  ),
  _Rule(
    ("place",),
    ("search_seconds",),
    lambda args: args.search_evaluations is not None,
    "is of no use with --search-evaluations, which count instead of time",
  ),
  _Rule(
    ("place",),
    ("search_seed",),
    lambda args: 0 in (args.search_seconds, args.search_evaluations),
    "is of no use without a search",
  ),
  _Rule(
    ("place",),
    ("verify",),
    lambda args: emits_plan(args) or not os.path.isdir(args.model),
    "runs a placed SavedModel: IN must be one, without --emit plan",
  ),
  _Rule(
    ("place",),
    ("verify",),
    lambda args: bool(args.fetch),
    "runs a signature: it is of no use with --fetch",
  ),
  _Rule(
    ("place",),
    ("listen_on_network",),
    lambda args: not args.verify,
    "is for the processes that --verify starts",
  ),
  _Rule(
    ("place",),
    ("follow_links",),
    lambda args: emits_plan(args) or os.path.isfile(args.model),
    "is for SavedModels that are written: there are no files to copy",
  ),
  _Rule(
    ("compare", "simulate"),
    ("overwrite",),
    lambda args: not args.report,
    "is of no use without --report: nothing else is written",
  ),
  _Rule(
    ("run",),
    ("overwrite",),
    lambda args: not args.trace,
    "is of no use without --trace: nothing else is written",
  ),
  _Rule(
    ("run",),
    ("fetch",),
    lambda args: True,
    "is of no use here: run takes a --signature",
  ),
  _Rule(
    ("run", "bench-links"),
    ("serve",),
    lambda args: not args.host,
    "needs the hosts: give --host for each",
  ),
  _Rule(
    ("run",),
    ("task",),
    lambda args: not args.serve,
    "{task} is for --serve: the first host runs the steps",
  ),
  _Rule(
    ("run",),
    ("limit_memory", "listen_on_network"),
    lambda args: bool(args.host),
    "is for processes of this machine",
  ),
  _Rule(
    ("run",),
    ("plan", "trace", "json", "signature", "tags", "profile", "estimate",
     "batch_size", "input_shape", "inputs"),
    lambda args: args.serve,
    "is of no use with --serve: the first host runs the steps",
  ),
)  # fmt: skip


def check_flags(args: argparse.Namespace) -> None:
  """Refuses a flag that has no effect beside the others.

  Args:
    args: the parsed arguments, with `command`.

  Raises:
    ValueError: there is one; the message names it and says why.
  """
  for rule in _RULES:
    if args.command in rule.commands and rule.has_no_effect(args):
      for name in rule.flags:
        if _is_given(args, name):
          flag = f"--{name.replace('_', '-')}"
          raise ValueError(f"{flag} {rule.reason.format(**vars(args))}")


def _is_given(args: argparse.Namespace, name: str) -> bool:
  """Whether a flag is given; those in the rules have no default."""
  if name.startswith("no_"):
    return not getattr(args, name.removeprefix("no_"))
  value = getattr(args, name, None)
  return value is not None and value is not False and value != []
