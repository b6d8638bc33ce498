"""The coordinate-wise median (MarMed).

Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv
1802.10116), Definition 4.
"""

import tensorflow as tf

from robust_tf.aggregators.coordinate_wise import map_coordinates
from robust_tf.aggregators.rows import Rows
from robust_tf.aggregators.trimmed_mean import trimmed_mean_of_rows
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


def median_of_rows(rows: Rows) -> tf.Tensor:
  """Returns the median [d] of each coordinate: the most that can be trimmed."""
  return trimmed_mean_of_rows(rows, (rows.num_rows - 1) // 2)
