"""Gradients, and nothing else, are aggregated inside MirroredStrategy."""

import functools

import keras
import numpy as np
import pytest

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.distribute.cross_device_ops import RobustCrossDeviceOps
from robust_tf.distribute.hooks import gradient_reduction
from robust_tf.optimizers.robust import RobustOptimizer
from tests.robust_tf import oracles
from tests.robust_tf import replicas
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import tf
from tests.tiers import tiers

N = len(DEVICES)
RULES = {
  "mean": (aggregators.mean, oracles.mean),
  "median": (aggregators.median, oracles.median),
  "trimmed_mean": (
    functools.partial(aggregators.trimmed_mean, trim=1),
    functools.partial(oracles.trimmed_mean, trim=1),
  ),
  "phocas": (
    functools.partial(aggregators.phocas, trim=1),
    functools.partial(oracles.phocas, trim=1),
  ),
  "krum": (
    functools.partial(aggregators.krum, num_byzantine=0),
    functools.partial(oracles.krum, num_byzantine=0),
  ),
  "geometric_median": (
    aggregators.geometric_median,
    oracles.geometric_median,
  ),
  "of a user": (
    lambda updates: tf.reduce_max(updates, axis=0),
    lambda updates: updates.max(axis=0),
  ),
}
FLIP = Byzantine((2,), functools.partial(attacks.sign_flip, scale=50.0))


def mirrored(ops, num_replicas=N):
  return tf.distribute.MirroredStrategy(
    DEVICES[:num_replicas], cross_device_ops=ops
  )


def own_gradients(shapes, seed=0, dtype=np.float32):
  """Returns a random gradient of each variable for each replica."""
  random = np.random.default_rng(seed)
  return [
    [random.standard_normal((N, *shape)).astype(dtype)[i] for shape in shapes]
    for i in range(N)
  ]


def flat(values):
  return np.concatenate([np.asarray(x, np.float64).ravel() for x in values])


def own_of(replica, gradients):
  """Returns what a replica, known when the step runs, has as gradients."""
  return [
    tf.gather(np.stack(values), replica)
    for values in zip(*gradients, strict=True)
  ]


def applied(strategy, optimizer, gradients, num_steps=1):
  """Applies each replica's gradients; returns its variables' values.

  Args:
    strategy: the strategy.
    optimizer: makes the optimizer.
    gradients: over the replicas, over the variables.
    num_steps: how often.
  """
  with strategy.scope():
    variables = [keras.Variable(np.zeros_like(x)) for x in gradients[0]]
    optimizer = optimizer()

  @tf.function
  def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    optimizer.apply(own_of(replica, gradients), variables)

  for _ in range(num_steps):
    strategy.run(step)
  return [
    [x.numpy() for x in values]
    for values in zip(
      *[strategy.experimental_local_results(v.value) for v in variables],
      strict=True,
    )
  ]


