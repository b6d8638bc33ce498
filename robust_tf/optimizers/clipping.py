"""Clipping of each worker's own gradient, before anything is aggregated.

The three ways of Keras, for a worker alone: by the norm of each variable's
gradient, by the norm of the whole gradient, by value. The inner optimizer's
own clipping acts on the aggregate instead. A NaN or an infinity stays in its
row, for the rule to see, where the norm would have to be made of it.
"""

from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.distribute.packing import pack


def clipping(
  clipnorm: float | None,
  clipvalue: float | None,
  global_clipnorm: float | None,
) -> Callable[[list[tf.Tensor], int | None], list[tf.Tensor]] | None:
  """Returns a function that clips gradients; None where there is no limit.

  At most one of the limits is not None.

  The function takes a replica's gradients, one tensor a variable, and the
  number of workers whose gradients they hold along a leading axis, None where
  there is no such axis.

  Raises:
    ValueError: a limit that is not above 0.
  """
  limits = {
    "clipnorm": clipnorm,
    "clipvalue": clipvalue,
    "global_clipnorm": global_clipnorm,
  }
  for name, limit in limits.items():
    if limit is not None and not limit > 0:
      raise ValueError(f"{name}={limit} must be above 0; None clips nothing")
  if clipnorm is not None:
    return lambda gradients, rows: [
      _scaled(g, _norms([g], rows), clipnorm, rows) for g in gradients
    ]
  if global_clipnorm is not None:
    return lambda gradients, rows: _scaled_together(
      gradients, global_clipnorm, rows
    )
  if clipvalue is not None:
    return lambda gradients, rows: [
      tf.clip_by_value(g, -clipvalue, clipvalue) for g in gradients
    ]
  return None


def _scaled_together(gradients, limit, rows) -> list[tf.Tensor]:
  norms = _norms(gradients, rows)
  return [_scaled(g, norms, limit, rows) for g in gradients]


def _norms(gradients: Sequence[tf.Tensor], rows: int | None) -> tf.Tensor:
  """Returns the norm of each worker's gradients, `[rows]`, in float32 or 64.

  Scaled by the largest element first: squares of 1e20 are infinite.
  """
  flat = pack(gradients, rows or 1)
  flat = tf.cast(flat, tf.float32) if flat.dtype.size < 4 else flat
  largest = tf.reduce_max(tf.abs(flat), axis=1, keepdims=True)
  return largest[:, 0] * tf.norm(tf.math.divide_no_nan(flat, largest), axis=1)


def _scaled(gradient, norms, limit, rows) -> tf.Tensor:
  """Returns a gradient shortened by what its norm exceeds the limit."""
  scale = limit / tf.maximum(norms, limit)
  if rows is None:
    shape = []
  else:
    shape = [rows] + [1] * (gradient.shape.rank - 1)
  return gradient * tf.cast(tf.reshape(scale, shape), gradient.dtype)
