import numpy as np
import pytest

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Link
from baechi_tf.op_graph import CONTROL
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import memory_at
from tests.contracts import Op


def a_case(seed, channel):
  """A random graph on a random cluster, placed at random."""
  rng = np.random.default_rng(seed)
  return contracts.placed_at_random(rng, seed, channel)


@pytest.mark.parametrize("channel", CHANNELS)
def test_simulate_schedule_breaks_no_constraint(channel):
  for seed in range(60):
    graph, cluster, device = a_case(seed, channel)
    simulation = simulate(graph, cluster, device)
    start, finish = simulation.start_time_us, simulation.finish_time_us
    times = graph.times_on(cluster.types)
    np.testing.assert_array_equal(
      finish - start, times[np.arange(graph.num_ops), device]
    )
    check_one_at_a_time(
      [np.flatnonzero(device == k) for k in range(cluster.num_devices)],
      start,
      finish,
    )
    check_transfers(graph, cluster, simulation)
    for k in range(cluster.num_devices):
      assert simulation.busy_time_us[k] == sum(times[device == k, k])
    assert simulation.makespan_us == finish.max()


def check_one_at_a_time(sets, begin, end):
  for chosen in sets:
    chosen = sorted(chosen, key=lambda x: (begin[x], end[x]))
    for first, second in zip(chosen, chosen[1:], strict=False):
      assert end[first] <= begin[second]


def check_transfers(graph, cluster, simulation):
  """Inputs arrive in time, over channels that carry one tensor at a time."""
  tensor, target = simulation.transfer_tensor, simulation.transfer_target
  begin, end = simulation.transfer_start_us, simulation.transfer_finish_us
  device = simulation.device
  sent = {key: i for i, key in enumerate(zip(tensor, target, strict=True))}
  assert len(sent) == len(tensor)  # once per tensor and device
  needed = set()
  for x, op in zip(graph.edge_tensor, graph.edge_op, strict=True):
    source = graph.tensor_op[x]
    ready = simulation.finish_time_us[source]
    if device[source] != device[op]:
      needed.add((x, device[op]))
      assert begin[sent[x, device[op]]] >= ready
      ready = end[sent[x, device[op]]]
    assert simulation.start_time_us[op] >= ready
  assert needed == set(sent)
  source = device[graph.tensor_op[tensor]]
  np.testing.assert_array_equal(
    end - begin,
    cluster.latency_us[source, target]
    + graph.tensor_bytes[tensor] * cluster.us_per_byte[source, target],
  )
  assert simulation.bytes_moved == graph.tensor_bytes[tensor].sum()
  for k in range(cluster.num_devices):
    if cluster.channel == "half_duplex":
      sets = [np.flatnonzero((source == k) | (target == k))]
    elif cluster.channel == "full_duplex":
      sets = [np.flatnonzero(source == k), np.flatnonzero(target == k)]
    else:
      sets = []
    check_one_at_a_time(sets, begin, end)


@pytest.mark.parametrize("channel", CHANNELS)
def test_simulate_memory_is_what_is_held_at_every_instant(channel):
  for seed in range(60):
    graph, cluster, device = a_case(seed, channel)
    simulation = simulate(graph, cluster, device)
    instants = {
      0.0,
      *simulation.start_time_us,
      *simulation.finish_time_us,
      *simulation.transfer_start_us,
    }
    for k in range(cluster.num_devices):
      times = simulation.memory_time_us[k]
      levels = simulation.memory_bytes[k]
      assert (np.diff(times) >= 0).all()
      peak = max(memory_at(graph, simulation, k, now) for now in instants)
      assert simulation.peak_memory_bytes[k] == peak
      for now in instants:
        after = now + 0.0625  # all times are multiples of an eighth
        level = levels[np.searchsorted(times, after, side="right") - 1]
        assert level == memory_at(graph, simulation, k, after)


# Two tensors from d0 to d1, one back. Sizes are microseconds at 1 byte/us.
HAND_OPS = [
  Op("a", 1.0, (4,)),  # on d0, done at 1
  Op("b", 2.0, (3,)),  # on d1, done at 2
  Op("c", 1.0, (5,)),  # on d0 after a, done at 2
  Op("wants_a", 1.0),  # on d1
  Op("wants_b", 1.0),  # on d0
  Op("wants_c", 1.0),  # on d1
]
HAND_EDGES = [("a", 0, "wants_a"), ("b", 0, "wants_b"), ("c", 0, "wants_c")]


