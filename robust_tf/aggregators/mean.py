"""The mean of all updates: the rule that tolerates no Byzantine worker."""

import functools

import tensorflow as tf

from robust_tf.aggregators.updates import map_coordinates
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
  return map_coordinates(mean_of_rows, updates)


def mean_of_rows(rows: list[tf.Tensor]) -> tf.Tensor:
  """Returns the mean of rows, finite where the rows are finite.

  The plain sum divided by n; where that overflows, the sum of the quotients.
  """
  total = functools.reduce(tf.add, rows)
  quotients = functools.reduce(tf.add, [row / len(rows) for row in rows])
  return tf.where(tf.math.is_finite(total), total / len(rows), quotients)
