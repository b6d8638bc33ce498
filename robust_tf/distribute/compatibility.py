"""Every private part of TensorFlow and Keras that robust_tf touches.

Each was read and run with TensorFlow 2.21 and Keras 3.15, and whatever builds
on one calls `check_versions` first, so that another version is one clear
error, not a wrong gradient. Nothing outside this module names anything
private.

Four things change Keras for the whole process, and leave all that has nothing
to do with them as it was: `tag_gradients` (called by `RobustCrossDeviceOps`),
`allow_multi_worker_fit` (called by the optimizers where it is needed),
`let_optimizers_judge_gradients` (called by all of them) and
`let_optimizers_add_callbacks` (called by those with local models). One changes
TensorFlow: `let_workers_hang` (called by what connects to a cluster).
"""

import contextlib
import contextvars
import enum
import functools
import inspect
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import optimizer as keras_tf_optimizer
from keras.src.backend.tensorflow import trainer as keras_trainer
from keras.src.optimizers import base_optimizer
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.distribute import numpy_dataset
from tensorflow.python.distribute.coordinator import cluster_coordinator
from tensorflow.python.distribute.coordinator import coordinator_context
from tensorflow.python.eager import context
from tensorflow.python.eager import executor
from tensorflow.python.ops import control_flow_util

CHECKED_TENSORFLOW = "2.21"
CHECKED_KERAS = "3.15"


class StrategyKind(enum.Enum):
  """How replicas reach each other."""

  NONE = "no strategy"
  MIRRORED = "replicas of one process"
  MULTI_WORKER = "replicas of several processes"
  PARAMETER_SERVER = "a coordinator and workers that see one replica each"
  OTHER = "another strategy"


@functools.cache
def check_versions() -> None:
  """Refuses a TensorFlow, Keras or backend that this module was not run with.

  Raises:
    ValueError: if TensorFlow is not 2.21.x, Keras not 3.15.x, or Keras does
      not run on TensorFlow.
  """
  found = (tf.__version__, keras.__version__)
  checked = (CHECKED_TENSORFLOW, CHECKED_KERAS)
  if not all(
    version.startswith(f"{series}.")
    for version, series in zip(found, checked, strict=True)
  ):
    raise ValueError(
      f"found TensorFlow {found[0]} and Keras {found[1]}; robust_tf hooks"
      f" into private parts that were checked with TensorFlow {checked[0]}.x"
      f" and Keras {checked[1]}.x only: install these"
    )
  if keras.backend.backend() != "tensorflow":
    raise ValueError(
      f"Keras runs on {keras.backend.backend()!r}, robust_tf needs"
      " 'tensorflow': set KERAS_BACKEND=tensorflow"
    )


def strategy_kind(strategy: tf.distribute.Strategy | None = None):
  """Returns the `StrategyKind` of a strategy, by default the current one."""
  if strategy is None:
    if not tf.distribute.has_strategy():
      return StrategyKind.NONE
    strategy = tf.distribute.get_strategy()
  if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
    return StrategyKind.MULTI_WORKER
  if isinstance(strategy, tf.distribute.MirroredStrategy):
    return StrategyKind.MIRRORED
  if isinstance(
    strategy,
    (
      tf.distribute.ParameterServerStrategy,
      tf.distribute.experimental.ParameterServerStrategy,
    ),
  ):
    return StrategyKind.PARAMETER_SERVER
  return StrategyKind.OTHER


