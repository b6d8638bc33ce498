"""Makes text safe to print, wherever it comes from.

A flag or a path can hold characters that move the cursor, clear the screen or
turn the writing direction.
"""


def printable(text: str) -> str:
  r"""Returns text with its unprintable characters escaped, as Python does.

  >>> print(printable("a\x1b[2Jb"))
  a\x1b[2Jb
  """
  return "".join(
    x if x.isprintable() else x.encode("unicode_escape").decode() for x in text
  )
