"""The parameters of rules and attacks, read without importing them.

The functions' own signatures say what `--trim` and the like belong to. They
are read from the source, because importing a rule imports TensorFlow, and that
takes seconds which `--help` and a mistyped flag should not cost.
"""

import ast
import pathlib
from collections.abc import Mapping

_ROOT = pathlib.Path(__file__).parents[2]


def read_signatures(
  package: str, table: str
) -> dict[str, dict[str, str | None]]:
  """Returns the parameters of each function in a package's table.

  Args:
    package: its dotted name, one of ours.
    table: the name of a literal `{"name": function, ...}` in its `__init__`,
      of functions that it imports from its modules.

  Returns:
    By name in the table, the source text of each parameter's default; None for
    a parameter that has none.
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
    ast.literal_eval(name): _parameters(*modules[ast.unparse(function)])
    for name, function in zip(functions.keys, functions.values, strict=True)
  }


def _parse(module: str) -> ast.Module:
  path = _ROOT.joinpath(*module.split("."))
  source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
  return ast.parse(source.read_text(encoding="utf-8"), source)


def _parameters(module: str, function: str) -> dict[str, str | None]:
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


def parameters_of(
  signatures: Mapping[str, Mapping[str, str | None]],
) -> dict[str, list[str]]:
  """Returns, for each parameter, the functions that take it."""
  takers = {}
  for name, parameters in signatures.items():
    for parameter in parameters:
      takers.setdefault(parameter, []).append(name)
  return takers
