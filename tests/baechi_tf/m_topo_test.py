import numpy as np
import pytest

from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import m_topo
from baechi_tf.placers.walk import depth_first_order
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def reference(graph, memory):
  """The rule, literally: device of each op, or None when ops are left over."""
  size = (
    graph.persistent_bytes + graph.temporary_bytes + graph.output_held_bytes
  ).tolist()
  group_size = {}
  for op, group in enumerate(graph.group.tolist()):
    group_size[group] = group_size.get(group, 0) + size[op]
  cap = sum(size) / len(memory) + max(group_size.values())
  left = [min(limit, cap) for limit in memory]
  device_of_group, k = {}, 0
  for op in depth_first_order(graph).tolist():
    group = int(graph.group[op])
    if group in device_of_group:
      continue
    while k < len(memory) and group_size[group] > left[k]:
      k += 1
    if k == len(memory):
      return None
    left[k] -= group_size[group]
    device_of_group[group] = k
  return [device_of_group[group] for group in graph.group.tolist()]


@pytest.mark.parametrize("seed", range(60))
def test_place_follows_the_rule(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, int(rng.integers(1, 20)), group_share=0.4)
  total = graph.persistent_bytes.sum() + graph.temporary_bytes.sum()
  total += graph.output_held_bytes.sum()
  num_devices = int(rng.integers(1, 5))
  memory = rng.integers(1, total + 2, num_devices).tolist()
  if seed % 2:
    memory = [contracts.AMPLE] * num_devices
  cluster = make_cluster(num_devices, memory=memory)
  expected = reference(graph, memory)
  if expected is None:
    with pytest.raises(InfeasiblePlacementError, match="fits on no device"):
      m_topo.place(graph, cluster)
  else:
    assert m_topo.place(graph, cluster).device.tolist() == expected


def test_place_fills_one_device_after_the_other():
  # 6 ops of 4 bytes on 3 devices: the cap is 24 / 3 + 4 = 12, three ops each.
  graph = make_graph([Op(f"op{i}", 1.0, persistent=4) for i in range(6)])
  placement = m_topo.place(graph, make_cluster(3))
  assert placement.device.tolist() == [0, 0, 0, 1, 1, 1]


def test_place_never_goes_above_the_real_limit():
  graph = make_graph([Op(f"op{i}", 1.0, persistent=4) for i in range(6)])
  placement = m_topo.place(graph, make_cluster(3, memory=[4, 11, 100]))
  assert placement.device.tolist() == [0, 1, 1, 2, 2, 2]


def test_place_counts_all_of_an_ops_memory():
  graph = make_graph(
    [
      Op("a", 1.0, (2, 3), persistent=1, temporary=4),  # 10
      Op("b", 1.0, (5,), persistent=5, persistent_outputs=(0,)),  # 5
    ]
  )
  assert m_topo.place(
    graph, make_cluster(2, memory=[10, 5])
  ).device.tolist() == [0, 1]


def test_place_left_over_group_error_names_its_first_op():
  graph = make_graph(
    [
      Op("a", 1.0, persistent=4),
      Op("b", 1.0, persistent=4, group="g"),
      Op("c", 1.0, persistent=5, group="g"),
    ]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"op 'b' \(with 1 ops .*: d1 would need 9 bytes \(9 persistent\) and"
    r" has 8 left; d0 would need 9 bytes .* 4 left\.",
  ):
    m_topo.place(graph, make_cluster(2, memory=8))


def test_place_of_nothing_is_nothing():
  assert m_topo.place(make_graph([]), make_cluster(2)).device.tolist() == []
