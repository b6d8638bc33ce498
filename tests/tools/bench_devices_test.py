"""The benchmark of devices: its graphs, and its clock."""

import numpy as np

from tools import bench_devices


def test_graphs_are_what_they_are_called():
  star = bench_devices.star(500)
  assert (star.edge_source == 0).all() and len(star.edge_op) == 499
  chain = bench_devices.chain(500)
  assert chain.depth.tolist() == list(range(500))
  layered = bench_devices.layered(500)
  layer = np.arange(500) // 100
  assert layered.depth.tolist() == layer.tolist()
  num_inputs = np.bincount(layered.edge_op, minlength=500)
  assert set(num_inputs[100:].tolist()) == {1, 2, 3}


def test_cpu_seconds_gives_up_at_the_limit():
  def spin(forever):
    while forever:
      pass

  assert bench_devices.cpu_seconds(spin, True, limit_s=1) is None
  assert 0 <= bench_devices.cpu_seconds(spin, False, limit_s=1) < 1


def test_cpu_seconds_of_a_placer():
  place = bench_devices.PLACERS["m_etf"]
  cluster = bench_devices._cluster(3)
  graph = bench_devices.star(50)
  place(graph, cluster)
  assert bench_devices.cpu_seconds(place, graph, cluster, limit_s=60) > 0