@pytest.mark.parametrize("rule", RULES)
def test_sum_is_n_times_the_rule(rule):
  aggregator, oracle = RULES[rule]
  gradients = own_gradients([(3, 2), (), (5,)])
  replicas = applied(
    mirrored(RobustCrossDeviceOps(aggregator)),
    lambda: keras.optimizers.SGD(1.0),
    gradients,
  )
  expected = -N * oracle(np.stack([flat(x) for x in gradients]))
  for variables in replicas:
    np.testing.assert_allclose(flat(variables), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_mean_is_the_rule(rule):
  aggregator, oracle = RULES[rule]
  strategy = mirrored(RobustCrossDeviceOps(aggregator))
  gradients = own_gradients([(3, 2), (4,)])
  with strategy.scope():
    variables = [tf.Variable(x) for x in gradients[0]]
    optimizer = keras.optimizers.SGD(1.0)

  @tf.function
  def reduce():
    values = [
      strategy.experimental_distribute_values_from_function(
        lambda context, k=k: tf.constant(
          gradients[context.replica_id_in_sync_group][k]
        )
      )
      for k in range(2)
    ]
    with gradient_reduction.gradients_of(optimizer):
      reduced = strategy.extended.batch_reduce_to(
        tf.distribute.ReduceOp.MEAN, list(zip(values, variables, strict=True))
      )
    return [strategy.experimental_local_results(x) for x in reduced]

  expected = oracle(np.stack([flat(x) for x in gradients]))
  with strategy.scope():
    reduced = reduce()
  for variables in zip(*reduced, strict=True):
    np.testing.assert_allclose(flat(variables), expected, rtol=1e-4, atol=1e-5)


def test_rule_sees_all_variables_of_a_worker_at_once():
  # Krum takes one worker's whole gradient. Worker 1 is the middle one; of the
  # second variable alone, worker 3 would be.
  gradients = [
    [np.float32([x, 0]), np.float32([y])]
    for x, y in [(0, 3), (1, 1), (2, 0), (9, 0.9)]
  ]
  krum = functools.partial(aggregators.krum, num_byzantine=0)
  assert oracles.krum(np.stack([flat(x) for x in gradients]), 0).tolist() == [
    1,
    0,
    1,
  ]
  assert oracles.krum(np.float64([[3], [1], [0], [0.9]]), 0) == 0.9
  replicas = applied(
    mirrored(RobustCrossDeviceOps(krum)),
    lambda: keras.optimizers.SGD(1.0),
    gradients,
  )
  assert flat(replicas[0]).tolist() == [-4, 0, -4]


@pytest.mark.parametrize(
  "aggregator", [aggregators.median, RULES["of a user"][0]]
)
def test_indexed_slices_are_added_up_first(aggregator):
  gradients = own_gradients([(4, 2), (3,)])
  indices = [1, 5, 1, 0]
  strategy = mirrored(RobustCrossDeviceOps(aggregator))
  with strategy.scope():
    variables = [keras.Variable(np.zeros(x, "f4")) for x in [(6, 2), (3,)]]
    optimizer = keras.optimizers.SGD(1.0)

  @tf.function
  def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    rows, dense = own_of(replica, gradients)
    slices = tf.IndexedSlices(rows, tf.constant(indices), tf.constant([6, 2]))
    optimizer.apply([slices, dense], variables)

  strategy.run(step)
  dense = np.zeros((N, 6, 2))
  for i in range(N):
    np.add.at(dense[i], indices, gradients[i][0])
  rule = {RULES[name][0]: RULES[name][1] for name in ("median", "of a user")}
  rows = np.stack([flat([dense[i], gradients[i][1]]) for i in range(N)])
  np.testing.assert_allclose(
    flat([v.numpy() for v in variables]), -N * rule[aggregator](rows), rtol=1e-5
  )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["median", "of a user"])
def test_dtype_of_gradients_is_kept(dtype, name):
  aggregator, oracle = RULES[name]
  dtype = tf.as_dtype(dtype).as_numpy_dtype
  gradients = own_gradients([(7,)], dtype=dtype)
  replicas = applied(
    mirrored(RobustCrossDeviceOps(aggregator)),
    lambda: keras.optimizers.SGD(1.0),
    gradients,
  )
  assert replicas[0][0].dtype == dtype
  rows = np.stack([flat(x) for x in gradients])
  np.testing.assert_allclose(
    flat(replicas[0]), -N * oracle(rows), rtol=2 * np.finfo("f2").eps * 8
  )


def test_variables_of_two_dtypes_are_packed_in_the_wider():
  gradients = [
    [np.float16([i, 1]), np.float32([10 - i, 2, 3])] for i in range(N)
  ]
  replicas = applied(
    mirrored(RobustCrossDeviceOps(RULES["of a user"][0])),
    lambda: keras.optimizers.SGD(1.0),
    gradients,
  )
  assert [x.dtype.name for x in replicas[0]] == ["float16", "float32"]
  assert flat(replicas[0]).tolist() == [-12, -4, -40, -8, -12]


def test_non_finite_rows_do_not_reach_the_variables():
  gradients = own_gradients([(4,)])
  gradients[1] = [np.float32([np.nan, np.inf, -np.inf, 1e38])]
  replicas = applied(
    mirrored(RobustCrossDeviceOps(aggregators.median)),
    lambda: keras.optimizers.SGD(1.0),
    gradients,
  )
  assert np.all(np.isfinite(replicas[0][0]))


# What both ways must agree in, and what TensorFlow must do as before.


def dense_layers():
  return [
    keras.Input((6,)),
    keras.layers.Dense(8, activation="tanh"),
    keras.layers.Dense(1),
  ]


def one_variable():
  return [keras.Input((6,)), keras.layers.Dense(1, use_bias=False)]


def with_all_kinds_of_values():
  """Indexed slices, and a batch of sums that are no gradients."""
  return [
    keras.Input((6,), dtype="int32"),
    keras.layers.Embedding(12, 3),
    keras.layers.Flatten(),
    keras.layers.Dense(8, activation="tanh"),
    keras.layers.BatchNormalization(synchronized=True),
    keras.layers.Dense(1),
  ]


