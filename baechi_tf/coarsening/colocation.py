"""Colocation groups: which ops must share a device, as dense ids."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from baechi_tf.op_graph import dense_groups


def merge_groups(num_ops: int, pairs: np.ndarray) -> np.ndarray:
  """Returns int64 `[num_ops]` dense group ids that honour all pairs.

  Args:
    num_ops: the number of ops.
    pairs: int `[p, 2]` op indices that must end up in one group; sharing is
      transitive.
  """
  pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
  joined = coo_matrix(
    (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])),
    shape=(num_ops, num_ops),
  )
  _, labels = connected_components(joined, directed=False)
  return dense_groups(labels, num_ops)
