"""How much less a push weighs the staler the model that it started from.

Each function takes its parameters and returns s(u) of the staleness u = t - tau
in versions of the server's model; s(0) = 1, and s does not increase.

Xie, Koyejo and Gupta, Asynchronous Federated Optimization, OPT 2020 (arXiv
1903.03934), section 5.2; `exponential` and `sigmoid` are in the code that its
authors released only.
"""

import math
from collections.abc import Callable

Staleness = Callable[[int], float]


def constant() -> Staleness:
  """Returns s(u) = 1."""
  return lambda u: 1.0


def polynomial(decay: float = 0.5) -> Staleness:
  """Returns s(u) = (u + 1)^-a.

  Args:
    decay: a, at least 0.

  Raises:
    ValueError: it is below 0.
  """
  _check("decay", decay)
  return lambda u: (u + 1.0) ** -decay


def hinge(decay: float = 10.0, tolerated: float = 4.0) -> Staleness:
  """Returns s(u) = 1 up to b, and 1 / (a (u - b) + 1) beyond.

  Args:
    decay: a, at least 0.
    tolerated: b, at least 0.

  Raises:
    ValueError: one of them is below 0.
  """
  _check("decay", decay)
  _check("tolerated", tolerated)
  return lambda u: 1.0 / (decay * max(0.0, u - tolerated) + 1.0)


def exponential(decay: float = 0.5) -> Staleness:
  """Returns s(u) = exp(-a u).

  Args:
    decay: a, at least 0.

  Raises:
    ValueError: it is below 0.
  """
  _check("decay", decay)
  return lambda u: math.exp(-decay * u)


def sigmoid(floor: float = 2.0, decay: float = 0.5) -> Staleness:
  """Returns s(u) = (1 - e^(-c u)) / a + e^(-c u), from 1 down to 1 / a.

  Args:
    floor: a, at least 1, or s would increase.
    decay: c, at least 0.

  Raises:
    ValueError: they are below that.
  """
  _check("decay", decay)
  if not (floor >= 1 and math.isfinite(floor)):
    raise ValueError(f"floor={floor} must be a finite number of at least 1")

  def s(u: int) -> float:
    fading = math.exp(-decay * u)
    return (1.0 - fading) / floor + fading

  return s


STALENESS: dict[str, Callable[..., Staleness]] = {
  "constant": constant,
  "polynomial": polynomial,
  "hinge": hinge,
  "exponential": exponential,
  "sigmoid": sigmoid,
}


def _check(name: str, value: float) -> None:
  if not (value >= 0 and math.isfinite(value)):
    raise ValueError(f"{name}={value} must be a finite number of at least 0")
