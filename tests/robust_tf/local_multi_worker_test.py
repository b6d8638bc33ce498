"""Three real processes with models of their own do what the papers say."""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import numpy as np
import pytest

from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_training as training
from tests.robust_tf import multi_worker_problem as network
from tests.robust_tf.local_multi_worker_training import NUM_STEPS
from tests.robust_tf.server_network import run_in_processes
from tests.tiers import selected

SCRIPT = "tests.robust_tf.local_multi_worker_training"
NAMES = ("grbs", "top_k_reset", "local_sgd", "local_adaalter")
SLOW = (
  "top_k_gradient",  # with sign bits at the reset
  "released_code",
  "ef_sgd_top_k",
  "qsparse",
)
# As with replicas of one process: float32 beside float64, a dozen steps.
TOLERANCE = 1e-5


pytestmark = pytest.mark.slow
each_name = pytest.mark.parametrize(
  "name", [*(pytest.param(x, marks=pytest.mark.process) for x in NAMES), *SLOW]
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
  """What each process saw of each run: results(name)[worker][state]."""
  directory = tmp_path_factory.mktemp("local_multi_worker")
  names = {"top_k_reset", *selected(request, "name")}
  run_in_processes(SCRIPT, network.NUM_WORKERS, directory, *sorted(names))
  return lambda name: [
    np.load(directory / f"{name}_{worker}.npz")
    for worker in range(network.NUM_WORKERS)
  ]


def expected(name):
  """Returns every state of all steps by the oracle, [T, n, d]."""
  case = cases.CASES[name]
  problem = training.problem(
    network.NUM_WORKERS, NUM_STEPS, case.rate, case.clip
  )
  steps = list(case.expect(problem))
  return {
    state: np.stack([step[state] for step in steps])
    for state in ("models", *case.states)
  }


@each_name
def test_every_step_equals_the_oracle(name, results):
  seen = results(name)
  for state, steps in expected(name).items():
    np.testing.assert_allclose(
      np.stack([worker[state] for worker in seen], axis=1),
      steps,
      rtol=TOLERANCE,
      atol=TOLERANCE,
      err_msg=state,
    )


@pytest.mark.process
def test_p1_model_minus_error_is_common(results):
  workers = results("top_k_reset")
  common = [worker["models"] - worker["error"] for worker in workers]
  assert np.ptp(common, axis=0).max() < TOLERANCE
  assert np.ptp([x["models"] for x in workers], axis=0).max() > 0.001


@each_name
def test_fit_ends_with_the_mean_model_everywhere(name, results):
  mean = expected(name)["models"][-1].mean(axis=0)
  first, *others = [worker["final"] for worker in results(name)]
  np.testing.assert_allclose(first, mean, rtol=TOLERANCE, atol=TOLERANCE)
  for other in others:
    np.testing.assert_array_equal(other, first)


@each_name
def test_every_byte_is_counted(name, results):
  sent = [cases.CASES[name].sent(step) for step in range(NUM_STEPS)]
  for worker in results(name):
    np.testing.assert_array_equal(worker["bytes_sent"], np.cumsum(sent))
