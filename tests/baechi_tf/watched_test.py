import os
import signal
import threading

import numpy as np
import pytest

from baechi_tf import watched
from baechi_tf.compiled import compiled
from baechi_tf.watched import DONE
from baechi_tf.watched import run_watched
from baechi_tf.watched import STOP


@compiled
def count_up(limit, work, watch):
  for i in range(limit):
    work[i % len(work)] += 1
    watch[DONE] = i
    if watch[STOP] != 0:
      return -1
  return limit


def test_run_watched_returns_what_the_loop_returns():
  work = np.zeros(7, np.int64)
  assert run_watched(count_up, 100, work, total=100) == 100
  assert work.sum() == 100


def test_run_watched_shows_how_far_the_loop_is(monkeypatch):
  monkeypatch.setattr(watched, "_INTERVAL_S", 0.05)
  seen = []

  def progress(done, total):
    seen.append((done, total))
    if len(seen) == 3:
      raise StopIteration  # as well stops the loop, which has hours to go

  work = np.zeros(7, np.int64)
  with pytest.raises(StopIteration):
    run_watched(count_up, 2**62, work, total=9, progress=progress)
  done, total = zip(*seen, strict=True)
  assert list(done) == sorted(done) and set(total) == {9}
  assert done[-1] > 0
  assert work.sum() < 2**62


def test_run_watched_ends_when_interrupted():
  timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
  timer.start()
  with pytest.raises(KeyboardInterrupt):
    run_watched(count_up, 2**62, np.zeros(7, np.int64), total=9)
  timer.join()
  assert not any("ThreadPool" in x.name for x in threading.enumerate())
