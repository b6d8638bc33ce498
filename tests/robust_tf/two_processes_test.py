"""What RobustOptimizer does beyond a rule is the same in several processes."""

import numpy as np
import pytest

from tests.robust_tf import replicas
from tests.robust_tf import two_processes
from tests.robust_tf.server_network import run_in_processes

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """Where two processes wrote what came out of each case."""
  directory = tmp_path_factory.mktemp("two_processes")
  run_in_processes(
    "tests.robust_tf.two_processes", two_processes.NUM_PROCESSES, directory
  )
  return directory


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_are_two_replicas_of_one(case, directory):
  expected = two_processes.train(
    case, replicas.mirrored(2), two_processes.batches(case)
  )
  found = [
    list(np.load(directory / f"{case}_{process}.npz").values())
    for process in range(two_processes.NUM_PROCESSES)
  ]
  for first, second, value in zip(*found, expected, strict=True):
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, value, atol=1e-6)
