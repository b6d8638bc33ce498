"""Reads a JSON file that a user gives."""

import json
import os
from typing import Any


def read_json(path: str | os.PathLike) -> Any:
  """Returns what a JSON file holds.

  Raises:
    ValueError: the file is not JSON; the message names it.
    OSError: the file cannot be read.
  """
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except RecursionError:
      raise ValueError(f"{path}: not JSON: nested too deeply") from None
    except ValueError as error:
      raise ValueError(f"{path}: not JSON: {error}") from None
