"""Who may import whom: the rules of docs/architecture.md, read from sources.

A rule is about modules whose names begin with a prefix, by whole parts: "a.b"
is `a.b` and all that is in it.
"""

import ast
import dataclasses
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("baechi_tf", "robust_tf")


@dataclasses.dataclass(frozen=True)
class Rule:
  """Some modules never import some others, anywhere in their code.

  Attributes:
    who: prefixes of the modules that the rule is about.
    never: prefixes of what they must not import.
    but: prefixes of modules that may all the same.
  """

  who: tuple[str, ...]
  never: tuple[str, ...]
  but: tuple[str, ...] = ()


_ARRAY_ROOMS = ("robust_tf.aggregators", "robust_tf.attacks",
                 "robust_tf.compressors")  # fmt: skip
RULES = {
  "the packages stand alone": Rule(
    PACKAGES, ("tools", "tests")
  ),
  "placing knows nothing of training": Rule(("baechi_tf",), ("robust_tf",)),
  "training knows nothing of placing": Rule(("robust_tf",), ("baechi_tf",)),
  "nobody imports the command line": Rule(
    ("baechi_tf",), ("baechi_tf.cli",), ("baechi_tf.cli",)
  ),
  "only the command line reports": Rule(
    ("baechi_tf",),
    ("baechi_tf.reports",),
    ("baechi_tf.cli", "baechi_tf.reports"),
  ),
  "a placer is one method": Rule(
    ("baechi_tf.placers", "baechi_tf.coarsening"),
    ("baechi_tf.search", "baechi_tf.bounds", "baechi_tf.planner"),
  ),
  "the search does not know where its starts come from": Rule(
    ("baechi_tf.search",),
    ("baechi_tf.placers", "baechi_tf.bounds", "baechi_tf.planner"),
  ),
  "a bound owes nothing to a plan": Rule(
    ("baechi_tf.bounds",),
    ("baechi_tf.placers", "baechi_tf.search", "baechi_tf.planner"),
  ),
  "costs are known before plans": Rule(
    ("baechi_tf.costs", "baechi_tf.rewrites"),
    ("baechi_tf.planner", "baechi_tf.runner", "baechi_tf.pipeline"),
  ),
  "rules, attacks and compressors are functions of arrays": Rule(
    _ARRAY_ROOMS,
    ("keras", "robust_tf.distribute", "robust_tf.optimizers",
     "robust_tf.federated"),
  ),
  "a rule knows no attack": Rule(
    ("robust_tf.aggregators",), ("robust_tf.attacks", "robust_tf.compressors")
  ),
  "an attack knows no rule": Rule(
    ("robust_tf.attacks",), ("robust_tf.aggregators", "robust_tf.compressors")
  ),
  "the job uses the library, not the library the job": Rule(
    ("robust_tf",), ("robust_tf.training",), ("robust_tf.training",)
  ),
}  # fmt: skip
# What TensorFlow forces. Importing anything else of baechi_tf is quick: it does
# not import TensorFlow, nor what does.
TENSORFLOW = (
  "baechi_tf.compiled_calls",
  "baechi_tf.costs",
  "baechi_tf.device_rewrite",
  "baechi_tf.feeding",
  "baechi_tf.function_library",
  "baechi_tf.graph_check",
  "baechi_tf.graph_files",
  "baechi_tf.graph_import",
  "baechi_tf.graph_item",
  "baechi_tf.initializer",
  "baechi_tf.inlining",
  "baechi_tf.keras_placement",
  "baechi_tf.liveness",
  "baechi_tf.model_devices",
  "baechi_tf.object_graph",
  "baechi_tf.order_edges",
  "baechi_tf.pipeline",
  "baechi_tf.private",
  "baechi_tf.python_item",
  "baechi_tf.rewrites",
  "baechi_tf.runner",
  "baechi_tf.saved_model",
  "baechi_tf.signatures",
  "baechi_tf.v1_loader",
)