@pytest.mark.parametrize(
  ("channel", "expected"),
  [
    # a 1-5, b waits for it 5-8, c waits for both 8-13.
    ("half_duplex", {"wants_a": 5, "wants_b": 8, "wants_c": 13}),
    # a 1-5; b the other way 2-5; c after a 5-10.
    ("full_duplex", {"wants_a": 5, "wants_b": 5, "wants_c": 10}),
    # a 1-5, b 2-5, c 2-7.
    ("parallel", {"wants_a": 5, "wants_b": 5, "wants_c": 7}),
  ],
)
def test_simulate_channels_as_worked_by_hand(channel, expected):
  graph = make_graph(HAND_OPS, HAND_EDGES)
  cluster = make_cluster(2, channel=channel)
  simulation = simulate(graph, cluster, [0, 1, 0, 1, 0, 1])
  start = dict(zip(graph.names, simulation.start_time_us, strict=True))
  assert {name: start[name] for name in expected} == expected
  assert simulation.makespan_us == max(expected.values()) + 1
  assert simulation.bytes_moved == 12


def test_simulate_full_duplex_receiver_takes_one_at_a_time():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b", 2.0, (3,)), Op("c", 1.0)],
    [("a", 0, "c"), ("b", 0, "c")],
  )
  simulation = simulate(graph, make_cluster(3), [0, 1, 2])
  # a 1-5 into d2, then b 5-8.
  assert simulation.start_time_us.tolist() == [0, 0, 8]
  parallel = make_cluster(3, channel="parallel")
  assert simulate(graph, parallel, [0, 1, 2]).start_time_us[2] == 5


def test_simulate_link_of_the_pair_counts():
  graph = make_graph([Op("a", 1.0, (8,)), Op("b")], [("a", 0, "b")])
  cluster = make_cluster(
    3, latency_us=2.0, bytes_per_us=1.0, links={(1, 2): Link(0.5, 4.0)}
  )
  assert simulate(graph, cluster, [0, 1]).start_time_us[1] == 1 + 2 + 8
  assert simulate(graph, cluster, [2, 1]).start_time_us[1] == 1 + 0.5 + 2


def test_simulate_device_runs_the_first_ready_op_in_topological_order():
  graph = make_graph([Op("late", 1.0), Op("b", 1.0), Op("a", 1.0)])
  simulation = simulate(graph, make_cluster(1), [0, 0, 0])
  assert simulation.start_time_us.tolist() == [2, 1, 0]


def test_simulate_memory_as_worked_by_hand():
  graph = make_graph(
    [
      Op("a", 1.0, (4, 8), persistent=100, temporary=16),
      Op("b", 2.0, (2,), temporary=32),  # takes a:0 here
      Op("c", 1.0, persistent=1000),  # takes a:1 there
    ],
    [("a", 0, "b"), ("a", 1, "c")],
  )
  simulation = simulate(graph, make_cluster(2), [0, 0, 1])
  # d0: 0-1 a runs with its outputs (28); 1-3 b runs (34) with a:0 and a:1
  # (12); a:1 is sent 1-9 and kept until c ends at 10.
  np.testing.assert_array_equal(simulation.peak_memory_bytes, [146, 1008])
  levels = dict(
    zip(simulation.memory_time_us[0], simulation.memory_bytes[0], strict=True)
  )
  assert levels == {0: 128, 1: 146, 3: 108, 10: 100}
  assert simulation.memory_time_us[1].tolist() == [0, 1, 10]
  assert simulation.memory_bytes[1].tolist() == [1000, 1008, 1000]


def test_simulate_persistent_output_costs_only_where_it_is_sent():
  graph = make_graph(
    [Op("read", 1.0, (8,), persistent=8, persistent_outputs=(0,)), Op("use")],
    [("read", 0, "use")],
  )
  cluster = make_cluster(2)
  assert simulate(graph, cluster, [0, 0]).peak_memory_bytes.tolist() == [8, 0]
  assert simulate(graph, cluster, [0, 1]).peak_memory_bytes.tolist() == [8, 8]