def all_of_adam():
  return keras.optimizers.Adam(
    keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.9),
    clipnorm=0.5,
    weight_decay=0.1,
    use_ema=True,
  )


def data(integers=False):
  random = np.random.default_rng(5)
  if integers:
    points = random.integers(0, 12, (64, 6)).astype(np.int32)
  else:
    points = random.standard_normal((64, 6)).astype(np.float32)
  targets = random.standard_normal((64, 1)).astype(np.float32)
  return points, targets


def fit(strategy, layers, optimizer, *, epochs=2, dtype=None, **compile_args):
  """Returns the model after training, and its history."""
  keras.utils.set_random_seed(3)
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy(dtype or "float32")
  try:
    with strategy.scope():
      model = keras.Sequential(layers())
      model.compile(optimizer(), "mse", metrics=["mae"], **compile_args)
    points, targets = data(layers is with_all_kinds_of_values)
    history = model.fit(
      points,
      targets,
      batch_size=16,
      epochs=epochs,
      shuffle=False,
      verbose=0,
    )
  finally:
    keras.config.set_dtype_policy(before)
  return model, history.history


def sgd(learning_rate=0.1):
  return keras.optimizers.SGD(learning_rate, momentum=0.9)


SETTINGS = {
  "all_kinds_of_values": (with_all_kinds_of_values, {}),
  "one_variable": (one_variable, {}),
  "mixed_float16": (dense_layers, {"dtype": "mixed_float16"}),
  "steps_per_execution": (dense_layers, {"steps_per_execution": 2}),
  "eager": (dense_layers, {"run_eagerly": True, "epochs": 1}),
}


@pytest.mark.parametrize("setting", tiers(SETTINGS, ["all_kinds_of_values"]))
def test_robust_optimizer_gives_the_same_numbers(setting):
  layers, settings = SETTINGS[setting]
  ops, history = fit(
    mirrored(RobustCrossDeviceOps(aggregators.median, byzantine=FLIP)),
    layers,
    sgd,
    **settings,
  )
  wrapper, wrapper_history = fit(
    replicas.mirrored(N),
    layers,
    lambda: RobustOptimizer(sgd(), aggregators.median, byzantine=FLIP),
    **settings,
  )
  np.testing.assert_array_equal(
    flat(ops.get_weights()), flat(wrapper.get_weights())
  )
  assert history == wrapper_history


def moved(make_optimizer, ops, make_gradient, shape):
  """Returns a variable of zeros after a step with each replica's gradient."""
  strategy = mirrored(ops)
  with strategy.scope():
    variable = keras.Variable(np.zeros(shape, "f4"))
    optimizer = make_optimizer()

  @tf.function
  def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    optimizer.apply([make_gradient(replica)], [variable])

  strategy.run(step)
  return variable.numpy()


def by_each_route(make_optimizer, rule, *args):
  """Returns `moved` of both ways to a rule, and of Keras by itself."""
  plain = tf.distribute.ReductionToOneDevice()
  return (
    moved(lambda: RobustOptimizer(make_optimizer(), rule), plain, *args),
    moved(make_optimizer, RobustCrossDeviceOps(rule), *args),
    moved(make_optimizer, plain, *args),
  )


@pytest.mark.parametrize(
  ("clipping", "update"),
  [
    # Of replicas' shares of 1 for each element, Keras leaves 0.5 a replica.
    ({"clipnorm": 0.5}, 0.25),
    ({"global_clipnorm": 0.5}, 0.25),
    ({"clipvalue": 0.5}, 0.5),
  ],
)
def test_optimizer_clips_the_aggregate_and_by_itself_each_replica(
  clipping, update
):
  wrapper, ops, stock = by_each_route(
    lambda: keras.optimizers.SGD(1.0, **clipping),
    aggregators.mean,
    lambda replica: tf.ones([4]),
    (4,),
  )
  np.testing.assert_allclose(wrapper, np.full(4, -update), rtol=1e-6)
  np.testing.assert_allclose(ops, wrapper, rtol=1e-6)
  np.testing.assert_allclose(stock, N * wrapper, rtol=1e-6)