def local_replica_devices(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
  """Returns the device of each replica of this process, in replica order."""
  return tuple(strategy.extended.worker_devices)


@contextlib.contextmanager
def variables_on(device: str) -> Iterator[None]:
  """Makes variables on one device alone, inside the scope of a strategy.

  They are no mirrored variables: each replica has its own, and a checkpoint
  holds them all.
  """

  def create(next_creator, **kwargs):
    # TensorFlow 2.21: what MirroredExtended._create_variable leaves alone.
    kwargs["colocate_with"] = numpy_dataset.SingleDevice(device)
    return next_creator(**kwargs)

  with tf.variable_creator_scope(create):
    yield


def without_loss_scale(optimizer):
  """Returns what is inside a `LossScaleOptimizer`; any other as it is."""
  if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
    return optimizer.inner_optimizer
  return optimizer


def components(
  strategy: tf.distribute.Strategy, variable: keras.Variable
) -> tuple[tf.Variable, ...]:
  """Returns a variable's part on each replica of this process."""
  # Keras 3.15: `value` may be cast, in a scope of mixed precision.
  return strategy.experimental_local_results(variable._value)


def weight_decay(
  optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> float:
  """Returns an optimizer's weight decay of a variable, 0 if it is excluded."""
  # Keras 3.15: knows what `exclude_from_weight_decay` was told.
  if optimizer.weight_decay and optimizer._use_weight_decay(variable):
    return optimizer.weight_decay
  return 0.0


def cross_device_ops(
  strategy: tf.distribute.Strategy,
) -> tf.distribute.CrossDeviceOps | None:
  """Returns what a strategy reduces with, None where it has no such thing."""
  # TensorFlow 2.21: set by MirroredExtended and CollectiveAllReduceExtended.
  return getattr(strategy.extended, "_cross_device_ops", None)


def in_xla() -> bool:
  """Whether the function being traced is compiled as a whole by XLA."""
  return control_flow_util.GraphOrParentsInXlaContext(
    tf.compat.v1.get_default_graph()
  )


def _unreduced(grads_and_vars):
  """Returns the pairs as they are."""
  return list(grads_and_vars)


def without_gradient_reduction(
  optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
  """Returns the optimizer, which from now on applies gradients as it gets them.

  For a wrapper that aggregates the replicas' gradients before it hands them
  to the optimizer inside.

  Raises:
    TypeError: if it is not a Keras optimizer.
    ValueError: if it scales losses (the scale is undone outside).
  """
  check_versions()
  if not isinstance(optimizer, keras.optimizers.Optimizer):
    raise TypeError(
      f"optimizer must be a Keras optimizer, got {type(optimizer).__name__}"
    )
  if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
    raise ValueError(
      "optimizer is a LossScaleOptimizer: wrap the aggregating optimizer in"
      " it, not the other way round (`compile` does so by itself)"
    )
  # Keras 3.15: TFOptimizer._backend_update_step calls it just before the
  # update, with what is to be reduced.
  optimizer._all_reduce_sum_gradients = _unreduced
  return optimizer


# The optimizer whose gradients are being reduced in this thread, if any.
_reducing: contextvars.ContextVar[keras.optimizers.Optimizer | None] = (
  contextvars.ContextVar("reducing", default=None)
)


@contextlib.contextmanager
def gradients_of(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
  """Says that reductions in this scope are of an optimizer's gradients.

  To be entered inside a merge function: that runs in the main thread, as the
  cross-device ops do, and not in the replicas' threads.
  """
  token = _reducing.set(optimizer)
  try:
    yield
  finally:
    _reducing.reset(token)


def reducing_gradients_of() -> keras.optimizers.Optimizer | None:
  """Returns whose gradients are being reduced; None for anything else."""
  return _reducing.get()


def sum_gradients(
  strategy: tf.distribute.Strategy,
  optimizer: keras.optimizers.Optimizer,
  grads_and_vars: Sequence[tuple[tf.distribute.DistributedValues, tf.Variable]],
):
  """Sums gradients over the replicas, tagged as such; for merge functions."""
  with gradients_of(optimizer):
    return strategy.extended.batch_reduce_to(
      tf.distribute.ReduceOp.SUM, grads_and_vars
    )


def tag_gradients() -> None:
  """Makes Keras say which reductions are of gradients, to ops that ask.

  Those are the ones with `check_optimizer(optimizer)`, which is called when an
  optimizer is to apply gradients, before it does anything with them. What the
  optimizer then applies is the reduced gradient as one machine would have it:
  clipped as a whole, and with one row for each row of an embedding.
  `keras.optimizers.Optimizer` is changed for the whole process; under a
  strategy with any other ops it does what it did.
  """
  check_versions()
  optimizer_type = keras.optimizers.Optimizer
  if hasattr(optimizer_type._all_reduce_sum_gradients, "tags"):
    return
  for checked_type in (optimizer_type, keras.optimizers.MultiOptimizer):
    checked_type.apply = _checking(checked_type.apply)
  # Keras 3.15: `apply` accumulates, clips and decays, and then calls it once.
  stock_reduce = optimizer_type._all_reduce_sum_gradients
  stock_clip = optimizer_type._clip_gradients

  def clip_gradients(self, grads):
    if not _asks_for_gradients(tf.distribute.get_strategy()):
      return stock_clip(self, grads)
    return grads  # and clip what becomes of them

  def reduce_gradients(self, grads_and_vars):
    if not _asks_for_gradients(tf.distribute.get_strategy()):
      return stock_reduce(self, grads_and_vars)
    grads_and_vars = list(grads_and_vars)
    present = [i for i, (g, _) in enumerate(grads_and_vars) if g is not None]
    reduced = tf.distribute.get_replica_context().merge_call(
      sum_gradients, args=(self, [grads_and_vars[i] for i in present])
    )
    reduced = stock_clip(self, [_with_rows_added(x) for x in reduced])
    for i, gradient in zip(present, reduced, strict=True):
      grads_and_vars[i] = (gradient, grads_and_vars[i][1])
    return grads_and_vars

  reduce_gradients.tags = True
  optimizer_type._clip_gradients = clip_gradients
  optimizer_type._all_reduce_sum_gradients = reduce_gradients


def _with_rows_added(gradient):
  """Returns a gradient in which no row comes twice, as each is squared."""
  if not isinstance(gradient, tf.IndexedSlices):
    return gradient
  indices, positions = tf.unique(gradient.indices)
  rows = tf.math.unsorted_segment_sum(
    gradient.values, positions, tf.size(indices)
  )
  return tf.IndexedSlices(rows, indices, gradient.dense_shape)


def _asks_for_gradients(strategy: tf.distribute.Strategy) -> bool:
  return hasattr(cross_device_ops(strategy), "check_optimizer")


def _checking(stock_apply):
  """Returns `Optimizer.apply`, preceded by the check of ops that ask."""

  @functools.wraps(stock_apply)
  def apply(self, *args, **kwargs):
    strategy = tf.distribute.get_strategy()
    if _asks_for_gradients(strategy):
      cross_device_ops(strategy).check_optimizer(self)
    return stock_apply(self, *args, **kwargs)

  return apply


def reduces_by_itself(optimizer: keras.optimizers.Optimizer) -> bool:
  """Whether an optimizer replaces Keras' reduction of its gradients."""
  stock = keras.optimizers.Optimizer._all_reduce_sum_gradients
  found = optimizer._all_reduce_sum_gradients
  return getattr(found, "__func__", None) is not stock


def _spans_processes(strategy: tf.distribute.Strategy) -> bool:
  # TensorFlow 2.21: false for MultiWorkerMirroredStrategy without TF_CONFIG.
  return (
    strategy_kind(strategy) is StrategyKind.MULTI_WORKER
    and strategy.extended._in_multi_worker_mode()
  )


def allow_multi_worker_fit() -> None:
  """Makes `fit` and `evaluate` work under MultiWorkerMirroredStrategy.

  Two defects of Keras 3.15 stop them there: the logs of a step, scalars, are
  reduced over an axis that they do not have; and the batch that a model is
  built from is reduced as a tuple, which this strategy does not take. Both are
  repaired for the whole process, and nothing else changes: under any other
  strategy Keras' own code runs. `RobustOptimizer` calls this under
  MultiWorkerMirroredStrategy; with another optimizer call it before `fit`.

  Raises:
    ValueError: with a TensorFlow or Keras that it was not checked with.
  """
  check_versions()
  model_type = keras.Model
  if getattr(model_type._maybe_symbolic_build, "multi_worker", None):
    return
  # Keras 3.15, keras/src/backend/tensorflow/trainer.py.
  stock_reduce = keras_trainer.reduce_per_replica
  stock_build = model_type._maybe_symbolic_build

  def reduce_per_replica(values, strategy, reduction):
    if reduction in ("auto", "mean") and _spans_processes(strategy):
      return keras.tree.map_structure(
        lambda value: strategy.reduce("MEAN", value, axis=None), values
      )
    return stock_reduce(values, strategy, reduction)

  def maybe_symbolic_build(self, iterator=None, data_batch=None):
    strategy = self.distribute_strategy
    if iterator is not None and _spans_processes(strategy):
      # Shapes are all that building needs: this process's first batch does.
      _, _, batches = next(iter(iterator))
      data_batch = keras.tree.map_structure(
        lambda value: strategy.experimental_local_results(value)[0],
        next(batches),
      )
      iterator = None
    stock_build(self, iterator=iterator, data_batch=data_batch)

  maybe_symbolic_build.multi_worker = True
  keras_trainer.reduce_per_replica = reduce_per_replica
  model_type._maybe_symbolic_build = maybe_symbolic_build


def bear_with_slow_links(heartbeat_timeout_s: float = 600.0) -> None:
  """Lets workers be silent for longer before they are taken for dead.

  A worker's sign of life waits behind its gradients, and TensorFlow gives up
  after ten seconds: too few for a large model on a link of 20 Mbit/s. To be
  called in every process before `MultiWorkerMirroredStrategy` is made; a
  process that ends is still noticed at once.

  Args:
    heartbeat_timeout_s: above 0.

  Raises:
    ValueError: the time is not above 0, or TF_CONFIG names no workers.
  """
  check_versions()
  if not heartbeat_timeout_s > 0:
    raise ValueError(
      f"heartbeat_timeout_s={heartbeat_timeout_s} must be above 0"
    )
  cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
  spec = cluster.cluster_spec()
  if not spec:
    raise ValueError(
      "TF_CONFIG names no workers: set it before bear_with_slow_links is called"
    )
  # TensorFlow 2.21: what CollectiveAllReduceExtended sets by itself, but for
  # the time, unless it is set already.
  context.context().configure_coordination_service(
    service_type="standalone",
    service_leader=multi_worker_util.coordination_leader(spec),
    heartbeat_timeout_in_ms=round(1000 * heartbeat_timeout_s),
    coordinated_jobs=[
      coordination_config_pb2.CoordinatedJob(
        name=job, num_tasks=spec.num_tasks(job)
      )
      for job in spec.jobs
    ],
  )


def let_optimizers_add_callbacks() -> None:
  """Makes `fit`, `evaluate` and `predict` ask optimizers for a callback.

  It is asked of optimizers with `training_callback(callbacks)`, and comes
  before all others. `keras.callbacks.CallbackList` is changed for the whole
  process; for models with other optimizers it does what it did.
  """
  check_versions()
  list_type = keras.callbacks.CallbackList
  if hasattr(list_type.set_model, "asks_optimizers"):
    return
  # Keras 3.15: called once the list is complete, before training begins.
  stock_set_model = list_type.set_model

  def set_model(self, model):
    optimizer = without_loss_scale(getattr(model, "optimizer", None))
    make = getattr(optimizer, "training_callback", None)
    if make is not None and not getattr(self, "optimizer_was_asked", False):
      self.optimizer_was_asked = True
      self.callbacks.insert(0, make(self.callbacks))
    stock_set_model(self, model)

  set_model.asks_optimizers = True
  list_type.set_model = set_model


def let_optimizers_judge_gradients() -> None:
  """Makes a loss scale ask the optimizer inside whether gradients will do.

  Keras leaves a step out if gradients of the first replica of a process are
  not finite. An optimizer that has `gradients_will_do(gradients)`, called on
  each replica and with one answer on all, is asked in place of that;
  `keras.optimizers.LossScaleOptimizer` is changed for the whole process, and
  with other optimizers inside does what it did.
  """
  check_versions()
  scaling_type = keras.optimizers.LossScaleOptimizer
  stock_check = scaling_type.check_finite
  if hasattr(stock_check, "asks_optimizer"):
    return

  # Keras 3.15: `_tf_apply` calls it on each replica, and merges no results.
  def check_finite(self, grads):
    judge = getattr(self.inner_optimizer, "gradients_will_do", None)
    return stock_check(self, grads) if judge is None else judge(grads)

  check_finite.asks_optimizer = True
  scaling_type.check_finite = check_finite


def stateless_apply(
  optimizer: keras.optimizers.Optimizer,
  state: Sequence[tf.Tensor],
  gradients: Sequence[tf.Tensor],
  values: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
  """Returns what one step of an optimizer makes of tensors; changes nothing.

  Keras has it for all its backends but TensorFlow, whose methods go through
  `tf.distribute` and take variables only: here those of the class beneath
  them are called.

  Args:
    optimizer: built for variables of these shapes.
    state: of the optimizer, in the order of its `variables`.
    gradients: of the loss, a tensor for each value.
    values: of the trainable variables that it was built for.

  Returns:
    The values and the state after the step.
  """
  check_versions()
  below = base_optimizer.BaseOptimizer
  kept = {"__init__", "add_variable_from_reference", "stateless_apply"}
  replaced = [
    name
    for name, method in vars(keras_tf_optimizer.TFOptimizer).items()
    if inspect.isfunction(method) and name in vars(below) and name not in kept
  ]
  # The optimizer's slots are found by keys that only variables have.
  keys = {id(v): optimizer._var_key(v) for v in optimizer._trainable_variables}
  methods = {
    name: functools.partial(getattr(below, name), optimizer)
    for name in replaced
  }
  methods["_var_key"] = lambda variable: keys[id(variable)]
  # Past Keras' own `__setattr__`, which would track them.
  vars(optimizer).update(methods)
  try:
    return below.stateless_apply(optimizer, state, gradients, values)
  finally:
    for name in methods:
      del vars(optimizer)[name]


def track_loss(model: keras.Model, loss: tf.Tensor, batch_size) -> None:
  """Counts the loss of a step in the logs, as Keras' `train_step` does."""
  # Keras 3.15: made by `compile`. The loss was divided by the replicas.
  num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
  model._loss_tracker.update_state(
    loss * num_replicas, sample_weight=batch_size
  )


def all_layers(model: keras.Model) -> list[keras.Layer]:
  """Returns the layers of a model at every depth."""
  return list(model._flatten_layers(include_self=False))


def let_workers_hang() -> None:
  """Keeps this process from waiting for all workers when it frees something.

  For the coordinator of a cluster, whose worker may hang. TensorFlow tells
  every worker that a function is gone, and waits; now functions stay until
  the process ends. And each op's thread waits for what an executor has still
  to do, which may be a tensor to free on another's worker; an executor that is
  not asynchronous has nothing else.
  """
  check_versions()
  if hasattr(executor.Executor.__del__, "waits_less"):
    return

  # TensorFlow 2.21: `AtomicFunction.__del__` calls it, in whatever thread.
  context.Context.remove_function = lambda self, name: None
  stock_delete = executor.Executor.__del__

  def delete(self):
    if self.is_async():
      stock_delete(self)
    else:
      pywrap_tfe.TFE_DeleteExecutor(self.handle())

  delete.waits_less = True
  executor.Executor.__del__ = delete


def schedule_call(
  coordinator: tf.distribute.coordinator.ClusterCoordinator,
  function: Callable[..., None],
  args: Sequence,
) -> None:
  """Has a worker's thread in this process call a Python function.

  `ClusterCoordinator.schedule` takes graphs only, and tells nobody when their
  results are there. What the function calls runs on the worker, as far as it
  is TensorFlow's; if it raises what `is_worker_failure` knows, the worker is
  recovered, and the function called again, on any worker.

  Args:
    coordinator: of the cluster.
    function: is to raise nothing else.
    args: of the function, some of them per worker.
  """
  check_versions()
  # TensorFlow 2.21: what `schedule` does after its check.
  coordinator._cluster.schedule(function, args=tuple(args), kwargs=None)


def current_worker() -> int:
  """Returns the index of the worker for which `schedule_call` calls this."""
  check_versions()
  return coordinator_context.get_current_dispatch_context().worker_index


def is_worker_failure(error: Exception) -> bool:
  """Returns whether an error is that a worker was lost."""
  check_versions()
  return cluster_coordinator._is_worker_failure(error)


def is_parameter_server_failure(error: Exception) -> bool:
  """Returns whether an error is that a parameter server was lost."""
  check_versions()
  return cluster_coordinator._is_ps_failure(error)
