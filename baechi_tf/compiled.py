"""The one way this package compiles inner loops to machine code.

Placing and simulating walk a graph op by op, in an order that depends on what
has happened so far: work that NumPy cannot express and that Python does a
hundred times slower than the machine can.

The machine code is cached, so only the first run compiles. Numba notices when
the file of a compiled function changes, but not when another file's function
that it calls does; so the cache is named after the sources of this package.
It is kept below `NUMBA_CACHE_DIR` if that is set, else beside the sources, else
in the user's cache, else nowhere that lasts.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import numba

_PACKAGE = pathlib.Path(__file__).parent


@functools.cache
def _cache_folder() -> str:
  sources = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    code = path.read_bytes()
    if b"compiled import" in code:
      sources.update(code)
  return str(_root() / f"baechi_tf_{sources.hexdigest()[:16]}")


def _root() -> pathlib.Path:
  if "NUMBA_CACHE_DIR" in os.environ:
    return pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
  home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
  for root in (_PACKAGE / "__pycache__", pathlib.Path(home)):
    with contextlib.suppress(OSError):
      root.mkdir(parents=True, exist_ok=True)
      if os.access(root, os.W_OK):
        return root
  # Nobody else can write there: what is cached is run.
  return pathlib.Path(tempfile.mkdtemp(prefix="baechi_tf_"))


# Whether there was no machine code when this process began.
FIRST_RUN = not any(pathlib.Path(_cache_folder()).rglob("*.nbc"))


def _compile(function: Callable, **options) -> Callable:
  # Numba settles where to cache when it decorates, from a setting that is
  # everybody's: put it back.
  before = numba.config.CACHE_DIR
  numba.config.CACHE_DIR = _cache_folder()
  try:
    return numba.njit(
      function, cache=True, nogil=True, error_model="numpy", **options
    )
  finally:
    numba.config.CACHE_DIR = before


def compiled(function: Callable) -> Callable:
  """Returns a function compiled on its first call."""
  return _compile(function)


def compiled_inner(function: Callable) -> Callable:
  """Returns a function that only compiled functions can call.

  An entry from Python can take longer to compile than the function itself.
  """
  return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inlined(function: Callable) -> Callable:
  """Returns a function whose code becomes part of compiled callers.

  For small functions that call nothing but each other. A function that calls
  counts a reference to every array that it was given, at a microsecond a call
  where those are many; one that calls nothing need not.
  """
  return _compile(function, inline="always")
