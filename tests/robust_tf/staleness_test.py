"""Functions of staleness: their formulas, and what they have in common."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_tf.federated.staleness import constant
from robust_tf.federated.staleness import exponential
from robust_tf.federated.staleness import hinge
from robust_tf.federated.staleness import polynomial
from robust_tf.federated.staleness import sigmoid
from robust_tf.federated.staleness import STALENESS

decays = st.floats(0, 50)
functions = st.one_of(
  st.builds(constant),
  st.builds(polynomial, decays),
  st.builds(hinge, decays, st.floats(0, 20)),
  st.builds(exponential, decays),
  st.builds(sigmoid, st.floats(1, 10), decays),
)


def test_the_table_holds_every_function():
  assert STALENESS == {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
    "exponential": exponential,
    "sigmoid": sigmoid,
  }


@given(s=functions, u=st.integers(0, 1000))
def test_function_starts_at_1_and_does_not_increase(s, u):
  assert s(0) == 1
  assert 0 <= s(u + 1) <= s(u) <= 1


@given(decay=decays, tolerated=st.integers(0, 20))
def test_hinge_is_continuous_where_it_bends(decay, tolerated):
  s = hinge(decay, tolerated)
  assert s(tolerated) == 1
  assert s(tolerated + 1) == pytest.approx(1 / (decay + 1))
  beyond = 1e-9
  # The slope there is -a.
  assert s(tolerated + beyond) == pytest.approx(1, abs=2 * decay * beyond)


@pytest.mark.parametrize(
  ("s", "u", "expected"),
  [
    (constant(), 99, 1),
    (polynomial(), 3, 0.5),
    (polynomial(2), 3, 1 / 16),
    (hinge(), 4, 1),
    (hinge(), 6, 1 / 21),
    (hinge(10, 2), 4, 1 / 21),
    (exponential(), 2, math.exp(-1)),
    (sigmoid(), 2, (1 + math.exp(-1)) / 2),
    (sigmoid(4, 1), 1000, 0.25),
  ],
)
def test_function_is_its_formula(s, u, expected):
  assert s(u) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: polynomial(-0.1), "decay=-0.1 must be a finite number of at"),
    (lambda: hinge(-1), "decay=-1 must be"),
    (lambda: hinge(1, -4), "tolerated=-4 must be"),
    (lambda: exponential(math.nan), "decay=nan must be"),
    (lambda: sigmoid(0.5), "floor=0.5 must be a finite number of at least 1"),
    (lambda: sigmoid(2, math.inf), "decay=inf must be"),
  ],
)
def test_parameter_out_of_bounds_is_an_error(make, message):
  with pytest.raises(ValueError, match=message):
    make()
