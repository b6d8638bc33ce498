"""Loads TensorFlow when it is needed, and without its chatter."""

import contextlib
import os
import sys
from collections.abc import Iterator


def load_tensorflow() -> None:
  """Imports TensorFlow; what it writes to stderr meanwhile is dropped.

  Its libraries log before they can be told not to (checked with TensorFlow
  2.21). An import that fails still raises.
  """
  if "tensorflow" not in sys.modules:
    with _silent_stderr():
      # Takes seconds: cost graphs, --help and many a complaint do without.
      import tensorflow  # noqa: F401  for its being loaded


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
  """Drops what C++ code writes, which does not know `sys.stderr`."""
  sys.stderr.flush()
  stderr = os.dup(2)
  null = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(null, 2)
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(null)
    os.close(stderr)
