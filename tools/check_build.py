"""Checks that the BUILD files say what the Python sources say.

BUILD files are read as Python. What this check wants: one target for every
first-party module, named after it, whose deps are the targets of the modules
that it imports: no fewer (which Bazel would find) and no more (which it would
not). The data of a package that imports its names when they are first used
(`_PUBLIC`, `_ROOMS`) are the targets of the modules that these are in. Whatever
comes before a file's first Python target is written by hand, as are attributes
such as `visibility`, so long as they are literals.

    python -m tools.check_build          # prints what is wrong, as a diff
    python -m tools.check_build --fix    # and mends it
"""

import ast
import difflib
import json
import pathlib
import sys
from collections.abc import Iterator
from importlib import util

from absl import app
from absl import flags

TOP_LEVEL = ("baechi_tf", "robust_tf", "tests", "tools")
_RULES = ("py_binary", "py_library", "pytest_test")
_FIRST = ("name", "size", "srcs")  # and deps last, as buildifier has it
_LOAD = 'load("//tools/bzl:python.bzl", "pytest_test")'


def expected_builds(root: pathlib.Path) -> dict[pathlib.Path, str]:
  """Returns the text that each BUILD file with Python targets should have.

  Args:
    root: the workspace's root folder.

  Raises:
    ValueError: a BUILD file is missing or cannot be kept by this check, or a
      source imports a first-party module that is not there.
  """
  sources = list(_sources(root))
  labels = {_module(root, path): _label(root, path) for path in sources}
  by_folder = {}
  for path in sources:
    by_folder.setdefault(path.parent, []).append(path)
  return {
    folder / "BUILD": _expected_build(root, folder, paths, labels)
    for folder, paths in by_folder.items()
  }


