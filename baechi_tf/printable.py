"""Makes text safe to print, wherever it comes from.

A name in a model, or a path, can hold characters that move the cursor, clear
the screen or turn the writing direction. Whatever prints names for people calls
this first. JSON has its own escapes and stays exact.
"""

import dataclasses
from typing import Any


def printable(value: Any) -> Any:
  r"""Returns text with its unprintable characters escaped, as Python does.

  >>> print(printable("a\x1b[2Jb"))
  a\x1b[2Jb

  Args:
    value: a string, or lists, dictionaries and dataclasses with strings in
      them; anything else stays.
  """
  if isinstance(value, str):
    return value if value.isprintable() else "".join(map(_escaped, value))
  if isinstance(value, dict):
    return {printable(key): printable(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(printable, value))
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = (x.name for x in dataclasses.fields(value))
    changes = {name: printable(getattr(value, name)) for name in fields}
    return dataclasses.replace(value, **changes)
  return value


def _escaped(character: str) -> str:
  if character.isprintable():
    return character
  return character.encode("unicode_escape").decode()
