"""Makes text safe to print, wherever it comes from.

A name in a model, or a path, can hold characters that move the cursor, clear
the screen or turn the writing direction. Whatever prints names for people calls
this first. JSON has its own escapes and stays exact.
"""

from typing import Any


def printable(value: Any) -> Any:
  r"""Returns text with its unprintable characters escaped, as Python does.

  >>> print(printable("a\x1b[2Jb"))
  a\x1b[2Jb

  Args:
    value: a string, or lists and dictionaries with strings in them; anything
      else stays.
  """
  if isinstance(value, str):
    return value if value.isprintable() else "".join(map(_escaped, value))
  if isinstance(value, dict):
    return {printable(key): printable(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(printable, value))
  return value


def _escaped(character: str) -> str:
  if character.isprintable():
    return character
  return character.encode("unicode_escape").decode()
