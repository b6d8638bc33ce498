"""Runs a long compiled loop so that it can be watched and interrupted.

Machine code sees no signals and calls nothing back. So it runs in a thread, and
shares one array with the thread that waits for it: how far the loop is, and
whether it shall stop.
"""

import concurrent.futures
from collections.abc import Callable

import numba
import numpy as np

# What the entries of the shared array say.
DONE, STOP = 0, 1
_INTERVAL_S = 0.5

Progress = Callable[[int, int], None]


def run_watched(
  loop: Callable, *args, total: int, progress: Progress | None = None
):
  """Returns `loop(*args, watch)`, or stops it when this thread is interrupted.

  Args:
    loop: a compiled function. It counts in `watch[DONE]`, int64, and returns
      early, with any result, once `watch[STOP]` is not 0.
    *args: the loop's other arguments.
    total: what the loop counts up to.
    progress: called twice a second with (done, total).
  """
  watch = np.zeros(2, np.int64)
  if not numba.config.DISABLE_JIT:
    # Compiled here, because compiling can be interrupted here alone.
    loop.compile(tuple(numba.typeof(x) for x in (*args, watch)))
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    running = pool.submit(loop, *args, watch)
    try:
      while concurrent.futures.wait([running], _INTERVAL_S).not_done:
        if progress:
          progress(int(watch[DONE]), total)
      return running.result()
    finally:
      watch[STOP] = 1  # leaving the context waits for the loop
