"""The mean of all updates: the rule that tolerates no Byzantine worker."""

import functools

import tensorflow as tf

from robust_tf.aggregators.updates import Block
from robust_tf.aggregators.updates import compiled
from robust_tf.aggregators.updates import map_blocks
from robust_tf.aggregators.updates import num_workers
from robust_tf.aggregators.updates import rows_of
from robust_tf.aggregators.updates import Updates


def mean(updates: Updates):
  """Returns the mean of the updates.

  One Byzantine worker can make it anything: it is what robust rules are
  compared with.

  Args:
    updates: n >= 1 updates, in any form of `updates`.

  Returns:
    The mean, in the form and the dtypes of the updates.

  Raises:
    TypeError, ValueError: updates in none of the forms, or none at all.
  """
  kernel = compiled(_mean_of_block, num_workers(updates))
  return map_blocks(kernel, updates)


def _mean_of_block(block: Block) -> tf.Tensor:
  """Returns the mean of the rows, finite where they are finite."""
  rows = rows_of(block)
  total = functools.reduce(tf.add, rows)
  # Each quotient is rounded, but their sum cannot overflow.
  quotients = functools.reduce(tf.add, [row / len(rows) for row in rows])
  return tf.where(tf.math.is_finite(total), total / len(rows), quotients)
