"""Writes what a tool has found as a file of JSON."""

import json
import os


def write_json(path: str, content: dict) -> None:
  """Writes a file, and makes its folder.

  Args:
    path: of the file.
    content: plain data without NaN.

  Raises:
    OSError: it cannot be written.
    ValueError: a number is not finite.
  """
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file, indent=1, allow_nan=False)
    file.write("\n")
