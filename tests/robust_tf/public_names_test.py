"""The public names: all there, documented, and light to import."""

import ast
import pathlib
import subprocess
import sys

import pytest

import robust_tf
from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import federated

PACKAGE = pathlib.Path(robust_tf.__file__).parent
# Modules that every room may use.
SHARED = ("robust_tf.ordered_sum", "robust_tf.random_values")


def imported(source):
  """Returns the modules that some code imports, wherever it does."""
  modules = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      modules += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules.append(node.module)
  return modules


@pytest.mark.parametrize("name", robust_tf.__all__)
def test_public_name_is_there_and_documented(name):
  assert getattr(robust_tf, name).__doc__
  assert name in dir(robust_tf)


@pytest.mark.parametrize(
  "room", [aggregators, attacks, federated], ids=lambda x: x.__name__
)
def test_names_of_a_room_are_there_and_documented(room):
  for name in room.__all__:
    value = getattr(room, name)
    assert value.__doc__ or not callable(value), name


@pytest.mark.parametrize(
  "room, table",
  [(aggregators, aggregators.AGGREGATORS), (attacks, attacks.ATTACKS)],
  ids=["aggregators", "attacks"],
)
def test_names_of_a_table_are_the_functions_names(room, table):
  for name, function in table.items():
    assert name == function.__name__
    assert name in room.__all__


def test_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'zenoo'"):
    robust_tf.zenoo  # noqa: B018
  with pytest.raises(AttributeError, match="no attribute 'fed_sync'"):
    federated.fed_sync  # noqa: B018


def test_importing_the_package_does_not_load_tensorflow():
  script = (
    "import sys, robust_tf\n"
    "dir(robust_tf)\n"
    "dir(robust_tf.federated)\n"
    "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


@pytest.mark.parametrize("room", ["aggregators", "attacks", "compressors"])
def test_room_knows_no_keras_and_no_strategy(room):
  for path in sorted((PACKAGE / room).glob("*.py")):
    source = path.read_text()
    for module in imported(source):
      assert module.split(".")[0] != "keras", path
      if module.startswith("robust_tf"):
        own = module.startswith(f"robust_tf.{room}")
        assert own or module in SHARED, path
    assert "tf.distribute" not in source, path
    assert "tf.keras" not in source, path


def test_private_names_are_in_the_hooks_only():
  for path in sorted(PACKAGE.rglob("*.py")):
    for module in imported(path.read_text()):
      assert not module.startswith("baechi_tf"), path
      if module.startswith(("tensorflow.python", "keras.src")):
        raise AssertionError(f"{path}: {module} outside of hooks.private.find")