@pytest.mark.parametrize("rule", [aggregators.mean, aggregators.median])
def test_adam_squares_whole_rows_and_by_itself_each_lookup(rule):
  # Each replica looks row 1 up once. Adam's first step is its rate times
  # sum(g) / |sum(g)|, and where Keras squares parts sum(g) / sqrt(sum(g^2)).
  wrapper, ops, stock = by_each_route(
    lambda: keras.optimizers.Adam(1.0),
    rule,
    lambda replica: tf.IndexedSlices(
      tf.fill([1, 2], 0.25), tf.constant([1]), tf.constant([3, 2])
    ),
    (3, 2),
  )
  row = np.float32([[0, 0], [1, 1], [0, 0]])
  # But for Adam's epsilon of 1e-7, added to a root of about 1e-2.
  np.testing.assert_allclose(wrapper, -row, atol=1e-4)
  np.testing.assert_allclose(ops, wrapper, atol=1e-6)
  np.testing.assert_allclose(stock, -np.sqrt(N) * row, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [aggregators.mean, aggregators.median])
def test_routes_agree_where_they_differ_from_keras(rule):
  ops, _ = fit(
    mirrored(RobustCrossDeviceOps(rule)), with_all_kinds_of_values, all_of_adam
  )
  wrapper, _ = fit(
    replicas.mirrored(N),
    with_all_kinds_of_values,
    lambda: RobustOptimizer(all_of_adam(), rule),
  )
  np.testing.assert_allclose(
    flat(ops.get_weights()), flat(wrapper.get_weights()), atol=1e-6
  )


def test_mean_is_what_tensorflow_computes():
  mean, history = fit(
    mirrored(RobustCrossDeviceOps(aggregators.mean)), dense_layers, sgd
  )
  plain, plain_history = fit(replicas.mirrored(N), dense_layers, sgd)
  np.testing.assert_array_equal(
    flat(mean.get_weights()), flat(plain.get_weights())
  )
  assert history == plain_history


def test_only_gradients_are_aggregated():
  # With a learning rate of 0 gradients change nothing, so that what is left
  # are metrics, losses and the statistics of batch normalisation.
  still = functools.partial(sgd, 0.0)
  robust, robust_history = fit(
    mirrored(RobustCrossDeviceOps(aggregators.median, byzantine=FLIP)),
    with_all_kinds_of_values,
    still,
  )
  plain, plain_history = fit(
    replicas.mirrored(N), with_all_kinds_of_values, still
  )
  assert robust_history == plain_history
  np.testing.assert_array_equal(
    flat(robust.get_weights()), flat(plain.get_weights())
  )


def test_custom_loop_reduces_as_usual():
  strategy = mirrored(RobustCrossDeviceOps(aggregators.median))

  @tf.function
  def step():
    context = tf.distribute.get_replica_context()
    values = [tf.cast(context.replica_id_in_sync_group, tf.float32)] * 2
    return context.all_reduce("SUM", values), context.all_reduce("MEAN", values)

  total, mean = strategy.run(step)
  results = strategy.experimental_local_results((total[0], mean[1]))
  assert [[float(x) for x in pair] for pair in results] == [[6.0, 1.5]] * N


@pytest.mark.parametrize(
  "attack",
  tiers([attacks.omniscient, attacks.non_finite], [attacks.omniscient]),
)
def test_one_byzantine_replica_breaks_the_mean_alone(attack):
  losses = {}
  for rule in (aggregators.mean, aggregators.median):
    ops = RobustCrossDeviceOps(rule, byzantine=Byzantine((0,), attack))
    optimizer = functools.partial(keras.optimizers.SGD, 0.05)
    _, history = fit(mirrored(ops), dense_layers, optimizer)
    losses[rule] = history["loss"]
  assert losses[aggregators.median][-1] < losses[aggregators.median][0]
  assert not losses[aggregators.mean][-1] < 1e3


def test_attack_starts_at_its_step():
  byzantine = Byzantine((1,), attacks.sign_flip, start_step=2)
  ops = RobustCrossDeviceOps(RULES["of a user"][0], byzantine=byzantine)
  gradients = [[np.float32([x])] for x in (1, 3, 2, 0)]
  replicas = applied(
    mirrored(ops), lambda: keras.optimizers.SGD(1.0), gradients, num_steps=4
  )
  # The largest is 3 in the steps 0 and 1, and 2 when 3 has become -3.
  assert flat(replicas[0]).tolist() == [-N * (3 + 3 + 2 + 2)]


# What is refused.


