"""Runs pytest on the arguments, the way `bazel test` expects of a test."""

import os
import sys

import pytest


def main() -> int:
  """Returns pytest's exit code."""
  if scratch := os.environ.get("TEST_TMPDIR"):
    # Numba keeps its machine code beside the sources otherwise, which are
    # read-only here.
    os.environ["NUMBA_CACHE_DIR"] = scratch
  # An editable installation of this project would lend a test the modules that
  # its target does not depend on.
  sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if not finder.__module__.startswith("__editable__")
  ]
  arguments = ["--rootdir=.", "-p", "no:cacheprovider", *sys.argv[1:]]
  if report := os.environ.get("XML_OUTPUT_FILE"):
    arguments.append(f"--junitxml={report}")
  if expression := os.environ.get("TESTBRIDGE_TEST_ONLY"):  # --test_filter
    arguments.append(f"-k={expression}")
  return pytest.main(arguments)


if __name__ == "__main__":
  sys.exit(main())
