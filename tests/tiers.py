"""Which of a test's parameters run whenever tests do."""

from collections.abc import Container
from collections.abc import Iterable

import pytest


def tiers(names: Iterable[str], fast: Container[str]) -> list:
  """Returns test parameters: a few kinds fast, all of them slow."""
  return [
    name if name in fast else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]
