"""Which rows of the updates are honest, and how the others are replaced.

Every attack is `attack(updates, byzantine, seed, ...)`. What the Byzantine
workers send is made from the honest rows alone, so nothing depends on what
their own rows held, except where an attack is about a worker's own gradient.
"""

import operator
from collections.abc import Sequence

import tensorflow as tf


def check_byzantine(byzantine: Sequence[int], num_workers: int) -> None:
  """Checks the indices of Byzantine workers.

  Raises:
    TypeError: an index is no integer.
    ValueError: there is none, one is out of range, or one is there twice.
  """
  workers = [operator.index(worker) for worker in byzantine]
  if not workers:
    raise ValueError(
      "byzantine=() names no worker: name one, or leave the attack out"
    )
  for worker in workers:
    if not 0 <= worker < num_workers:
      raise ValueError(
        f"Byzantine worker {worker} is not one of the {num_workers} workers"
        f" 0 to {num_workers - 1}"
      )
    if workers.count(worker) > 1:
      raise ValueError(f"Byzantine worker {worker} is named twice")


def as_updates(
  updates: tf.Tensor, byzantine: Sequence[int], needs_honest: bool = True
) -> tf.Tensor:
  """Returns the updates as a tensor, after checks of both arguments.

  Args:
    updates: floating, `[n, d]`.
    byzantine: the indices of the Byzantine workers.
    needs_honest: one worker must be left that is not Byzantine.

  Raises:
    TypeError: the updates are not floating, or an index is no integer.
    ValueError: the updates are no matrix with a known number of rows; see
      `check_byzantine`; or no honest worker is left.
  """
  updates = tf.convert_to_tensor(updates)
  if not updates.dtype.is_floating:
    raise TypeError(f"updates must be floating, got {updates.dtype.name}")
  if updates.shape.rank != 2 or updates.shape[0] is None:
    raise ValueError(
      "updates must have the shape [n, d], n known when the function is"
      f" traced, got {updates.shape}"
    )
  num_workers = updates.shape[0]
  check_byzantine(byzantine, num_workers)
  if needs_honest and len(byzantine) == num_workers:
    raise ValueError(
      f"all {num_workers} workers are Byzantine: this attack needs an honest"
      " one"
    )
  return updates


def honest_rows(updates: tf.Tensor, byzantine: Sequence[int]) -> tf.Tensor:
  """Returns the rows of the workers that are not Byzantine.

  Args:
    updates: floating, `[n, d]`.
    byzantine: the q indices of the Byzantine workers.

  Returns:
    `[n - q, d]`, in float32 where the updates have fewer bits.
  """
  honest = [i for i in range(updates.shape[0]) if i not in byzantine]
  rows = tf.gather(updates, honest)
  return tf.cast(rows, tf.float32) if rows.dtype.size < 4 else rows


def replace_rows(
  updates: tf.Tensor, byzantine: Sequence[int], rows: tf.Tensor
) -> tf.Tensor:
  """Returns the updates with other rows for the Byzantine workers.

  Args:
    updates: floating, `[n, d]`.
    byzantine: the q indices of the Byzantine workers.
    rows: `[q, d]`, one for each in their order, or `[d]` for all of them.

  Returns:
    `[n, d]`, of the updates' dtype.
  """
  shape = [len(byzantine), tf.shape(updates)[1]]
  rows = tf.broadcast_to(tf.cast(rows, updates.dtype), shape)
  indices = [[worker] for worker in byzantine]
  return tf.tensor_scatter_nd_update(updates, indices, rows)


def as_scalar(value: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  """Returns a strength in the dtype; `tf.cast` would round it to float32."""
  if tf.is_tensor(value):
    return tf.cast(value, dtype)
  return tf.constant(value, dtype)


def check_positive(name: str, value: float | tf.Tensor) -> None:
  """Checks a strength, if it is a number: a tensor's value is not known yet.

  Raises:
    ValueError: it is not above 0.
  """
  if not tf.is_tensor(value) and not value > 0:
    raise ValueError(f"{name}={value} must be above 0")
