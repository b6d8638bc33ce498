"""Reductions of gradients that are known as such, or left out.

Cross-device ops with `check_optimizer(optimizer)` are told which reductions are
of gradients; and a wrapper that aggregates by itself takes the reduction from
the optimizer inside.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import tensorflow as tf

from robust_tf.distribute.hooks import private
from robust_tf.distribute.hooks.strategies import cross_device_ops

_REDUCE = "keras.optimizers.Optimizer._all_reduce_sum_gradients"


# In an optimizer's `apply`, a list of the reductions that it asked for.
_reductions: contextvars.ContextVar[list | None] = contextvars.ContextVar(
  "reductions", default=None
)


@contextlib.contextmanager
def _one_reduction_at_least() -> Iterator[None]:
  """Checks that an `apply` in this scope leaves the reduction to the hook.

  Raises:
    ValueError: it does not, so that gradients may be reduced elsewhere.
  """
  reductions = []
  token = _reductions.set(reductions)
  try:
    yield
  finally:
    _reductions.reset(token)
  if not reductions:
    raise private.broken(__name__, _REDUCE, "`apply` does not call")


def _count_reduction() -> None:
  reductions = _reductions.get()
  if reductions is not None:
    reductions.append(True)


def _unreduced(grads_and_vars):
  """Returns the pairs as they are."""
  _count_reduction()
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
  private.find(__name__, _REDUCE, ("self", "grads_and_vars"))
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


def apply_as_given(
  optimizer: keras.optimizers.Optimizer, grads: Sequence, variables: Sequence
) -> None:
  """Applies gradients with an optimizer that is `without_gradient_reduction`.

  Raises:
    ValueError: this Keras reduces them all the same.
  """
  with _one_reduction_at_least():
    optimizer.apply(grads, variables)


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


def change() -> None:
  """Makes Keras say which reductions are of gradients, to ops that ask.

  Those are the ones with `check_optimizer(optimizer)`, which is called when an
  optimizer is to apply gradients, before it does anything with them. What the
  optimizer then applies is the reduced gradient as one machine would have it:
  clipped as a whole, and with one row for each row of an embedding.
  `keras.optimizers.Optimizer` is changed; under a strategy with any other ops
  it does what it did.
  """
  optimizer_type = keras.optimizers.Optimizer
  # Keras 3.15: `apply` accumulates, clips and decays, and then calls it once.
  stock_reduce = private.find(__name__, _REDUCE, ("self", "grads_and_vars"))
  stock_clip = private.find(
    __name__,
    "keras.optimizers.Optimizer._clip_gradients",
    ("self", "grads"),
  )

  def clip_gradients(self, grads):
    if not _asks_for_gradients(tf.distribute.get_strategy()):
      return stock_clip(self, grads)
    return grads  # and clip what becomes of them

  def reduce_gradients(self, grads_and_vars):
    if not _asks_for_gradients(tf.distribute.get_strategy()):
      return stock_reduce(self, grads_and_vars)
    _count_reduction()
    grads_and_vars = list(grads_and_vars)
    present = [i for i, (g, _) in enumerate(grads_and_vars) if g is not None]
    reduced = tf.distribute.get_replica_context().merge_call(
      sum_gradients, args=(self, [grads_and_vars[i] for i in present])
    )
    reduced = stock_clip(self, [_with_rows_added(x) for x in reduced])
    for i, gradient in zip(present, reduced, strict=True):
      grads_and_vars[i] = (gradient, grads_and_vars[i][1])
    return grads_and_vars

  for checked_type in (optimizer_type, keras.optimizers.MultiOptimizer):
    path = f"keras.optimizers.{checked_type.__name__}.apply"
    stock_apply = private.find(
      __name__, path, ("self", "grads", "trainable_variables")
    )
    checked_type.apply = _checking(stock_apply)
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
  def apply(self, grads, trainable_variables=None):
    strategy = tf.distribute.get_strategy()
    if not _asks_for_gradients(strategy):
      return stock_apply(self, grads, trainable_variables)
    cross_device_ops(strategy).check_optimizer(self)
    grads = list(grads)
    if not grads:
      return stock_apply(self, grads, trainable_variables)
    with _one_reduction_at_least():
      return stock_apply(self, grads, trainable_variables)

  return apply


def reduces_by_itself(optimizer: keras.optimizers.Optimizer) -> bool:
  """Whether an optimizer replaces Keras' reduction of its gradients."""
  stock = keras.optimizers.Optimizer._all_reduce_sum_gradients
  found = optimizer._all_reduce_sum_gradients
  return getattr(found, "__func__", None) is not stock
