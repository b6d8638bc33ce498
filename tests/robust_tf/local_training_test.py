"""`fit` on four replicas does at every step what the papers say.

Gradients are of order 0.1 to 1 and computed in float32 here, in float64 by the
oracle: after a dozen steps models may differ by some 1e-6, and no more.
"""

import functools

from tests.tensorflow_setup import tf  # noqa: F401  isort: skip

import keras
import numpy as np
import pytest

import robust_tf
from robust_tf.compressors import GRBS
from robust_tf.compressors import Identity
from robust_tf.compressors import QSGD
from robust_tf.compressors import Zero
from tests.robust_tf import local_cases as cases
from tests.robust_tf import local_oracles as oracles
from tests.robust_tf import local_training as training
from tests.robust_tf import replicas
from tests.tiers import tiers

NUM_WORKERS = 4
NUM_STEPS = 12
TOLERANCE = 1e-5
FAST = ("grbs", "top_k_gradient", "local_sgd", "ef_sgd", "local_adaalter")


def fit(
  make_optimizer, states=(), num_steps=NUM_STEPS, num_replicas=4, workers=None
):
  """Returns the recorder of a run.

  Args:
    make_optimizer: a function.
    states: names of what is recorded beside the models.
    num_steps: at most an epoch, or a multiple of one.
    num_replicas: 1 is no strategy.
    workers: rows on each replica; None: one worker a replica.
  """
  recorder = training.Recorder(states)
  strategy = replicas.mirrored(num_replicas) if num_replicas > 1 else None
  with replicas.scope(strategy):
    model = training.compiled(make_optimizer, workers)
  num_workers = num_replicas * (workers or 1)
  per_epoch = min(num_steps, training.network.NUM_STEPS)
  model.fit(
    *training.global_batches(num_workers, per_epoch),
    batch_size=num_workers * training.network.BATCH,
    epochs=num_steps // per_epoch,
    shuffle=False,
    verbose=0,
    callbacks=[recorder],
  )
  return recorder


@functools.cache
def trained(name):
  case = cases.CASES[name]
  return fit(case.make, case.states)


def models(recorder):
  return np.stack([step["models"] for step in recorder.steps])


def keras_models(make_optimizer, num_workers=NUM_WORKERS):
  """Returns the one model of every step of a Keras optimizer, [T, 1, d]."""
  seen = []
  strategy = replicas.mirrored(num_workers) if num_workers > 1 else None
  with replicas.scope(strategy):
    model = training.compiled(make_optimizer)
  record = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: seen.append(
      training.rows([model.get_weights()])
    )
  )
  model.fit(
    *training.global_batches(num_workers, NUM_STEPS),
    batch_size=num_workers * training.network.BATCH,
    shuffle=False,
    verbose=0,
    callbacks=[record],
  )
  return np.stack(seen)


def synchronous(**kwargs):
  return keras_models(
    lambda: keras.optimizers.SGD(
      cases.RATE, momentum=0.9, nesterov=True, **kwargs
    )
  )


def cser(**kwargs):
  return functools.partial(robust_tf.CSER, cases.RATE, momentum=0.9, **kwargs)


