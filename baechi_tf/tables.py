"""Checks of values in parsed TOML tables; errors name the field and its bound.

`where` is what a message calls the table or the field.
"""

import math
import re
from collections.abc import ItemsView
from collections.abc import Mapping
from typing import Any

from baechi_tf.limits import MAX_BYTES
from baechi_tf.limits import MAX_TIME_US
from baechi_tf.limits import MIN_BYTES_PER_US
from baechi_tf.limits import shown

_UNITS = {
  "": 1,
  "b": 1,
  "kb": 10**3,
  "mb": 10**6,
  "gb": 10**9,
  "tb": 10**12,
  "kib": 2**10,
  "mib": 2**20,
  "gib": 2**30,
  "tib": 2**40,
}


def check_keys(
  table: Any, where: str, required: set[str], optional: set[str]
) -> None:
  """Checks that a table has all required keys, and no unknown one.

  Raises:
    ValueError: the value is no table, a key is missing, or a key is unknown.
  """
  if not isinstance(table, Mapping):
    raise ValueError(f"{where} must be a table, got {shown(table)}")
  for key in sorted(required - table.keys()):
    raise ValueError(f"{where}: {key!r} is missing")
  for key in sorted(table.keys() - required - optional):
    raise ValueError(
      f"{where}: unknown key {key!r}; known keys are"
      f" {', '.join(sorted(required | optional))}"
    )


def table_items(value: Any, where: str) -> ItemsView[str, Any]:
  """Returns the items of a table.

  Raises:
    ValueError: the value is no table.
  """
  if not isinstance(value, Mapping):
    raise ValueError(f"{where} must be a table")
  return value.items()


def list_of(item: type, value: Any, where: str) -> list:
  """Returns a list whose items are all of type `item`: `Mapping` or `str`.

  Raises:
    ValueError: the value is no such list.
  """
  if not isinstance(value, list) or not all(isinstance(x, item) for x in value):
    what = f"tables: [[{where}]]" if item is Mapping else "strings"
    raise ValueError(f"{where} must be a list of {what}")
  return value


def time_us(value: Any, where: str) -> float:
  """Returns a time in microseconds, from 0 to `MAX_TIME_US`.

  Raises:
    ValueError: the value is no number, or is out of bounds.
  """
  return _from_zero(value, where, MAX_TIME_US)


def us_per_byte(value: Any, where: str) -> float:
  """Returns microseconds per byte, from 0 to those of the slowest link.

  Raises:
    ValueError: the value is no number, or is out of bounds.
  """
  return _from_zero(value, where, 1 / MIN_BYTES_PER_US)


def bandwidth(value: Any, where: str) -> float:
  """Returns bytes per microsecond; infinity means that bytes take no time.

  Raises:
    ValueError: the value is no number, or is out of bounds.
  """
  _check_number(value, where)
  if not (MIN_BYTES_PER_US <= value <= MAX_BYTES or value == math.inf):
    raise ValueError(
      f"{where} must be from {MIN_BYTES_PER_US:g} to {MAX_BYTES:,}, or inf, got"
      f" {shown(value)}"
    )
  return float(value)


def positive(value: Any, where: str, most: float) -> float:
  """Returns a number above 0 and at most `most`.

  Raises:
    ValueError: the value is no number, or is out of bounds.
  """
  _check_number(value, where)
  if not 0 < value <= most:
    raise ValueError(
      f"{where} must be > 0 and at most {most:g}, got {shown(value)}"
    )
  return float(value)


def parse_bytes(value: int | str) -> int:
  """Returns a number of bytes: an integer, or "16 GiB", "512MB", "1.5 TiB".

  Raises:
    ValueError: it does not parse, is not positive, or is more than
      `limits.MAX_BYTES`.
  """
  if isinstance(value, int) and not isinstance(value, bool):
    size = value
  else:
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    try:
      size = float(match[1]) * unit
    except (TypeError, ValueError):
      raise ValueError(
        f"{shown(value)} is not a size; write a number of bytes or one with a"
        ' unit, such as "16 GiB" or "512 MB"'
      ) from None
  if size < 1:
    raise ValueError(f"{shown(value)} is not a positive size")
  if size > MAX_BYTES:
    raise ValueError(f"{shown(value)} is more than {MAX_BYTES:,} bytes")
  return int(size)


def _from_zero(value: Any, where: str, most: float) -> float:
  _check_number(value, where)
  if not 0 <= value <= most:  # NaN is not
    raise ValueError(f"{where} must be from 0 to {most:g}, got {shown(value)}")
  return float(value)


def _check_number(value: Any, where: str) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{where} must be a number, got {shown(value)}")
