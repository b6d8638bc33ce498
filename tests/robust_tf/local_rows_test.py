"""Workers that are rows of one device do what the papers say, each step.

Their gradients are given, of their models as the optimizer shows them, so no
graph has to be built and every optimizer can be tried.
"""

from tests.tensorflow_setup import tf  # isort: skip

import keras
import numpy as np
import pytest

from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_training as training
from tests.robust_tf import multi_worker_problem as network

NUM_WORKERS, NUM_STEPS = 4, 7
# Float32 beside float64, a few steps.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", cases.CASES)
def test_every_step_equals_the_oracle(name):
  case = cases.CASES[name]
  recorder = training.Recorder(case.states)
  optimizer = case.make(workers_per_replica=NUM_WORKERS)
  variables = [keras.Variable(x) for x in network.initial_variables()]
  optimizer.build(variables)
  given = training.problem(NUM_WORKERS, NUM_STEPS, case.rate)
  for t in range(1, NUM_STEPS + 1):
    x = training.rows(optimizer.local_models()).astype(np.float64)
    by_worker = [network.unflatten(g) for g in given.gradients(x, t)]
    gradients = [
      tf.constant(np.stack(of_variable), tf.float32)
      for of_variable in zip(*by_worker, strict=True)
    ]
    optimizer.apply(gradients, variables)
    recorder.record(optimizer)
  training.check_steps(case, recorder, NUM_WORKERS, TOLERANCE)
