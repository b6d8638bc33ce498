"""Ends a program when it is told to, and not half-way through a part of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Puts SIGINT and SIGTERM off until the end of the context.

  Only the main thread is ever interrupted; in others nothing happens. Blocking
  the signals would not do: another thread would take them.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  received = []
  handlers = {
    number: signal.signal(number, lambda x, frame: received.append(x))
    for number in _SIGNALS
  }
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    if received:
      signal.raise_signal(received[0])


def interrupt(number, frame) -> None:
  """Ends what this process does as Ctrl-C does: a handler of signals."""
  del frame
  raise KeyboardInterrupt(number)
