"""Which of a test's parameters run whenever tests do."""

from collections.abc import Container
from collections.abc import Iterable

import pytest


def tiers(values: Iterable, fast: Container) -> list:
  """Returns test parameters: a few of them fast, the others marked slow."""
  return [
    value if value in fast else pytest.param(value, marks=pytest.mark.slow)
    for value in values
  ]
