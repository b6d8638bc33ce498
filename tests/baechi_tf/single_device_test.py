import numpy as np
import pytest

from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import single_device
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def test_place_takes_the_fastest_device():
  graph = make_graph(
    [Op("a", (3.0, 2.0)), Op("b", (3.0, 2.0))], device_types=("CPU", "GPU")
  )
  cluster = make_cluster(3, types=("CPU", "GPU", "GPU"))
  assert single_device.place(graph, cluster).device.tolist() == [1, 1]


def test_place_counts_the_dispatch_to_a_device_and_back():
  graph = make_graph([Op("a", (3.0, 2.0))], device_types=("CPU", "GPU"))
  for dispatch_us, expected in ((0.25, 1), (0.5, 0), (9.0, 0)):
    cluster = make_cluster(2, types=("CPU", "GPU"), dispatch_us=dispatch_us)
    assert single_device.place(graph, cluster).device.tolist() == [expected]


def test_place_takes_the_fastest_device_that_is_large_enough():
  graph = make_graph(
    [Op("a", (3.0, 2.0), persistent=5), Op("b", (3.0, 2.0), temporary=5)],
    device_types=("CPU", "GPU"),
  )
  cluster = make_cluster(
    4, types=("CPU", "GPU", "GPU", "CPU"), memory=(10, 9, 10, 99)
  )
  assert single_device.place(graph, cluster).device.tolist() == [2, 2]
  no_gpu = make_cluster(2, types=("GPU", "CPU"), memory=(9, 10))
  assert single_device.place(graph, no_gpu).device.tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_place_needs_the_simulated_peak_and_no_byte_more(seed):
  graph = contracts.random_graph(np.random.default_rng(seed), 12)
  ample = simulate(graph, make_cluster(1), np.zeros(12))
  peak = int(ample.peak_memory_bytes[0])
  cluster = make_cluster(2, memory=(peak - 1, peak))
  assert single_device.place(graph, cluster).device.tolist() == [1] * 12
  small = make_cluster(2, memory=peak - 1)
  with pytest.raises(
    InfeasiblePlacementError,
    match=f"d0 would need {peak:,} bytes at op 'op.*' .* and has {peak - 1:,};",
  ):
    single_device.place(graph, small)


def test_place_of_nothing_is_nothing():
  placement = single_device.place(make_graph([]), make_cluster(2))
  assert placement.device.tolist() == []
