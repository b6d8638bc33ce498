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


def first_fast(first: tuple, *others: tuple) -> list:
  """Returns sets of test parameters: the first fast, the others marked slow."""
  return [first, *(pytest.param(*x, marks=pytest.mark.slow) for x in others)]
