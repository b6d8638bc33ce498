"""One step at a time, with given gradients and numbers worked out by hand."""

import functools

import numpy as np
import pytest
from absl import logging

from tests.tensorflow_setup import tf  # isort: skip
import keras

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf import RobustOptimizer
from robust_tf.attacks import Byzantine
from robust_tf.optimizers import absent_workers
from tests.robust_tf import replicas
from tests.robust_tf.replicas import Problem

LEARNING_RATE = 0.5
SHAPES = ((3, 2), (4,))

TRIMMED = functools.partial(aggregators.trimmed_mean, trim=1)


def trimmed(rows):
  return np.sort(rows, axis=0)[1:-1].mean(axis=0)


def farthest(rows):
  """Returns the row that is farthest, as a whole, from the first one."""
  distances = tf.reduce_sum(tf.square(rows - rows[0]), axis=1)
  return rows[tf.argmax(distances)]


# How four workers are spread: replicas (None: no strategy), rows of each.
LAYOUTS = [(4, None), (2, 2), (None, 4), (1, 4)]


def problem(aggregator, layout, inner=None, shapes=SHAPES, **kwargs):
  num_replicas, rows = layout
  initial = [np.zeros(shape, np.float32) for shape in shapes]
  inner = inner or (lambda: keras.optimizers.SGD(LEARNING_RATE))
  return Problem(
    lambda: RobustOptimizer(
      inner(), aggregator, workers_per_replica=rows, **kwargs
    ),
    initial,
    None if num_replicas is None else replicas.mirrored(num_replicas),
    rows,
  )


def check(found, expected, tolerance=1e-6):
  for value, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance)


