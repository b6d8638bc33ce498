"""What is held at the peak adds up to the peak, and is worked by hand."""

import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph
from baechi_tf.peak_memory import held_at_peak
from baechi_tf.simulator import simulate
from tests import contracts


def test_join_on_the_other_device_holds_the_copies_its_output_and_workspace():
  """a's and b's outputs are sent to c, which needs 7 bytes beside its 5."""
  graph = OpGraph.build(
    ["a", "b", "c"],
    np.array([1.0, 1.0, 1.0]),
    persistent_bytes=[100, 0, 3],
    temporary_bytes=[0, 0, 7],
    output_op=[0, 1, 2],
    output_bytes=[10, 20, 5],
    edge_source=[0, 1],
    edge_output=[0, 0],
    edge_target=[2, 2],
  )
  cluster = Cluster(
    tuple(Device(f"/device:CPU:{k}", "CPU", 10**9) for k in range(2)),
    Link(1.0, 10.0),
  )
  simulation = simulate(graph, cluster, np.array([0, 0, 1]))
  held = held_at_peak(graph, simulation, 1)
  assert held.time_us == simulation.start_time_us[2]
  assert {kind: x.tolist() for kind, x in held.by_kind.items()} == {
    "persistent": [0, 0, 3],
    "outputs": [0, 0, 5],
    "temporary": [0, 0, 7],
    "received inputs": [10, 20, 0],
  }


@pytest.mark.parametrize("seed", range(60))
def test_what_is_held_adds_up_to_the_peak(seed):
  graph, cluster, device = contracts.placed_at_random(
    np.random.default_rng(seed), seed, "half_duplex", with_work=seed % 3 == 0
  )
  simulation = simulate(graph, cluster, device)
  for k in range(cluster.num_devices):
    held = held_at_peak(graph, simulation, k)
    total = sum(int(x.sum()) for x in held.by_kind.values())
    assert total == simulation.peak_memory_bytes[k]
