"""Runs pytest on the arguments, the way `bazel test` expects of a test."""

import os
import sys

import pytest


def main() -> int:
  """Returns pytest's exit code."""
  arguments = ["--rootdir=.", "-p", "no:cacheprovider", *sys.argv[1:]]
  if report := os.environ.get("XML_OUTPUT_FILE"):
    arguments.append(f"--junitxml={report}")
  if expression := os.environ.get("TESTBRIDGE_TEST_ONLY"):  # --test_filter
    arguments.append(f"-k={expression}")
  return pytest.main(arguments)


if __name__ == "__main__":
  sys.exit(main())
