"""The critical path, worked by hand, and what is true of it on any step."""

import numpy as np
import pytest

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.critical_path import CHANNEL
from baechi_tf.critical_path import critical_path
from baechi_tf.critical_path import DEVICE
from baechi_tf.critical_path import INPUT
from baechi_tf.critical_path import OP
from baechi_tf.critical_path import START
from baechi_tf.critical_path import TRANSFER
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import simulate
from tools.known_optimum import known_optimum


def _two_devices(channel="full_duplex") -> Cluster:
  return Cluster(
    tuple(Device(f"/device:CPU:{k}", "CPU", 10**9) for k in range(2)),
    Link(latency_us=1.0, bytes_per_us=10.0),
    channel=channel,
  )


def _said(graph, path):
  return [(x.kind, x.index, x.waited_for) for x in path]


def test_sum_waits_for_the_slower_branch_and_its_transfer():
  """a 0-2, sent 2-5, c 5-15 there; b 2-12 here; d waits for c's 16-byte way."""
  graph = OpGraph.build(
    ["a", "b", "c", "d"],
    np.array([2.0, 10.0, 10.0, 3.0]),
    output_op=[0, 1, 2],
    output_bytes=[20, 10, 10],
    edge_source=[0, 0, 1, 2],
    edge_output=[0, 0, 0, 0],
    edge_target=[1, 2, 3, 3],
  )
  simulation = simulate(graph, _two_devices(), np.array([0, 0, 1, 0]))
  assert simulation.makespan_us == 20.0  # 15 + 2 on the way + 3
  assert _said(graph, critical_path(graph, _two_devices(), simulation)) == [
    (OP, 0, START),
    (TRANSFER, 0, INPUT),
    (OP, 2, INPUT),
    (TRANSFER, 1, INPUT),
    (OP, 3, INPUT),
  ]


def test_independent_ops_wait_for_their_device():
  graph = OpGraph.build(["a", "b"], np.array([2.0, 3.0]))
  simulation = simulate(graph, _two_devices(), np.array([1, 1]))
  assert _said(graph, critical_path(graph, _two_devices(), simulation)) == [
    (OP, 0, START),
    (OP, 1, DEVICE),
  ]


def test_second_tensor_waits_for_the_channel():
  """Both ready at 1: the first is sent 1-12, the second 12-23, then its op."""
  graph = OpGraph.build(
    ["a", "b", "c"],
    np.array([1.0, 1.0, 1.0]),
    output_op=[0, 0],
    output_bytes=[100, 100],
    edge_source=[0, 0],
    edge_output=[0, 1],
    edge_target=[1, 2],
  )
  simulation = simulate(graph, _two_devices(), np.array([0, 1, 1]))
  path = critical_path(graph, _two_devices(), simulation)
  assert [(x.kind, x.waited_for) for x in path] == [
    (OP, START),
    (TRANSFER, INPUT),
    (TRANSFER, CHANNEL),
    (OP, INPUT),
  ]


def test_empty_step_has_no_path():
  graph = OpGraph.build([], np.zeros(0))
  simulation = simulate(graph, _two_devices(), np.zeros(0, np.int64))
  assert critical_path(graph, _two_devices(), simulation) == []


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("seed", range(8))
def test_path_leads_without_gaps_from_the_start_to_the_end(channel, seed):
  """Without dispatch and work, all time of a step is on its critical path."""
  graph, cluster, _, _ = known_optimum(60, 3, delay=2.0, seed=seed)
  cluster = Cluster(cluster.devices, Link(2.0, 1.0), channel=channel)
  device = np.random.default_rng(seed).integers(0, 3, graph.num_ops)
  simulation = simulate(graph, cluster, device)
  at = 0.0
  for x in critical_path(graph, cluster, simulation):
    if x.kind == OP:
      begin = simulation.start_time_us[x.index]
      end = simulation.finish_time_us[x.index]
    else:
      begin = simulation.transfer_start_us[x.index]
      end = simulation.transfer_finish_us[x.index]
    assert begin == pytest.approx(at)
    at = end
  assert at == pytest.approx(simulation.makespan_us)
