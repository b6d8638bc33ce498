import itertools

import numpy as np
import pytest

from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import contiguous
from baechi_tf.placers.walk import depth_first_order
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def groups_in_order(graph):
  """The groups' ops, groups by their first op in topological order."""
  members = {}
  for op in depth_first_order(graph).tolist():
    members.setdefault(int(graph.group[op]), []).append(op)
  return list(members.values())


def stretch_memory(graph, sequence, stretch):
  """Peak of a stretch's ops when the whole step runs in `sequence`."""
  position = {op: i for i, op in enumerate(sequence)}
  last = [position[op] for op in graph.tensor_op.tolist()]
  for tensor, op in zip(graph.edge_tensor, graph.edge_op, strict=True):
    last[tensor] = max(last[tensor], position[int(op)])
  inside = set(stretch)
  peak = max(
    int(graph.temporary_bytes[op])
    + sum(
      int(graph.tensor_held_bytes[tensor])
      for tensor, maker in enumerate(graph.tensor_op.tolist())
      if maker in inside and position[maker] <= position[op] <= last[tensor]
    )
    for op in stretch
  )
  return int(graph.persistent_bytes[stretch].sum()) + peak


def best_split(graph, num_devices, memory):
  """The least longest stretch over all splits that fit, or None."""
  groups = groups_in_order(graph)
  sequence = sum(groups, [])
  times = graph.compute_time_us[:, 0]
  best = None
  for cuts in itertools.combinations_with_replacement(
    range(len(groups) + 1), num_devices - 1
  ):
    ends = [0, *cuts, len(groups)]
    stretches = [
      sum(groups[a:b], []) for a, b in itertools.pairwise(ends) if a < b
    ]
    if all(stretch_memory(graph, sequence, x) <= memory for x in stretches):
      longest = max(times[x].sum() for x in stretches)
      best = longest if best is None else min(best, longest)
  return best


@pytest.mark.parametrize("seed", range(60))
def test_place_is_the_best_split_on_equal_devices(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, int(rng.integers(1, 12)), group_share=0.3)
  num_devices = int(rng.integers(1, 4))
  everything = int(
    (
      graph.persistent_bytes + graph.temporary_bytes + graph.output_held_bytes
    ).sum()
  )
  memory = int(rng.integers(everything // 3, everything + 1)) + 1
  best = best_split(graph, num_devices, memory)
  cluster = make_cluster(num_devices, memory=memory)
  if best is None:
    with pytest.raises(InfeasiblePlacementError, match="fits on no device"):
      contiguous.place(graph, cluster)
    return
  device = contiguous.place(graph, cluster).device
  loads = np.bincount(device, weights=graph.compute_time_us[:, 0])
  assert loads.max() == best
  groups = groups_in_order(graph)
  along = [int(device[x[0]]) for x in groups]
  assert along == sorted(along)
  assert all(len(set(device[x].tolist())) == 1 for x in groups)


def test_place_balances_a_chain_by_time():
  ops = [
    Op(name, time, (1,))
    for name, time in zip("abcdef", [1, 1, 1, 3, 3, 3], strict=True)
  ]
  edges = [(a, 0, b) for a, b in itertools.pairwise("abcdef")]
  placement = contiguous.place(make_graph(ops, edges), make_cluster(2))
  # 6 and 6.
  assert placement.device.tolist() == [0, 0, 0, 0, 1, 1]


def test_place_uses_each_devices_own_times():
  ops = [Op(name, (3.0, 1.0), (1,)) for name in "abcd"]
  edges = [(a, 0, b) for a, b in itertools.pairwise("abcd")]
  graph = make_graph(ops, edges, device_types=("CPU", "GPU"))
  cluster = make_cluster(2, types=("CPU", "GPU"))
  # 3 on the CPU and 3 on the GPU.
  assert contiguous.place(graph, cluster).device.tolist() == [0, 1, 1, 1]


def test_place_left_over_group_error_names_its_first_op_and_need():
  graph = make_graph(
    [
      Op("a", 1.0, (2,), persistent=4, temporary=1, group="g"),
      Op("b", 1.0, (3,), persistent=5, group="g"),
    ]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"op 'a' \(with 1 ops .*: d0 would need 12 bytes at op 'a' \(9"
    r" persistent \+ 2 outputs \+ 1 temporary\) and has 11; d1 would need 12",
  ):
    contiguous.place(graph, make_cluster(2, memory=11))


def test_place_of_nothing_is_nothing():
  placement = contiguous.place(make_graph([]), make_cluster(2))
  assert placement.device.tolist() == []