def greatest(rows):
  return tf.reduce_max(rows, axis=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  ("aggregator", "rule"),
  [
    (aggregators.mean, lambda rows: rows.mean(axis=0)),
    (TRIMMED, trimmed),
    (aggregators.median, lambda rows: np.median(rows, axis=0)),
    (greatest, lambda rows: rows.max(axis=0)),
  ],
)
def test_step_is_sgd_with_the_rule_of_mean_loss_gradients(
  aggregator, rule, layout
):
  gradients = replicas.random_gradients(3, 4, SHAPES)
  found = problem(aggregator, layout).steps(gradients).values()
  check(
    found,
    [-LEARNING_RATE * sum(rule(step) for step in g) for g in gradients],
  )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rule_sees_whole_gradients_of_all_variables(layout):
  # Of worker 1 the first variable is farthest, of worker 2 the second, and of
  # worker 3 the whole.
  first = np.float32([[0.0], [3.0], [0.0], [2.5]])
  second = np.float32([[0.0], [0.0], [3.0], [2.5]])
  found = problem(farthest, layout, shapes=((1,), (1,)))
  found.step([first, second])
  check(found.values(), [[-LEARNING_RATE * 2.5]] * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_krum_judges_whole_gradients_in_every_layout(layout):
  rule = functools.partial(aggregators.krum, num_byzantine=0)
  # Squared distances of each worker to its two nearest, summed: worker 0 is
  # the nearest in the first variable alone, 1 in the second, 2 over all.
  first = np.float32([[0.0], [4.0], [1.0], [-1.0]])
  second = np.float32([[4.0], [0.0], [1.0], [-1.0]])
  found = problem(rule, layout, shapes=((1,), (1,)))
  found.step([first, second])
  check(found.values(), [[-LEARNING_RATE * 1.0]] * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  ("setting", "clip"),
  [
    (
      {"clipnorm": 0.7},
      lambda gs: [g * min(1, 0.7 / np.linalg.norm(g)) for g in gs],
    ),
    ({"clipvalue": 0.3}, lambda gs: [np.clip(g, -0.3, 0.3) for g in gs]),
    (
      {"global_clipnorm": 0.7},
      lambda gs: [
        g * min(1, 0.7 / np.sqrt(sum(np.square(h).sum() for h in gs)))
        for g in gs
      ],
    ),
  ],
)
def test_clipping_is_of_each_worker_before_the_rule(setting, clip, layout):
  gradients = replicas.random_gradients(1, 4, SHAPES)
  clipped = [clip([g[0, i] for g in gradients]) for i in range(4)]
  expected = [
    -LEARNING_RATE * trimmed(np.stack([worker[k] for worker in clipped]))
    for k in range(2)
  ]
  check(problem(TRIMMED, layout, **setting).steps(gradients).values(), expected)


def test_clipping_bounds_a_huge_gradient_and_leaves_a_nan():
  def sum_with_100_for_nan(rows):
    return tf.reduce_sum(tf.where(tf.math.is_finite(rows), rows, 100.0), axis=0)

  gradients = np.float32([[1e30, 0], [np.nan, 1], [3, 4], [0, 0]])
  found = problem(
    sum_with_100_for_nan, (None, 4), shapes=((2,),), global_clipnorm=1.0
  )
  found.step([gradients])
  # Rows [1, 0], [NaN, NaN], [0.6, 0.8] and [0, 0].
  check(found.values(), [-LEARNING_RATE * np.array([101.6, 100.8])])


def test_inner_optimizer_clips_the_aggregate():
  # As in stock Keras each of four workers clipped would sum to more.
  gradients = np.float32([[3, 4], [3, 4], [3, 4], [300, 400]])
  found = problem(
    aggregators.median,
    (4, None),
    inner=lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.1),
    shapes=((2,),),
  )
  found.step([gradients])
  check(found.values(), [[-0.06, -0.08]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulation_aggregates_each_workers_mean_gradient(layout):
  gradients = replicas.random_gradients(6, 4, SHAPES)
  found = problem(TRIMMED, layout, gradient_accumulation_steps=3)
  expected = [np.zeros(shape) for shape in SHAPES]
  for step in range(6):
    found.step([g[step] for g in gradients])
    if step % 3 == 2:
      for k, g in enumerate(gradients):
        rows = g[step - 2 : step + 1].mean(axis=0)
        expected[k] = expected[k] - LEARNING_RATE * trimmed(rows)
    check(found.values(), expected)
  assert found.optimizer.iterations.numpy() == 2


def test_accumulation_clips_the_mean_gradient():
  gradients = np.float32([[[2.0], [9.0]], [[-1.0], [-9.0]]])
  found = problem(
    aggregators.mean,
    (None, 2),
    shapes=((1,),),
    gradient_accumulation_steps=2,
    clipvalue=0.25,
  )
  found.steps([gradients])
  check(found.values(), [[-LEARNING_RATE * (0.25 + 0.0) / 2]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_byzantine_rows_are_replaced_from_their_first_step_on(layout):
  gradients = [np.ones((2, 4, 2), np.float32)]
  byzantine = Byzantine(
    workers=(2,),
    attack=functools.partial(attacks.inner_product, epsilon=7.0),
    start_step=1,
  )
  found = problem(aggregators.mean, layout, shapes=((2,),), byzantine=byzantine)
  found.step([gradients[0][0]])
  check(found.values(), [[-LEARNING_RATE] * 2])
  found.step([gradients[0][1]])
  # Three honest ones, and -7 times their mean.
  check(found.values(), [[-LEARNING_RATE * (1 + (3 - 7) / 4)] * 2])


def test_byzantine_steps_are_updates():
  byzantine = Byzantine(
    workers=(0,),
    attack=functools.partial(attacks.omniscient, scale=100.0),
    start_step=1,
  )
  found = problem(
    aggregators.mean,
    (None, 2),
    shapes=((1,),),
    byzantine=byzantine,
    gradient_accumulation_steps=2,
  )
  ones = [np.ones((2, 1), np.float32)]
  for _ in range(2):
    found.step(ones)
  check(found.values(), [[-LEARNING_RATE]])


def test_random_attacks_are_the_same_on_all_replicas():
  byzantine = Byzantine(workers=(1,), attack=attacks.gaussian, seed=3)
  gradients = replicas.random_gradients(2, 4, SHAPES)
  found = [
    problem(aggregators.mean, layout, byzantine=byzantine)
    .steps(gradients)
    .values()  # compares the replicas
    for layout in ((4, None), (None, 4))
  ]
  check(*found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_variable_without_gradient_stays(layout):
  (gradient,) = replicas.random_gradients(1, 4, ((3,),))
  found = problem(TRIMMED, layout, shapes=((2,), (3,)))
  with pytest.warns(UserWarning, match="Gradients do not exist"):
    found.step([None, gradient[0]])
  check(found.values(), [np.zeros(2), -LEARNING_RATE * trimmed(gradient[0])])


def test_loop_of_ones_own_warns_once_of_zeros_that_are_counted(caplog):
  found = problem(aggregators.median, (4, None), shapes=((2,),))
  absent_workers.warn_once.cache_clear()
  logging.get_absl_logger().propagate = True
  gradients = np.ones((4, 2), np.float32)
  with caplog.at_level("WARNING"):
    found.step([gradients])
    assert not caplog.messages
    gradients[1:] = 0
    for _ in range(2):
      found.step([gradients])
  (message,) = caplog.messages
  assert "gradient is exactly zero, and the rule counts it" in message
  check(found.values(), [[-LEARNING_RATE] * 2])


def test_no_gradient_at_all_is_an_error():
  found = problem(aggregators.mean, (None, 2))
  with pytest.raises(ValueError, match="No gradients provided"):
    found.step([None, None])


def test_no_gradients_for_no_variables_change_nothing():
  optimizer = RobustOptimizer(
    keras.optimizers.SGD(0.1), aggregators.mean, workers_per_replica=2
  )
  optimizer.apply([], [])
  assert int(optimizer.iterations) == 0


def test_embedding_gradients_count_like_dense_ones():
  # Row 1 is looked up twice by worker 0, row 0 never: its gradient is 0.
  with replicas.mirrored(2).scope():
    table = keras.Variable(np.zeros((3, 2), np.float32))
    optimizer = RobustOptimizer(keras.optimizers.SGD(1.0), aggregators.mean)
    optimizer.build([table])

  @tf.function
  def step():
    def on_replica():
      index = tf.distribute.get_replica_context().replica_id_in_sync_group
      indices = tf.constant([[1, 1], [1, 2]])[index]
      values = tf.constant([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
      gradient = tf.IndexedSlices(values[index] / 2, indices, (3, 2))
      optimizer.apply([gradient], [table])

    replicas.mirrored(2).run(on_replica)

  step()
  check([table.numpy()], [[[0, 0], [-4.5, -6], [-3.5, -4]]])


def test_variables_of_several_dtypes_keep_theirs():
  initial = [np.zeros(2, np.float32), np.zeros(3, np.float64)]
  found = Problem(
    lambda: RobustOptimizer(
      keras.optimizers.SGD(1.0),
      greatest,
      workers_per_replica=2,
    ),
    initial,
    rows=2,
  )
  found.step([np.float32([[1, 2], [3, 1]]), np.float64([[1, 2, 3], [3, 2, 1]])])
  assert [v.dtype for v in found.values()] == [np.float32, np.float64]
  check(found.values(), [[-3, -2], [-3, -2, -3]])


INNER = [
  lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
  lambda: keras.optimizers.Adam(0.1, clipnorm=0.5, weight_decay=0.01),
  lambda: keras.optimizers.AdamW(0.1, use_ema=True),
  lambda: keras.optimizers.RMSprop(0.1),
  lambda: keras.optimizers.Adagrad(0.1),
  lambda: keras.optimizers.Adadelta(0.1),
  lambda: keras.optimizers.Adafactor(0.1),
  lambda: keras.optimizers.Adamax(0.1),
  lambda: keras.optimizers.Nadam(0.1),
  lambda: keras.optimizers.Ftrl(0.1),
  lambda: keras.optimizers.Lion(0.1),
  lambda: keras.optimizers.Lamb(0.1),
  lambda: keras.optimizers.Muon(0.1),
  lambda: keras.optimizers.ScheduleFreeAdamW(0.1),
  lambda: keras.optimizers.SGD(
    keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
  ),
]


@pytest.mark.parametrize("make", INNER)
def test_any_inner_optimizer_gets_the_aggregate(make):
  shapes = ((4, 3), (3,))
  gradients = replicas.random_gradients(3, 4, shapes)
  initial = [np.ones(shape, np.float32) for shape in shapes]
  found = Problem(
    lambda: RobustOptimizer(make(), TRIMMED, workers_per_replica=4),
    initial,
    rows=4,
  ).steps(gradients)
  aggregate = [np.stack([trimmed(step) for step in g]) for g in gradients]
  alone = Problem(make, initial).steps([a[:, np.newaxis] for a in aggregate])
  check(found.values(), alone.values(), 1e-5)
  found.optimizer.finalize_variable_values(found.variables)
  alone.optimizer.finalize_variable_values(alone.variables)
  check(found.values(), alone.values(), 1e-5)


def test_multi_optimizer_gets_the_aggregate():
  def by_variable(variable):
    return sgd if variable.name == "v0" else adam

  gradients = replicas.random_gradients(2, 4, SHAPES)
  with replicas.mirrored(4).scope():
    sgd, adam = keras.optimizers.SGD(0.5), keras.optimizers.Adam(0.1)
  found = problem(
    TRIMMED,
    (4, None),
    inner=lambda: keras.optimizers.MultiOptimizer(by_variable),
  ).steps(gradients)
  (second,) = [np.stack([trimmed(s) for s in gradients[1]])[:, np.newaxis]]
  alone = Problem(
    lambda: keras.optimizers.Adam(0.1), [np.zeros(SHAPES[1], np.float32)]
  ).steps([second])
  check(
    found.values(),
    [-0.5 * sum(trimmed(s) for s in gradients[0]), *alone.values()],
  )


def test_constraint_acts_on_what_the_aggregate_led_to():
  found = Problem(
    lambda: RobustOptimizer(
      keras.optimizers.SGD(1.0), aggregators.mean, workers_per_replica=2
    ),
    [np.zeros(2, np.float32)],
    rows=2,
  )
  found.variables[0].constraint = keras.constraints.NonNeg()
  found.step([np.float32([[1, -1], [3, -3]])])
  check(found.values(), [[0, 2]])


def test_learning_rate_is_the_inner_optimizers():
  optimizer = problem(aggregators.mean, (None, 2)).optimizer
  assert float(optimizer.learning_rate) == LEARNING_RATE
  optimizer.learning_rate = 0.25
  assert float(optimizer.inner_optimizer.learning_rate) == 0.25


def test_exclude_from_weight_decay_is_passed_on():
  optimizer = RobustOptimizer(
    keras.optimizers.SGD(1.0, weight_decay=0.5),
    aggregators.mean,
    workers_per_replica=2,
  )
  optimizer.exclude_from_weight_decay(var_names=["v0"])
  found = Problem(
    lambda: optimizer, [np.ones(1, np.float32), np.ones(1, np.float32)], rows=2
  )
  found.step([np.zeros((2, 1), np.float32)] * 2)
  check(found.values(), [[1.0], [0.5]])


def test_variables_and_weights_are_those_of_both_optimizers():
  made = [
    problem(
      TRIMMED,
      (4, None),
      inner=lambda: keras.optimizers.Adam(0.1),
      gradient_accumulation_steps=2,
    )
    for _ in range(2)
  ]
  gradients = replicas.random_gradients(3, 4, SHAPES)
  made[0].steps(gradients)
  # One count, 4 x 2 sums with 4 counts; Adam's count and rate, 2 x 2 moments.
  weights = [v.numpy() for v in made[0].optimizer.variables]
  assert len(weights) == 1 + 8 + 4 + 2 + 4
  made[1].optimizer.set_weights(weights)
  for variable, other in zip(made[1].variables, made[0].variables, strict=True):
    variable.assign(other.numpy())
  for each in made:
    each.step([g[0] for g in gradients])
  for value, other in zip(made[1].values(), made[0].values(), strict=True):
    np.testing.assert_array_equal(value, other)
