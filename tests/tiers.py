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


def selected(request: pytest.FixtureRequest, argument: str) -> set:
  """Returns the values of a parameter with which tests of the module will run.

  Args:
    request: of a fixture of the module.
    argument: the parameter's name.
  """
  return {
    item.callspec.params[argument]
    for item in request.session.items
    if item.path == request.path
    and hasattr(item, "callspec")
    and argument in item.callspec.params
  }


def first_fast(first: tuple, *others: tuple) -> list:
  """Returns sets of test parameters: the first fast, the others marked slow."""
  return [first, *(pytest.param(*x, marks=pytest.mark.slow) for x in others)]