@pytest.mark.parametrize(
  ("aggregator", "error", "match"),
  [
    ("median", TypeError, "'median' is no callable: give a rule"),
    (
      functools.partial(aggregators.zeno, num_suspected=1),
      ValueError,
      "zeno needs a loss and the learning rate.*RobustOptimizer",
    ),
    (
      functools.partial(aggregators.trimmed_mean, 1),
      ValueError,
      "name the parameters",
    ),
  ],
)
def test_unfit_aggregator_is_refused(aggregator, error, match):
  with pytest.raises(error, match=match):
    RobustCrossDeviceOps(aggregator)


def apply_once(strategy, optimizer=sgd):
  return applied(strategy, optimizer, own_gradients([(3,), (2,)]))


@pytest.mark.parametrize(
  ("aggregator", "match"),
  [
    (lambda updates: updates, r"returned float32 \(4, 5\).*\(5,\)"),
    (lambda updates: updates[0, :2], r"returned float32 \(2,\)"),
    (
      lambda updates: tf.cast(updates[0], tf.float64),
      "returned float64.*must return float32",
    ),
  ],
)
def test_wrong_result_of_a_rule_is_refused(aggregator, match):
  with pytest.raises(ValueError, match=match):
    apply_once(mirrored(RobustCrossDeviceOps(aggregator)))


@pytest.mark.parametrize(
  ("rule", "match"),
  [
    (
      functools.partial(aggregators.trimmed_mean, trim=2),
      "trim=2 needs at least 5 updates, got 4",
    ),
    (
      functools.partial(aggregators.krum, num_byzantine=1),
      "num_byzantine=1 needs at least 5 updates, got 4",
    ),
  ],
)
def test_rule_for_more_workers_is_refused(rule, match):
  with pytest.raises(ValueError, match=match):
    apply_once(mirrored(RobustCrossDeviceOps(rule)))


def test_byzantine_replica_that_is_not_there_is_refused():
  byzantine = Byzantine((4,), attacks.sign_flip)
  ops = RobustCrossDeviceOps(aggregators.median, byzantine=byzantine)
  with pytest.raises(ValueError, match="worker 4 is not one of the 4"):
    apply_once(mirrored(ops))


def own_reduction():
  class Own(keras.optimizers.SGD):
    def _all_reduce_sum_gradients(self, grads_and_vars):
      return grads_and_vars

  return Own()


@pytest.mark.parametrize(
  ("optimizer", "match"),
  [
    (
      lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
      "gradient_accumulation_steps=2.*set it on a RobustOptimizer",
    ),
    (
      lambda: keras.optimizers.SGD(use_ema=True, ema_overwrite_frequency=5),
      "ema_overwrite_frequency=5.*leave it unset",
    ),
    (
      lambda: RobustOptimizer(sgd(), aggregators.median),
      "under RobustCrossDeviceOps use a plain optimizer",
    ),
    (own_reduction, "does not leave the reduction of its gradients to Keras"),
    (
      lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD())
      ),
      "a rule must see the whole",
    ),
  ],
)
def test_optimizer_that_cannot_work_is_refused(optimizer, match):
  strategy = mirrored(RobustCrossDeviceOps(aggregators.median))
  with pytest.raises(ValueError, match=match):
    fit(strategy, dense_layers, optimizer)


def test_single_replica_is_refused():
  strategy = mirrored(RobustCrossDeviceOps(aggregators.median), 1)
  with pytest.raises(
    ValueError, match="1 replica, and so nothing to aggregate"
  ):
    fit(strategy, dense_layers, sgd)


def test_compiled_step_is_refused():
  strategy = mirrored(RobustCrossDeviceOps(aggregators.median))
  with pytest.raises(ValueError, match="with jit_compile=False"):
    fit(strategy, dense_layers, sgd, jit_compile=True)


def test_other_strategy_is_refused():
  strategy = tf.distribute.OneDeviceStrategy("CPU:0")
  # What it takes no argument for.
  strategy.extended._cross_device_ops = RobustCrossDeviceOps(aggregators.mean)
  with pytest.raises(ValueError, match="under OneDeviceStrategy.*MirroredStr"):
    fit(strategy, dense_layers, sgd)


def test_optimizer_outside_the_replicas_is_refused():
  strategy = mirrored(RobustCrossDeviceOps(aggregators.median))
  with strategy.scope():
    variable = keras.Variable(np.zeros(2, np.float32))
    optimizer = sgd()
    with pytest.raises(ValueError, match="outside the replicas"):
      optimizer.apply([tf.ones(2)], [variable])
