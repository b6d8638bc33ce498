"""Orders in which processors may start what is ready.

The topological order, the longest path of times to the end (upward rank; HEFT,
Topcuoglu et al., IEEE TPDS 2002), and the same path with the transfers that a
placement really makes. Each is best on some graphs.
"""

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.search.instance import Instance


def orders_of(x: Instance, device: np.ndarray) -> list[np.ndarray]:
  """Returns orders, int64 `[n]` each, all of them topological.

  Args:
    x: the instance.
    device: int `[n]`, a placement.
  """
  device = np.array(device, np.int32)
  topological = np.arange(len(device))
  return [
    topological,
    *(
      np.lexsort((topological, -_upward_rank(x, device, transfers)))
      for transfers in (False, True)
    ),
  ]


@compiled
def _upward_rank(x, device, transfers):
  """The longest path of times from each op's start to the step's end."""
  rank = np.zeros(len(device))
  links = x.step.links
  for op in range(len(device) - 1, -1, -1):
    k = device[op]
    after = 0.0
    for tensor in range(
      x.step.tensor_offsets[op], x.step.tensor_offsets[op + 1]
    ):
      first, end = (
        x.step.consumer_offsets[tensor],
        x.step.consumer_offsets[tensor + 1],
      )
      for i in range(first, end):
        user = x.step.consumers[i]
        path = rank[user]
        there = device[user]
        if transfers and there != k:
          path += links.latency_us[k, there]
          path += x.step.tensor_bytes[tensor] * links.us_per_byte[k, there]
        after = max(after, path)
    rank[op] = x.step.durations[op, k] + after
  return rank