def test_simulate_tensor_with_1000_consumers_is_sent_once_per_device():
  ops = [Op("source", 1.0, (16,))]
  ops += [Op(f"use{i:04}", 1.0) for i in range(1000)]
  edges = [("source", 0, f"use{i:04}") for i in range(1000)]
  graph = make_graph(ops, edges)
  device = [0] + [i % 4 for i in range(1000)]
  simulation = simulate(graph, make_cluster(4, bytes_per_us=16.0), device)
  assert simulation.transfer_target.tolist() == [1, 2, 3]
  assert simulation.transfer_finish_us.tolist() == [2, 3, 4]
  # The last device has the tensor at 4, and 250 ops to run from then on.
  assert simulation.makespan_us == 254
  assert simulation.bytes_moved == 48
  assert simulation.peak_memory_bytes.tolist() == [16] * 4


def test_simulate_control_edge_costs_the_latency_once():
  graph = make_graph(
    [Op("a", 1.0, (100,)), Op("b"), Op("c")],
    [("a", CONTROL, "b"), ("a", CONTROL, "c")],
  )
  cluster = make_cluster(2, latency_us=3.0)
  simulation = simulate(graph, cluster, [0, 1, 1])
  assert simulation.start_time_us.tolist() == [0, 4, 5]
  assert simulation.bytes_moved == 0
  assert len(simulation.transfer_tensor) == 1


def test_simulate_control_edge_beside_a_data_edge_adds_nothing():
  ops = [Op("a", 1.0, (4,)), Op("b")]
  both = make_graph(ops, [("a", 0, "b"), ("a", CONTROL, "b")])
  data = make_graph(ops, [("a", 0, "b")])
  cluster = make_cluster(2, latency_us=3.0)
  for device in ([0, 0], [0, 1]):
    with_both = simulate(both, cluster, device)
    with_data = simulate(data, cluster, device)
    assert with_both.makespan_us == with_data.makespan_us
    assert len(with_both.transfer_tensor) == len(with_data.transfer_tensor)


def test_simulate_zero_time_ops_and_zero_byte_tensors_take_no_time():
  graph = contracts.chain(10, time_us=0.0, size=0)
  device = [i % 2 for i in range(10)]
  simulation = simulate(graph, make_cluster(2), device)
  assert simulation.makespan_us == 0.0
  assert len(simulation.transfer_tensor) == 9
  slow = make_cluster(2, latency_us=1.0)
  assert simulate(graph, slow, device).makespan_us == 9.0


def test_simulate_zero_time_op_holds_its_memory_for_an_instant():
  graph = make_graph([Op("a", 0.0, (4,), temporary=8)])
  simulation = simulate(graph, make_cluster(1), [0])
  assert simulation.peak_memory_bytes.tolist() == [12]
  assert simulation.memory_bytes[0][-1] == 0


def test_simulate_isolated_ops_run_at_once_everywhere():
  graph = contracts.independent(6, time_us=2.0)
  simulation = simulate(graph, make_cluster(3), [0, 1, 2, 0, 1, 2])
  assert simulation.makespan_us == 4.0
  assert simulation.busy_time_us.tolist() == [4.0, 4.0, 4.0]


def test_simulate_empty_graph_takes_no_time():
  simulation = simulate(make_graph([]), make_cluster(2), [])
  assert simulation.makespan_us == 0.0
  assert simulation.bytes_moved == 0
  assert simulation.peak_memory_bytes.tolist() == [0, 0]


def test_simulate_one_op_takes_its_time_on_its_type():
  graph = make_graph([Op("a", (3.0, 5.0))], device_types=("CPU", "GPU"))
  cluster = make_cluster(2, types=("CPU", "GPU"))
  assert simulate(graph, cluster, [0]).makespan_us == 3.0
  assert simulate(graph, cluster, [1]).makespan_us == 5.0


def test_simulate_unknown_device_type_is_an_error():
  graph = make_graph([Op("a", (3.0,))], device_types=("GPU",))
  with pytest.raises(ValueError, match="no compute times .* 'CPU'"):
    simulate(graph, make_cluster(1), [0])


def test_simulate_one_device_takes_the_sum_of_all_times():
  for seed in range(20):
    graph = contracts.random_graph(np.random.default_rng(seed), 12)
    simulation = simulate(graph, make_cluster(1), np.zeros(12))
    assert simulation.makespan_us == graph.compute_time_us.sum()
