"""The largest numbers that are read, and how a value looks in a message.

Within these bounds no sum that planning forms overflows or loses its last byte
or microsecond: int64 holds a thousand times `MAX_BYTES`, for a tensor that goes
to as many devices, and float64 still tells two microseconds apart.
"""

from collections.abc import Callable
from typing import Any

MAX_BYTES = 2**53  # 8 PiB: of a graph in all, of a device's memory
MAX_TIME_US = 1e15  # 31 years: of an op, of a link's latency
MIN_BYTES_PER_US = 1e-6  # a byte a second
_MAX_SHOWN = 60


def shown(value: Any, render: Callable[[Any], str] = repr) -> str:
  """Returns a value as a message shows it: on one line, and not too long."""
  try:
    text = render(value)
  except (RecursionError, ValueError):  # nested too deeply, or too many digits
    return f"a {type(value).__name__} that is too large to show"
  return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
