"""What all servers refuse, and how they move."""

import numpy as np
import pytest

from robust_tf.federated import server
from robust_tf.federated.tasks import Push
from tests.robust_tf.fake_devices import device_tasks
from tests.robust_tf.fake_devices import values

TASK = device_tasks().task(0, 0, 0)
WEIGHTS = server.model(values(0))


def changed(place, value):
  content = values(1)
  content[0][place] = value
  return content


@pytest.mark.parametrize(
  ("version", "content", "reason"),
  [
    (3, values(1), None),
    (0, values(1), None),
    (np.int64(2), values(1), None),
    (4, values(1), server.WRONG_VERSION),
    (-1, values(1), server.WRONG_VERSION),
    (1.0, values(1), server.WRONG_VERSION),
    (None, values(1), server.WRONG_VERSION),
    (3, values(1)[:2], server.WRONG_SHAPES),
    (3, [*values(1), np.float32(0)], server.WRONG_SHAPES),
    (3, [], server.WRONG_SHAPES),
    (3, [x.T for x in values(1)], server.WRONG_SHAPES),
    (3, [x[None] for x in values(1)], server.WRONG_SHAPES),
    (3, values(1, np.float64), server.WRONG_SHAPES),
    (3, changed((0, 0), np.nan), server.NOT_FINITE),
    (3, changed((2, 3), -np.inf), server.NOT_FINITE),
  ],
)
def test_refusal_says_what_no_server_can_take(version, content, reason):
  assert server.refusal(Push(TASK, version, content), WEIGHTS, 3) == reason


@pytest.mark.parametrize(
  ("version", "expected"), [(5, 0), (np.int32(3), 2), (6, None), ("5", None)]
)
def test_staleness_counts_versions(version, expected):
  assert server.staleness(Push(TASK, version, ()), 5) == expected


def test_moved_is_a_new_model_by_the_formula():
  steps = values(1)
  before = [x.copy() for x in WEIGHTS]
  moved = server.moved(WEIGHTS, steps, 0.3)
  for x, old, kept, step in zip(moved, WEIGHTS, before, steps, strict=True):
    exact = old.astype(np.float64) - 0.3 * step.astype(np.float64)
    assert x.dtype == np.float32 and x.shape == old.shape
    # Three roundings: of 0.3, of a product, and of a difference.
    np.testing.assert_allclose(x, exact, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(old, kept)


def test_moved_gives_nothing_that_is_not_finite():
  huge = [np.full_like(x, -3e38) for x in WEIGHTS]
  assert server.moved(huge, [np.full_like(x, 3e38) for x in huge], 1.0) is None


def test_model_copies_its_weights():
  given = values(0)
  model = server.model(given)
  given[0][:] = 9
  np.testing.assert_array_equal(model[0], WEIGHTS[0])


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ([], "weights are empty"),
    ([np.arange(3)], r"weights\[0\] is int64; it must be floats"),
    ([np.ones(2), np.array([np.nan])], r"weights\[1\] holds values that are"),
  ],
)
def test_model_of_no_finite_floats_is_an_error(weights, message):
  with pytest.raises(ValueError, match=message):
    server.model(weights)


@pytest.mark.parametrize(
  "weights", [values(1)[:2], values(1, np.float64), values(1)[::-1]]
)
def test_weights_of_another_model_do_not_replace_one(weights):
  with pytest.raises(ValueError, match="not those of the server's model"):
    server.replaced(WEIGHTS, weights)


@pytest.mark.parametrize("weight", [0, -0.1, 1.01, np.nan])
def test_mixing_weight_outside_its_bounds_is_an_error(weight):
  with pytest.raises(ValueError, match="must be above 0 and at most 1"):
    server.check_mixing_weight(weight)


def test_function_of_the_version_is_a_mixing_weight():
  server.check_mixing_weight(lambda version: 0.5)
  assert server.weight_of_version(lambda version: 1 / version, 4) == 0.25
  assert server.weight_of_version(1, 4) == 1
  with pytest.raises(ValueError, match=r"mixing_weight\(0\) is 1.5"):
    server.check_mixing_weight(lambda version: 1.5)
