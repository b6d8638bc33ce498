"""Signals wait for the end of what they must not interrupt."""

import signal
import threading

import pytest

from robust_tf.training.uninterrupted import uninterrupted


class StoppedError(Exception):
  pass


@pytest.fixture
def handler():
  """Makes SIGTERM raise an error, as long as a test runs."""

  def stop(number, frame):
    raise StoppedError(number)

  before = signal.signal(signal.SIGTERM, stop)
  yield stop
  signal.signal(signal.SIGTERM, before)


def test_signal_waits_for_the_end(handler):
  done = []
  with pytest.raises(StoppedError, match=str(int(signal.SIGTERM))):
    with uninterrupted():
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGTERM)
      done.append("all")
    done.append("more")
  assert done == ["all"]
  assert signal.getsignal(signal.SIGTERM) is handler


def test_interruption_by_the_keyboard_waits_for_the_end():
  done = []
  with pytest.raises(KeyboardInterrupt), uninterrupted():
    signal.raise_signal(signal.SIGINT)
    done.append("all")
  assert done == ["all"]


def test_signal_waits_for_the_end_by_an_error(handler):
  with pytest.raises(StoppedError) as raised, uninterrupted():
    signal.raise_signal(signal.SIGTERM)
    raise KeyError
  assert isinstance(raised.value.__context__, KeyError)


def test_without_a_signal_nothing_changes(handler):
  with uninterrupted():
    pass
  assert signal.getsignal(signal.SIGTERM) is handler


def test_other_threads_may_use_it_too():
  done = []

  def work():
    with uninterrupted():
      done.append("all")

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert done == ["all"]
