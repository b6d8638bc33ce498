"""The coordinate-wise median (MarMed).

Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv
1802.10116), Definition 4.
"""

import tensorflow as tf

from robust_tf.aggregators.sorting_network import order_statistics
from robust_tf.aggregators.updates import map_coordinates
from robust_tf.aggregators.updates import Updates


def median(updates: Updates):
  """Returns the median of each coordinate, the mean of the middle two if even.

  Args:
    updates: n >= 1 updates, in any form of `updates`.

  Returns:
    The medians, in the form and the dtypes of the updates.

  Raises:
    TypeError, ValueError: updates in none of the forms, or none at all.
  """
  return map_coordinates(median_of_rows, updates)


def median_of_rows(rows: list[tf.Tensor]) -> tf.Tensor:
  """Returns the coordinate-wise median of rows of one shape."""
  n = len(rows)
  if n % 2:
    return order_statistics(rows, [n // 2])[0]
  low, high = order_statistics(rows, [n // 2 - 1, n // 2])
  return low / 2 + high / 2
