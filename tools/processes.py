"""`map` over a few processes, for tools that train many small models."""

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def mapping(jobs: int) -> Iterator[Callable]:
  """Yields `map`, or what does the same in other processes of one thread each.

  Args:
    jobs: how many processes; 1 is this one alone.
  """
  if jobs == 1:
    yield map
    return
  with concurrent.futures.ProcessPoolExecutor(
    jobs, multiprocessing.get_context("spawn"), initializer=_use_one_thread
  ) as pool:
    yield pool.map


def _use_one_thread() -> None:
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
