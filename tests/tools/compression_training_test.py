"""Training again and again with one trace, for the tables."""

import functools

from tests.tensorflow_setup import tf  # isort: skip

import numpy as np
import pytest

from robust_tf.federated import partition
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import load
from robust_tf.training.models import mlp
from tools.compression_tables import TABLES
from tools.compression_training import NUM_POINTS
from tools.compression_training import Training
from tools.compression_training import WarmUpAndDrops
from tools.worker_examples import worker_examples

NUM_WORKERS, NUM_STEPS, BATCH = 2, 40, 8


def method(name, ratio=16):
  (row,) = (
    x for x in TABLES["ratios"].rows if x.name == name and x.ratio == ratio
  )
  return row.method


@functools.cache
def data():
  return load("digits", 0)


@functools.cache
def examples():
  parts = partition.iid(data().y_train, NUM_WORKERS, 0)
  return worker_examples(WorkerBatches(data(), parts, BATCH, seed=0), NUM_STEPS)


def training_of(name):
  return Training(
    lambda seed: mlp((8, 8, 1), 10, seed, hidden=4),
    method(name).make_optimizer,
    num_workers=NUM_WORKERS,
    num_steps=NUM_STEPS,
    warm_up=5,
    drops=(0.5,),
  )


@pytest.mark.parametrize(
  ("step", "factor"),
  [(0, 0.1), (4, 0.5), (9, 1), (19, 1), (20, 0.2), (29, 0.2), (30, 0.04)],
)
def test_learning_rate_rises_and_drops(step, factor):
  rate = tf.Variable(3.0)
  schedule = WarmUpAndDrops(rate, warm_up=10, drops=[20, 30])
  np.testing.assert_allclose(schedule(step), 3 * factor, rtol=1e-6)  # float32
  rate.assign(0.5)
  np.testing.assert_allclose(schedule(step), 0.5 * factor, rtol=1e-6)


# Errors, common models, momenta and counters must all be set back.
@pytest.mark.parametrize(
  "name", ["cser", pytest.param("qsparse", marks=pytest.mark.slow)]
)
def test_run_does_not_depend_on_those_before(name):
  again = training_of(name)
  again.run(data(), examples(), 0.5, seed=1)
  second = again.run(data(), examples(), 0.1, seed=0)
  first = training_of(name).run(data(), examples(), 0.1, seed=0)
  assert second == first


def test_curve_counts_steps_and_bytes():
  training = training_of("qsparse")
  curve = training.run(data(), examples(), 0.1, seed=0)
  assert len(curve) == NUM_POINTS
  assert [point.step for point in curve] == list(range(2, NUM_STEPS + 1, 2))
  size = 64 * 4 + 4 + 4 * 10 + 10
  assert training.vector_bytes == 4 * size
  # Blocks are single coordinates here, and a quarter is sent every 4 steps.
  assert curve[1].bytes_sent == 4 * round(size / 4)
  assert curve[-1].bytes_sent == 10 * curve[1].bytes_sent
  assert curve[-1].train_loss < curve[0].train_loss


def test_steps_must_fit_the_points():
  with pytest.raises(ValueError, match="num_steps=41 must be a multiple of 20"):
    Training(
      lambda seed: mlp((8, 8, 1), 10, seed),
      method("cser").make_optimizer,
      num_workers=NUM_WORKERS,
      num_steps=41,
      warm_up=5,
      drops=(),
    )
