"""The BUILD check finds what Bazel finds, and what it does not."""

import textwrap

import pytest

from tools import check_build

HEAD = 'package(default_visibility = ["//tests:__subpackages__"])\n'


@pytest.fixture
def write(tmp_path):
  def write(path, text=""):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))

  write("baechi_tf/BUILD", HEAD)
  return write


def _expected(root, folder="baechi_tf"):
  builds = check_build.expected_builds(root)
  return builds[root / folder / "BUILD"]


def test_every_module_gets_a_target(write, tmp_path):
  write("baechi_tf/__init__.py")
  write("baechi_tf/cluster.py")
  assert _expected(tmp_path) == HEAD + textwrap.dedent("""
    py_library(
        name = "baechi_tf",
        srcs = ["__init__.py"],
    )

    py_library(
        name = "cluster",
        srcs = ["cluster.py"],
    )
    """)


def test_deps_are_the_imports_at_any_depth(write, tmp_path):
  write("baechi_tf/placers/BUILD", HEAD)
  write("baechi_tf/placers/__init__.py")
  write("baechi_tf/placers/m_etf.py")
  write("baechi_tf/cluster.py")
  write(
    "baechi_tf/planner.py",
    """
    import os
    import numpy as np
    from baechi_tf import cluster
    from baechi_tf.placers import PLACERS

    def slow():
      import baechi_tf.placers.m_etf
    """,
  )
  expected = _expected(tmp_path)
  assert expected.endswith("""
py_library(
    name = "planner",
    srcs = ["planner.py"],
    deps = [
        ":cluster",
        "//baechi_tf/placers",
        "//baechi_tf/placers:m_etf",
    ],
)
""")


def test_names_that_are_imported_later_are_data(write, tmp_path):
  write("baechi_tf/costs/BUILD", HEAD)
  write("baechi_tf/costs/__init__.py")
  write("baechi_tf/costs/profile.py")
  write("baechi_tf/cluster.py")
  write(
    "baechi_tf/__init__.py",
    """
    _PUBLIC = {"Device": "cluster", "Link": "cluster", "read": "costs.profile"}
    _ROOMS = ("costs",)
    """,
  )
  assert """
    name = "baechi_tf",
    srcs = ["__init__.py"],
    data = [
        ":cluster",
        "//baechi_tf/costs",
        "//baechi_tf/costs:profile",
    ],
)
""" in _expected(tmp_path)


def test_name_that_is_nowhere_is_an_error(write, tmp_path):
  write("baechi_tf/__init__.py", '_PUBLIC = {"Device": "gone"}')
  with pytest.raises(ValueError, match="there is no baechi_tf.gone"):
    _expected(tmp_path)


def test_unused_dep_goes_and_other_attributes_stay(write, tmp_path):
  write("baechi_tf/a.py")
  write("baechi_tf/b.py")
  write(
    "baechi_tf/BUILD",
    f"""{HEAD}
py_library(
    name = "a",
    srcs = ["a.py"],
    data = ["a.toml"],
    visibility = ["//visibility:public"],
    deps = [":b"],
)

py_library(
    name = "gone",
    srcs = ["gone.py"],
)
""",
  )
  assert (
    _expected(tmp_path)
    == f"""{HEAD}
py_library(
    name = "a",
    srcs = ["a.py"],
    data = ["a.toml"],
    visibility = ["//visibility:public"],
)

py_library(
    name = "b",
    srcs = ["b.py"],
)
"""
  )


def test_expected_text_is_a_fixed_point(write, tmp_path):
  write("baechi_tf/a.py", "import baechi_tf.b\n")
  write("baechi_tf/b.py")
  once = _expected(tmp_path)
  write("baechi_tf/BUILD", once)
  assert _expected(tmp_path) == once


def test_slow_test_file_is_tagged(write, tmp_path):
  write("tests/BUILD", HEAD)
  write(
    "tests/big_test.py",
    """
    import pytest
    pytestmark = pytest.mark.slow
    """,
  )
  expected = _expected(tmp_path, "tests")
  assert expected.startswith('load("//tools/bzl:python.bzl", "pytest_test")\n')
  assert expected.endswith("""
pytest_test(
    name = "big_test",
    size = "large",
    tags = ["slow"],
)
""")


def test_program_is_a_binary(write, tmp_path):
  write("tools/BUILD", HEAD)
  write("tools/run.py", 'if __name__ == "__main__":\n  print()\n')
  assert "py_binary(" in _expected(tmp_path, "tools")


def test_missing_build_file_is_named(write, tmp_path):
  write("robust_tf/mean.py")
  with pytest.raises(ValueError, match="robust_tf/BUILD: missing; write one"):
    check_build.expected_builds(tmp_path)


def test_missing_module_is_named(write, tmp_path):
  write("baechi_tf/a.py", "from baechi_tf.b import c\n")
  with pytest.raises(ValueError, match=r"a.py:1: there is no baechi_tf.b.c"):
    check_build.expected_builds(tmp_path)


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ('py_library(name = "a", deps = [x for x in []])', "must be literals"),
    (
      'py_library(name = "a")\nfilegroup(name = "b")',
      "BUILD:2: must come before the Python targets",
    ),
  ],
)
def test_build_file_it_cannot_keep_is_refused(write, tmp_path, rules, message):
  write("baechi_tf/a.py")
  write("baechi_tf/BUILD", rules)
  with pytest.raises(ValueError, match=message):
    check_build.expected_builds(tmp_path)