def _sources(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for name in TOP_LEVEL:
    yield from sorted((root / name).rglob("*.py"))


def _module(root: pathlib.Path, path: pathlib.Path) -> str:
  parts = path.relative_to(root).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _label(root: pathlib.Path, path: pathlib.Path) -> tuple[str, str]:
  """Returns the package and the name of a source file's target."""
  name = path.parent.name if path.stem == "__init__" else path.stem
  return path.parent.relative_to(root).as_posix(), name


def _expected_build(root, folder, paths, labels) -> str:
  build = folder / "BUILD"
  if not build.exists():
    raise ValueError(
      f"{build}: missing; write one that holds package(default_visibility ="
      " [...]), then run this check with --fix"
    )
  head, written = _parse(build)
  targets = {}
  for path in paths:
    _, name = _label(root, path)
    rule, attributes = _expected_target(root, path, labels)
    kept = {
      key: value
      for key, value in written.get(name, {}).items()
      if key not in ("name", "srcs", "deps", "size", "tags")
    }
    targets[name] = _render(rule, {**kept, **attributes})
  if any(text.startswith("pytest_test") for text in targets.values()):
    head = head if _LOAD in head else f"{_LOAD}\n\n{head}"
  return "\n".join(x for x in (head, *map(targets.get, sorted(targets))) if x)


def _parse(build: pathlib.Path) -> tuple[str, dict[str, dict[str, object]]]:
  """Returns what precedes the Python targets, and their attributes by name."""
  text = build.read_text()
  targets = {}
  head = text.splitlines()
  for statement in ast.parse(text, build).body:
    call = getattr(statement, "value", None)
    rule = getattr(getattr(call, "func", None), "id", None)
    where = f"{build}:{statement.lineno}"
    if rule in _RULES:
      if not targets:
        head = head[: statement.lineno - 1]
      try:
        attributes = {x.arg: ast.literal_eval(x.value) for x in call.keywords}
      except ValueError:
        raise ValueError(f"{where}: attributes must be literals") from None
      targets[attributes["name"]] = attributes
    elif targets:
      raise ValueError(f"{where}: must come before the Python targets")
  return "\n".join(head).rstrip() + "\n" if head else "", targets


def _expected_target(root, path, labels) -> tuple[str, dict[str, object]]:
  tree = ast.parse(path.read_text(), path)
  package, name = _label(root, path)
  deps = {
    _reference(package, labels[module])
    for module in _imports(tree, labels, path)
  }
  attributes = {"name": name, "deps": sorted(deps, key=_deps_order)}
  later = {
    _reference(package, labels[module])
    for module in _imported_later(root, tree, labels, path)
  }
  if later:
    attributes["data"] = sorted(later, key=_deps_order)
  if name.endswith("_test"):
    if _is_all_slow(tree):
      attributes |= {"size": "large", "tags": ["slow"]}
    return "pytest_test", attributes
  attributes["srcs"] = [path.name]
  return "py_binary" if _is_program(tree) else "py_library", attributes


def _imports(tree, labels, path) -> Iterator[str]:
  """Yields the first-party modules that a source imports, at any depth."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      candidates = [(alias.name,) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      candidates = [
        (f"{node.module}.{alias.name}", node.module) for alias in node.names
      ]
    else:
      continue
    for names in candidates:
      if names[0].split(".")[0] not in TOP_LEVEL:
        continue
      known = [name for name in names if name in labels]
      if not known:
        raise ValueError(f"{path}:{node.lineno}: there is no {names[0]}")
      yield known[0]


def _imported_later(root, tree, labels, path) -> Iterator[str]:
  """Yields the modules that a package imports when a name is first used."""
  if path.stem != "__init__":
    return
  package = _module(root, path)
  for node in tree.body:
    if not isinstance(node, ast.Assign):
      continue
    if ast.unparse(node.targets[0]) in ("_PUBLIC", "_ROOMS"):
      written = ast.literal_eval(node.value)
      names = written.values() if isinstance(written, dict) else written
      for name in (util.resolve_name(f".{x}", package) for x in names):
        if name not in labels:
          raise ValueError(f"{path}:{node.lineno}: there is no {name}")
        yield name


def _reference(package: str, label: tuple[str, str]) -> str:
  other, name = label
  if other == package:
    return f":{name}"
  return f"//{other}" if other.split("/")[-1] == name else f"//{other}:{name}"


def _deps_order(label: str) -> tuple[bool, str]:
  return label.startswith("//"), label.replace(":", "!")


def _is_all_slow(tree: ast.Module) -> bool:
  return any(
    isinstance(node, ast.Assign)
    and ast.unparse(node.targets[0]) == "pytestmark"
    and "mark.slow" in ast.unparse(node.value)
    for node in tree.body
  )


def _is_program(tree: ast.Module) -> bool:
  return any(
    isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    for node in tree.body
  )


def _render(rule: str, attributes: dict[str, object]) -> str:
  middle = sorted(attributes.keys() - {*_FIRST, "deps"})
  lines = [f"{rule}("]
  for key in (*_FIRST, *middle, "deps"):
    value = attributes.get(key)
    if isinstance(value, list) and len(value) > 1:
      lines.append(f"    {key} = [")
      lines.extend(f'        "{item}",' for item in value)
      lines.append("    ],")
    elif value:
      text = repr(value) if value is True else json.dumps(value)
      lines.append(f"    {key} = {text},")
  return "\n".join([*lines, ")", ""])


_FIX = flags.DEFINE_bool("fix", False, "Write the BUILD files as they should.")


def main(argv: list[str]) -> int:
  """Returns 1 if a BUILD file is wrong, after saying how or mending it."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only --fix")
  root = pathlib.Path(__file__).resolve().parent.parent
  try:
    builds = expected_builds(root)
  except ValueError as error:
    print(error, file=sys.stderr)
    return 1
  wrong = 0
  for build, expected in builds.items():
    text = build.read_text()
    if text == expected:
      continue
    wrong += 1
    name = str(build.relative_to(root))
    lines = text.splitlines(), expected.splitlines()
    print(
      *difflib.unified_diff(*lines, name, f"{name}, expected", lineterm=""),
      sep="\n",
    )
    if _FIX.value:
      build.write_text(expected)
  return int(wrong > 0)


if __name__ == "__main__":
  app.run(main)
