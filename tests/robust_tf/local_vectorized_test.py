"""Simulated workers with models of their own do what the papers say.

`VectorizedWorkers` computes each row's gradient at the model of its worker.
"""

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import pytest

from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_training as training
from tests.robust_tf import multi_worker_problem as network
from tests.robust_tf import replicas

NUM_STEPS = 7
# Float32 beside float64, a few steps.
TOLERANCE = 1e-5


@pytest.mark.parametrize(
  ("name", "num_replicas", "rows"),
  [
    ("grbs_scheduled", 2, 2),
    ("top_k_gradient", 1, 4),
    ("qsparse", 1, 4),
    ("local_adaalter", 2, 2),
  ],
)
def test_every_step_equals_the_oracle(name, num_replicas, rows):
  case = cases.CASES[name]
  recorder = training.Recorder(case.states)
  strategy = replicas.mirrored(num_replicas) if num_replicas > 1 else None
  with replicas.scope(strategy):
    model = training.compiled(case.make, rows)
  num_workers = num_replicas * rows
  model.fit(
    *training.global_batches(num_workers, NUM_STEPS),
    batch_size=num_workers * network.BATCH,
    shuffle=False,
    verbose=0,
    callbacks=[recorder],
  )
  assert len(recorder.steps) == NUM_STEPS
  training.check_steps(case, recorder, num_workers, TOLERANCE)