def test_keras_sgd_equals_its_oracle():
  # The network and its batches are the same in NumPy, whoever optimizes it.
  problem = training.problem(NUM_WORKERS, NUM_STEPS, cases.constant)
  expected = [step["models"][:1] for step in oracles.sgd(problem, beta=0.9)]
  np.testing.assert_allclose(synchronous(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", tiers(cases.CASES, FAST))
def test_every_step_equals_the_oracle(name):
  recorder = trained(name)
  assert len(recorder.steps) == NUM_STEPS
  training.check_steps(cases.CASES[name], recorder, NUM_WORKERS, TOLERANCE)


@pytest.mark.parametrize(
  "name",
  tiers((n for n in cases.CSER if not n.startswith("released")), FAST),
)
def test_p1_model_minus_error_is_common(name):
  case = cases.CASES[name]
  problem = training.problem(NUM_WORKERS, NUM_STEPS, case.rate, case.clip)
  for seen, expected in zip(
    trained(name).steps, case.expect(problem), strict=True
  ):
    # Where an all-reduce carries C1, the optimizer needs no error; there is
    # one all the same.
    error = seen.get("error", expected["error"])
    assert np.ptp(seen["models"] - error, axis=0).max() < TOLERANCE


def moves(name, beta=0.9, wd=0.0):
  """Returns p_i of every step but the first, of what the optimizer keeps."""
  steps = trained(name).steps
  return [
    (
      now["models"] - before["models"],
      cases.RATE
      * (
        (1 + beta) * now["momentum"]
        - beta * before["momentum"]
        + wd * before["models"]
      ),
    )
    for before, now in zip(steps[:-1], steps[1:], strict=True)
  ]


@pytest.mark.parametrize(
  ("name", "wd"), [("grbs", 0), ("top_k_gradient", 0.05)]
)
def test_p2_mean_model_follows_the_mean_update(name, wd):
  for change, p in moves(name, wd=wd):
    np.testing.assert_allclose(
      change.mean(axis=0), -p.mean(axis=0), atol=TOLERANCE
    )


def test_p5_block_moves_alike_and_the_rest_by_itself():
  for step, (change, p) in enumerate(moves("grbs"), 1):
    if (step + 1) % 3:
      block = np.zeros(training.SIZE, bool)
      block[cases.GRADIENT.support(training.SIZE, step).numpy()] = True
      assert np.ptp(change[:, block], axis=0).max() < TOLERANCE
      np.testing.assert_allclose(
        change[:, ~block], -p[:, ~block], atol=TOLERANCE
      )


@pytest.mark.slow
def test_p4_identity_reset_leaves_one_model():
  steps = trained("identity_reset").steps
  for step in steps[2::3]:
    assert np.ptp(step["models"], axis=0).max() < TOLERANCE
  assert np.ptp(steps[1]["models"], axis=0).max() > 100 * TOLERANCE


def test_adaalter_p3_denominator_is_common_and_frozen():
  steps = trained("local_adaalter").steps
  for before, now, synced in zip(
    steps[:-2:3], steps[1:-1:3], steps[2::3], strict=True
  ):
    np.testing.assert_array_equal(now["denominator"], before["denominator"])
    for state in ("models", "accumulator", "denominator"):
      assert np.ptp(synced[state], axis=0).max() == 0
    np.testing.assert_array_equal(synced["denominator"], synced["accumulator"])
    assert np.ptp(now["denominator"], axis=0).max() == 0
    assert np.all(synced["denominator"] >= now["denominator"])
    assert np.ptp(now["models"], axis=0).max() > 100 * TOLERANCE


@pytest.mark.slow
def test_p1_holds_where_every_worker_rounds_by_chance():
  make = cser(
    sync_period=3,
    reset_compressor=QSGD(seed=1),
    gradient_compressor=QSGD(seed=2),
  )
  spread = 0.0
  for step in fit(make, ("error",)).steps:
    common = step["models"] - step["error"]
    assert np.ptp(common, axis=0).max() < TOLERANCE
    spread = max(spread, np.ptp(step["models"], axis=0).max())
  assert spread > 100 * TOLERANCE  # models do differ


@pytest.mark.parametrize("name", tiers(cases.CASES, FAST))
def test_every_byte_is_counted(name):
  sent = [cases.CASES[name].sent(step) for step in range(NUM_STEPS)]
  np.testing.assert_array_equal(trained(name).bytes_sent, np.cumsum(sent))


@pytest.mark.slow
def test_p7_bytes_are_one_over_the_compression_ratio():
  h, ratio_1, ratio_2, steps = 4, 8, 32, 240
  recorder = fit(
    cser(
      sync_period=h,
      reset_compressor=GRBS(ratio_1, num_blocks=64, seed=1),
      gradient_compressor=GRBS(ratio_2, num_blocks=64, seed=2),
    ),
    num_steps=steps,
  )
  ratio = 1 / (1 / ratio_2 + 1 / (ratio_1 * h))
  dense = 4 * training.SIZE * steps
  # Blocks are of one or two coordinates: what is drawn varies a little.
  assert recorder.bytes_sent[-1] / dense == pytest.approx(1 / ratio, rel=0.02)


@pytest.mark.slow
def test_identity_gradient_compressor_is_keras_sgd():
  make = cser(sync_period=3, gradient_compressor=Identity(), weight_decay=0.05)
  np.testing.assert_allclose(
    models(fit(make)),
    np.repeat(synchronous(weight_decay=0.05), NUM_WORKERS, axis=1),
    atol=1e-6,
  )


@pytest.mark.slow
def test_identity_reset_at_each_step_is_keras_sgd():
  make = cser(
    sync_period=1, reset_compressor=Identity(), gradient_compressor=Zero()
  )
  expected = np.repeat(synchronous(), NUM_WORKERS, axis=1)
  np.testing.assert_allclose(models(fit(make)), expected, atol=1e-6)
  every_step = fit(
    lambda: robust_tf.LocalSGD(cases.RATE, sync_period=1, momentum=0.9)
  )
  np.testing.assert_allclose(models(every_step), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("special", "period", "reset"),
  [
    ("CSEA", 1, cases.RESET),
    ("CSER_PL", 3, cases.RESET),
    ("LocalSGD", 3, None),
  ],
)
def test_named_special_case_is_cser(special, period, reset):
  kwargs = {"momentum": 0.9}
  if special != "CSEA":
    kwargs["sync_period"] = period
  if reset is not None:
    kwargs["compressor"] = reset
  named = fit(
    lambda: getattr(robust_tf, special)(cases.RATE, **kwargs), num_replicas=2
  )
  general = fit(
    cser(
      sync_period=period,
      reset_compressor=reset or Identity(),
      gradient_compressor=Zero(),
    ),
    num_replicas=2,
  )
  np.testing.assert_allclose(models(named), models(general), atol=1e-6)


def test_p6_one_worker_is_keras_sgd():
  alone = models(
    fit(
      cser(
        sync_period=3,
        reset_compressor=cases.RESET,
        gradient_compressor=cases.GRADIENT,
      ),
      num_replicas=1,
    )
  )
  expected = keras_models(
    lambda: keras.optimizers.SGD(cases.RATE, momentum=0.9, nesterov=True),
    num_workers=1,
  )
  np.testing.assert_allclose(alone, expected, atol=1e-6)