@dataclasses.dataclass(frozen=True)
class Imports:
  """What one module imports.

  Attributes:
    at_once: when it is imported itself.
    later: in a function, or only for type checkers.
  """

  at_once: frozenset[str]
  later: frozenset[str]


def read_imports(root: pathlib.Path) -> dict[str, Imports]:
  """Returns the imports of each module of the packages below `root`."""
  files = {}
  for package in PACKAGES:
    for path in (root / package).rglob("*.py"):
      parts = path.relative_to(root).with_suffix("").parts
      name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
      files[name] = path
  return {name: _imports(path, files) for name, path in files.items()}


def _imports(path, known) -> Imports:
  tree = ast.parse(path.read_text())
  delayed = {
    inner
    for outer in ast.walk(tree)
    if isinstance(outer, ast.FunctionDef)
    or (
      isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test)
    )
    for inner in ast.walk(outer)
  }
  names = {True: set(), False: set()}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names[node in delayed].update(x.name for x in node.names)
    elif isinstance(node, ast.ImportFrom):
      for x in node.names:
        full = f"{node.module}.{x.name}"
        names[node in delayed].add(full if full in known else node.module)
  return Imports(frozenset(names[False]), frozenset(names[True]))


def _is_for_type_checkers(node: ast.AST) -> bool:
  return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _has(name: str, prefixes) -> bool:
  return any(name == x or name.startswith(f"{x}.") for x in prefixes)


def violations(imports: dict[str, Imports], rule: Rule) -> list[str]:
  """Returns "importer imports module" wherever a rule is broken."""
  return [
    f"{who} imports {what}"
    for who, x in sorted(imports.items())
    if _has(who, rule.who) and not _has(who, rule.but)
    for what in sorted(x.at_once | x.later)
    if _has(what, rule.never)
  ]


def import_tensorflow(imports: dict[str, Imports]) -> set[str]:
  """Returns the modules that import TensorFlow when they are imported."""
  found = {
    name
    for name, x in imports.items()
    if any(_has(y, ("tensorflow", "keras")) for y in x.at_once)
  }
  while True:
    more = {x for x, y in imports.items() if y.at_once & found} - found
    if not more:
      return found
    found |= more


@pytest.fixture(scope="module")
def imports():
  return read_imports(ROOT)


@pytest.mark.parametrize("why", RULES)
def test_rule_is_kept(imports, why):
  assert violations(imports, RULES[why]) == []


def test_modules_that_need_no_tensorflow_do_not_import_it(imports):
  found = import_tensorflow(imports)
  assert [
    x
    for x in sorted(found)
    if _has(x, ("baechi_tf",)) and not _has(x, TENSORFLOW)
  ] == []


def test_every_room_that_a_rule_names_is_there(imports):
  for rule in RULES.values():
    for prefix in (*rule.who, *rule.but):
      assert any(_has(name, (prefix,)) for name in imports)
  assert "baechi_tf.planner" in imports


def test_broken_rules_are_found(tmp_path):
  sources = {
    "baechi_tf/planner.py": "from baechi_tf import simulator",
    "baechi_tf/simulator.py": "import tensorflow as tf",
    "baechi_tf/reports/text.py": "from baechi_tf.cli import main",
    "baechi_tf/cli/main.py": "def run():\n  import tensorflow",
    "robust_tf/training/main.py": "import baechi_tf.planner",
  }
  for path, text in sources.items():
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  imports = read_imports(tmp_path)
  assert violations(imports, RULES["nobody imports the command line"]) == [
    "baechi_tf.reports.text imports baechi_tf.cli.main"
  ]
  assert violations(imports, RULES["training knows nothing of placing"]) == [
    "robust_tf.training.main imports baechi_tf.planner"
  ]
  assert import_tensorflow(imports) == {
    "baechi_tf.planner",
    "baechi_tf.simulator",
    "robust_tf.training.main",
  }
