"""Makes cost graphs whose least makespan is known by construction.

`p` devices are filled up to a length without idle time and each is cut into
ops. Edges join only ops that this schedule runs after one another, with a delay
across devices that fits between them. So the schedule is valid, no other is
shorter, and its length is the optimum at any size.
"""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph

_MEAN_US = 100  # of an op
_WINDOW = 10  # ops a device, from which an op's producers come


def known_optimum(
  num_ops: int,
  num_devices: int,
  *,
  density: float = 1.8,
  delay: float = 0.5,
  seed: int = 0,
) -> tuple[OpGraph, Cluster, float, np.ndarray]:
  """Returns a graph, its cluster, the least makespan and a device of each op.

  The placement has the least makespan with ops in the order of their starts.

  Args:
    num_ops: about how many ops; a multiple of `num_devices` is made.
    num_devices: how many devices, joined by parallel channels of one byte a
      microsecond.
    density: edges for each op, before those that are repeated count once.
    delay: mean transfer time, in mean times of an op, where there is room.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  per_device = max(1, num_ops // num_devices)
  length = per_device * _MEAN_US
  cuts = [
    np.sort(rng.choice(np.arange(1, length), per_device - 1, replace=False))
    for _ in range(num_devices)
  ]
  start = np.concatenate([np.concatenate([[0], x]) for x in cuts])
  end = np.concatenate([np.concatenate([x, [length]]) for x in cuts])
  device = np.repeat(np.arange(num_devices), per_device)
  num_ops = len(start)
  target = rng.integers(0, num_ops, int(density * num_ops))
  by_end = np.argsort(end, kind="stable")
  before = np.searchsorted(end[by_end], start[target], side="right")
  target, before = target[before > 0], before[before > 0]
  back = rng.random(len(target)) * np.minimum(before, _WINDOW * num_devices)
  source = by_end[before - 1 - back.astype(np.int64)]
  size = rng.exponential(delay * _MEAN_US, len(target))
  across = device[source] != device[target]
  size = np.where(across, np.minimum(size, start[target] - end[source]), size)
  _, first = np.unique(source * num_ops + target, return_index=True)
  name = rng.permutation(num_ops)  # says nothing of the schedule
  first = first[np.argsort(name[source[first]], kind="stable")]
  source, target = name[source[first]], name[target[first]]
  inverse = np.argsort(name)
  graph = OpGraph.build(
    [f"op{i:07}" for i in range(num_ops)],
    (end - start)[inverse].astype(float),
    output_op=source,
    output_bytes=size[first].astype(np.int64),
    edge_source=source,
    edge_output=np.arange(len(source)) - np.searchsorted(source, source),
    edge_target=target,
  )
  cluster = Cluster(
    tuple(Device(f"/GPU:{k}", "GPU", 1 << 50) for k in range(num_devices)),
    Link(0.0, 1.0),
    channel="parallel",
  )
  return graph, cluster, float(length), device[inverse]
