"""Which function a flag chooses, and which flags are its arguments.

The partition, the aggregation rule and the attack are functions, chosen by
name; the flags that are their parameters are known from their signatures. What
algorithms take is in `algorithms`.
Those of rules and attacks are read from the source, because importing one
imports TensorFlow, and that takes seconds which `--help` and a mistyped flag
should not cost.
"""

import ast
import difflib
import inspect
import pathlib
from collections.abc import Collection
from collections.abc import Mapping

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training.algorithms import algorithm_signatures
from robust_tf.training.algorithms import staleness_signatures

# Attacks on a worker's examples, beside the attacks on its update.
LABEL_FLIP = "label_flip"

# Arguments that the job itself gives to the functions.
SUPPLIED = frozenset(
  {
    "aggregator", "attack", "byzantine", "labels", "learning_rate", "loss",
    "num_workers", "seed", "updates",
  }
)  # fmt: skip

# Names that other libraries and papers give to what we name otherwise.
ALIASES = {
  "alie": "a_little_is_enough",
  "average": "mean",
  "coordinate_wise_median": "median",
  "cwmed": "median",
  "cwtm": "trimmed_mean",
  "empire": "inner_product",
  "fall_of_empires": "inner_product",
  "foe": "inner_product",
  "geomed": "geometric_median",
  "gm": "geometric_median",
  "inf": "non_finite",
  "ipm": "inner_product",
  "lf": "label_flip",
  "little": "a_little_is_enough",
  "nan": "non_finite",
  "rfa": "geometric_median",
  "sf": "sign_flip",
  "signflip": "sign_flip",
  "signsgd": "scaled_sign",
  "tm": "trimmed_mean",
  "trmean": "trimmed_mean",
}

# By function, the source text of each parameter's default; None where there
# is no default.
Signatures = Mapping[str, Mapping[str, str | None]]

_ROOT = pathlib.Path(__file__).parents[2]


def signatures() -> dict[str, Signatures]:
  """Returns the functions that can be chosen, by the flag that chooses."""
  return {
    "partition": {
      name: {
        parameter.name: None
        if parameter.default is parameter.empty
        else repr(parameter.default)
        for parameter in inspect.signature(function).parameters.values()
      }
      for name, function in PARTITIONS.items()
    },
    "aggregator": read_signatures("robust_tf.aggregators", "AGGREGATORS"),
    "attack": {
      **read_signatures("robust_tf.attacks", "ATTACKS"),
      LABEL_FLIP: {},
    },
    "algorithm": algorithm_signatures(),
    "staleness": staleness_signatures(),
  }


def chosen_arguments(
  values: Mapping[str, object],
) -> dict[str, dict[str, object]]:
  """Returns the arguments of each chosen function, by the flag that chooses.

  Args:
    values: of all flags, by name; None where one is not set.

  Raises:
    ValueError: there is no such function, one misses an argument, or a flag is
      set that none of them takes.
  """
  tables = signatures()
  for kind, table in tables.items():
    _check_name(kind, values[kind], table)
  _check_all_taken(values, tables)
  return {
    kind: _arguments(values, kind, values[kind], table)
    for kind, table in tables.items()
  }


def near(name: str, names: Collection[str], prefix: str = "") -> str:
  """Returns a question, if a name means the same or resembles this one."""
  plain = name.lower().replace("-", "_")
  meant = ALIASES.get(plain, ALIASES.get(plain.replace("_", "")))
  found = [meant] if meant in names else []
  found += difflib.get_close_matches(plain, sorted(names), n=1)
  return f" (did you mean {prefix}{found[0]}?)" if found else ""


def parameters(table: Signatures) -> dict[str, list[str]]:
  """Returns, for each parameter that is a flag, the functions that take it."""
  takers = {}
  for name, names in table.items():
    for parameter in names:
      if parameter not in SUPPLIED:
        takers.setdefault(parameter, []).append(name)
  return takers


def _check_name(kind: str, name: str | None, table: Signatures) -> None:
  if name is not None and name not in table:
    raise ValueError(
      f"--{kind}={name} is unknown{near(name, table)}; there are:"
      f" {', '.join(sorted(table))}"
    )


def _check_all_taken(
  values: Mapping[str, object], tables: Mapping[str, Signatures]
) -> None:
  taken = {
    parameter
    for kind, table in tables.items()
    for parameter in table.get(values[kind], ())
  }
  for kind, table in tables.items():
    for parameter, takers in parameters(table).items():
      if values[parameter] is None or parameter in taken:
        continue
      chosen = values[kind]
      raise ValueError(
        f"--{parameter} is an argument of --{kind}={' or '.join(takers)},"
        + (f" not of {chosen}" if chosen else f" and there is no --{kind}")
      )


def _arguments(
  values: Mapping[str, object], kind: str, name: str | None, table: Signatures
) -> dict[str, object]:
  """Returns the arguments that are given to the chosen function."""
  given = {}
  for parameter, default in table.get(name, {}).items():
    if parameter in SUPPLIED:
      continue
    if values[parameter] is not None:
      given[parameter] = values[parameter]
    elif default is None:
      raise ValueError(f"--{kind}={name} needs --{parameter}")
  return given


def read_signatures(
  package: str, table: str
) -> dict[str, dict[str, str | None]]:
  """Returns the parameters of each function in a package's table.

  Args:
    package: its dotted name, one of ours. It is not imported.
    table: the name of a literal `{"name": function, ...}` in its `__init__`,
      of functions that it imports from its modules.

  Returns:
    See `Signatures`.
  """
  tree = _parse(package)
  modules = {
    alias.asname or alias.name: (node.module, alias.name)
    for node in tree.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }
  (functions,) = (
    node.value
    for node in tree.body
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table
  )
  return {
    ast.literal_eval(name): _read_parameters(*modules[ast.unparse(function)])
    for name, function in zip(functions.keys, functions.values, strict=True)
  }


def _parse(module: str) -> ast.Module:
  path = _ROOT.joinpath(*module.split("."))
  source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
  return ast.parse(source.read_text(encoding="utf-8"), source)


def _read_parameters(module: str, function: str) -> dict[str, str | None]:
  (arguments,) = (
    node.args
    for node in _parse(module).body
    if isinstance(node, ast.FunctionDef) and node.name == function
  )
  positional = [*arguments.posonlyargs, *arguments.args]
  required = len(positional) - len(arguments.defaults)
  defaults = [
    *[None] * required,
    *arguments.defaults,
    *arguments.kw_defaults,
  ]
  return {
    argument.arg: None if default is None else ast.unparse(default)
    for argument, default in zip(
      [*positional, *arguments.kwonlyargs], defaults, strict=True
    )
  }
