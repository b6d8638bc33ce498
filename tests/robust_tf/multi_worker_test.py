"""Three real processes train, and one of them lies."""

import numpy as np
import pytest

from tests.robust_tf import multi_worker_problem as problem
from tests.robust_tf import oracles
from tests.robust_tf.server_network import run_in_processes
from tests.tiers import selected

pytestmark = pytest.mark.slow

SCRIPT = "tests.robust_tf.multi_worker_training"
ORACLES = {
  "mean": oracles.mean,
  "median": oracles.median,
  "phocas": lambda v: oracles.phocas(v, trim=1),
  "geometric_median": oracles.geometric_median,
  "krum": lambda v: oracles.krum(v, num_byzantine=0),
  "of_a_user": oracles.median,
}
PROCESS = ("mean", "median", "krum", "of_a_user", "attack", "keras")


def rules(*names):
  """Returns test parameters, of which `make test` runs those of `PROCESS`."""
  return [
    pytest.param(x, marks=pytest.mark.process if x in PROCESS else ())
    for x in names
  ]


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
  """What each process saw of each run: results(name)[worker][array]."""
  directory = tmp_path_factory.mktemp("multi_worker")
  names = {"mean", "median", *selected(request, "rule")} & set(ORACLES)
  run_in_processes(SCRIPT, problem.NUM_WORKERS, directory, *sorted(names))
  return lambda name: [
    np.load(directory / f"{name}_{worker}.npz")
    for worker in range(problem.NUM_WORKERS)
  ]


@pytest.mark.parametrize("rule", rules(*ORACLES))
def test_every_step_equals_the_replay(rule, results):
  replayed = problem.replay(ORACLES[rule])
  for seen in results(rule):
    # Relative, because the mean's variables grow without bound.
    np.testing.assert_allclose(
      seen["variables"], replayed, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rule", rules(*ORACLES, "attack", "keras"))
def test_all_processes_have_the_same_variables(rule, results):
  first, *others = [seen["variables"] for seen in results(rule)]
  for other in others:
    np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("rule", rules(*sorted(set(ORACLES) - {"mean"})))
def test_robust_rule_trains(rule, results):
  variables = results(rule)[0]["variables"][-1]
  assert problem.accuracy(problem.unflatten(variables)) > 0.85


@pytest.mark.process
def test_mean_breaks(results):
  variables = results("mean")[0]["variables"][-1]
  assert problem.accuracy(problem.unflatten(variables)) < 0.3


@pytest.mark.process
def test_attack_equals_a_process_that_lies(results):
  np.testing.assert_allclose(
    results("attack")[0]["variables"],
    results("median")[0]["variables"],
    atol=1e-6,
  )


@pytest.mark.process
def test_evaluate_and_predict_see_all_data_in_order(results):
  points, labels = problem.draw(2, 96)
  for seen in results("keras"):
    variables = problem.unflatten(seen["variables"].astype(np.float64))
    logits = np.log(problem.probabilities(variables, points))
    loss = -np.mean(logits[np.arange(96), labels])
    assert seen["loss"] == pytest.approx(loss, abs=1e-5)
    assert seen["validation_loss"] == pytest.approx(loss, abs=1e-5)
    right = np.mean(logits.argmax(axis=1) == labels)
    assert seen["accuracy"] == pytest.approx(right)
    predicted = seen["logits"] - seen["logits"].max(axis=1, keepdims=True)
    expected = logits - logits.max(axis=1, keepdims=True)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
