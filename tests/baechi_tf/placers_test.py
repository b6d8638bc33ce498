"""Batteries: what every placer promises, end to end through the planner."""

import dataclasses
import importlib
import pkgutil
import re

import numpy as np
import pytest

from baechi_tf import placers
from baechi_tf.bounds import check_memory
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import BEST
from baechi_tf.planner import plan
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import memory_at
from tests.contracts import Op

every_placer = pytest.mark.parametrize(
  "placer", [*contracts.PLACER_NAMES, BEST]
)
# Those that look at times; m-TOPO balances memory alone.
timely_placer = pytest.mark.parametrize("placer", ["m_etf", "m_sct", BEST])


def a_case(seed, *, memory_share=None):
  """A random graph on a random cluster; memory as a share of what one needs."""
  rng = np.random.default_rng(seed)
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = contracts.random_graph(
    rng,
    int(rng.integers(1, 20)),
    density=rng.choice([0.08, 0.2]),
    device_types=types,
    group_share=0.3,
  )
  num_devices = int(rng.integers(1, 5))
  memory = contracts.AMPLE
  if memory_share is not None:
    alone = make_cluster(1, types=types[:1])
    peak = simulate(graph, alone, np.zeros(graph.num_ops)).peak_memory_bytes
    memory = int(memory_share * peak[0]) + 1
  return graph, contracts.random_cluster(
    rng, num_devices, types=types, memory=memory
  )


def plan_or_error(graph, cluster, placer):
  try:
    return plan(graph, cluster, placer=placer)
  except InfeasiblePlacementError as error:
    return str(error)


def check_error_adds_up(message, cluster):
  """Every device lacks what the error says, or is said to be excluded."""
  if message.startswith("the persistent state needs"):
    return
  lacks = re.findall(
    r"(d\d+) would need ([\d,]+) bytes.*? \(([^()]*)\) and has ([\d,]+)",
    message,
  )
  named = re.findall(r"not on (d\d+(?:, d\d+)*): ", message)
  excluded = [name for names in named for name in names.split(", ")]
  for _, total, kinds, available in lacks:
    sizes = [part.split()[0] for part in kinds.split(" + ")]
    needed, *summands, has = (
      int(x.replace(",", "")) for x in (total, *sizes, available)
    )
    assert needed == sum(summands), message
    assert needed > has, message
  assert lacks, message
  if "fits on no" in message:  # else the plan's memory overflows somewhere
    devices = sorted([x[0] for x in lacks] + excluded)
    assert devices == sorted(cluster.device_names), message


def by_name(placement):
  return sorted(placement.as_dict().items())


def test_table_of_placers_is_the_packages():
  assert tuple(placers.PLACERS) == contracts.PLACER_NAMES
  modules = [x.name for x in pkgutil.iter_modules(placers.__path__)]
  with_place = {
    name
    for name in modules
    if hasattr(importlib.import_module(f"baechi_tf.placers.{name}"), "place")
  }
  assert with_place == set(contracts.PLACER_NAMES)


@every_placer
def test_plan_is_complete_and_within_memory_or_an_error(placer):
  planned = 0
  for seed in range(60):
    memory_share = (None, 1.0, 0.8, 0.6, 0.5)[seed % 5]
    graph, cluster = a_case(seed, memory_share=memory_share)
    result = plan_or_error(graph, cluster, placer)
    if isinstance(result, str):
      assert memory_share is not None, result
      check_error_adds_up(result, cluster)
      continue
    planned += 1
    device = result.placement.device
    assert result.placement.op_names == graph.names
    assert set(result.placement.as_dict()) == set(graph.names)
    for group in range(graph.num_groups):
      assert len(set(device[graph.group == group].tolist())) == 1
    simulation = result.simulation
    np.testing.assert_array_equal(simulation.device, device)
    instants = {0.0, *simulation.start_time_us, *simulation.transfer_start_us}
    for k, limit in enumerate(cluster.memory_bytes):
      for now in instants:
        assert memory_at(graph, simulation, k, now) <= limit
    order = result.placement.order
    policy = "executor" if order is None else "strict"
    makespan = simulate(
      graph, cluster, device, policy=policy, order=order
    ).makespan_us
    assert result.placement.makespan_us == makespan
    assert result.placement.lower_bound_us <= makespan
  assert 12 < planned < 60  # also where memory is short, but not always


@every_placer
@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10])
def test_plan_with_all_times_scaled_is_the_same_plan(placer, factor):
  for seed in range(16):
    graph, cluster = a_case(seed, memory_share=(None, 0.8)[seed % 2])
    slow_graph, slow_cluster = contracts.scaled(graph, cluster, factor)
    result = plan_or_error(graph, cluster, placer)
    scaled = plan_or_error(slow_graph, slow_cluster, placer)
    if isinstance(result, str):
      assert scaled == result
      continue
    assert by_name(scaled.placement) == by_name(result.placement)
    # A power of two: no rounding anywhere.
    assert scaled.simulation.makespan_us == (
      factor * result.simulation.makespan_us
    )


@every_placer
def test_plan_of_the_same_graph_in_another_listing_is_the_same_plan(placer):
  for seed in range(24):
    graph, cluster = a_case(seed, memory_share=(None, 0.8, 0.5)[seed % 3])
    other = contracts.relisted(graph, np.random.default_rng(seed))
    result = plan_or_error(graph, cluster, placer)
    again = plan_or_error(other, cluster, placer)
    if isinstance(result, str):
      assert isinstance(again, str)
      continue
    assert by_name(again.placement) == by_name(result.placement), seed
    assert again.simulation.makespan_us == result.simulation.makespan_us


@every_placer
def test_plan_twice_is_byte_for_byte_the_same(placer):
  for seed in range(8):
    graph, cluster = a_case(seed)
    first, second = (plan(graph, cluster, placer=placer) for _ in range(2))
    assert first.placement.to_json() == second.placement.to_json()


@pytest.mark.parametrize("memory_share", [None, 0.8, 0.5])
def test_plan_best_is_never_worse_than_any_placer(memory_share):
  for seed in range(16):
    graph, cluster = a_case(seed, memory_share=memory_share)
    results = [
      plan_or_error(graph, cluster, placer) for placer in contracts.PLACER_NAMES
    ]
    best = plan_or_error(graph, cluster, BEST)
    makespans = [
      x.simulation.makespan_us for x in results if not isinstance(x, str)
    ]
    if makespans:
      assert best.simulation.makespan_us <= min(makespans)
    else:
      assert isinstance(best, str)


@every_placer
def test_plan_on_one_device_takes_the_sum_of_all_times(placer):
  for seed in range(10):
    graph = contracts.random_graph(np.random.default_rng(seed), 12)
    result = plan(graph, make_cluster(1), placer=placer)
    assert result.simulation.makespan_us == graph.compute_time_us.sum()
    assert result.gap == 0


@timely_placer
@pytest.mark.parametrize("num_devices", [2, 3, 4])
def test_plan_independent_equal_ops_are_perfectly_balanced(placer, num_devices):
  graph = contracts.independent(12, time_us=5.0)
  result = plan(graph, make_cluster(num_devices), placer=placer)
  assert (
    result.simulation.busy_time_us.tolist()
    == [60.0 / num_devices] * num_devices
  )
  assert result.gap == 0


@timely_placer
def test_plan_chain_with_expensive_edges_stays_on_one_device(placer):
  graph = contracts.chain(10, time_us=1.0, size=1000)
  for coplacement in (True, False):
    result = plan(
      graph, make_cluster(4), placer=placer, coplacement=coplacement
    )
    assert len(set(result.placement.device.tolist())) == 1
    assert result.simulation.makespan_us == 10.0


@timely_placer
def test_plan_two_chains_on_two_devices_are_perfect(placer):
  graph = contracts.two_chains(10, time_us=1.0, size=1000)
  for coplacement in (True, False):
    result = plan(
      graph, make_cluster(2), placer=placer, coplacement=coplacement
    )
    assert result.simulation.makespan_us == 10.0
    assert result.simulation.bytes_moved == 0


def test_plan_best_of_two_dear_children_is_optimal():
  graph = make_graph(
    [Op("a", 1.0, (100,)), Op("b", 1.0), Op("c", 1.0)],
    [("a", 0, "b"), ("a", 0, "c")],
  )
  result = plan(graph, make_cluster(2))
  assert result.simulation.makespan_us == 3.0
  assert result.gap == 0


@every_placer
def test_plan_layered_graph_is_no_better_than_its_bound(placer):
  for seed in range(5):
    graph = contracts.layered(np.random.default_rng(seed), 5, 4)
    result = plan(graph, make_cluster(3, latency_us=1.0), placer=placer)
    assert result.gap >= 0


@every_placer
def test_plan_op_too_large_for_any_device_error_names_it(placer):
  graph = make_graph(
    [Op("small", 1.0, persistent=1), Op("big", 1.0, persistent=100)]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"'big' .*: d0 would need 100 bytes \(100 persistent\) and has 60"
    r" left; d1 would need 100 bytes \(100 persistent\) and has 60 left\.",
  ):
    plan(graph, make_cluster(2, memory=60), placer=placer)


@every_placer
def test_plan_too_much_state_error_names_the_largest(placer):
  graph = make_graph(
    [Op("small", 1.0, persistent=50), Op("big", 1.0, persistent=60)]
  )
  with pytest.raises(
    InfeasiblePlacementError, match="110 bytes.*'big' with 60"
  ):
    plan(graph, make_cluster(1, memory=100), placer=placer)


@pytest.mark.parametrize(
  "placer", [x for x in [*contracts.PLACER_NAMES, BEST] if x != "single_device"]
)
def test_plan_memory_for_two_devices_only_gives_a_two_device_plan(placer):
  graph = contracts.two_chains(3, size=4)
  ops, edges = contracts.ops_of(graph)
  heavy = make_graph(
    [dataclasses.replace(op, persistent=100) for op in ops], edges
  )
  cluster = make_cluster(2, memory=350)
  result = plan(heavy, cluster, placer=placer)
  assert set(result.placement.device.tolist()) == {0, 1}
  assert (result.simulation.peak_memory_bytes <= 350).all()
  with pytest.raises(InfeasiblePlacementError, match="would need 6.. bytes"):
    plan(heavy, cluster, placer="single_device")


@every_placer
def test_plan_one_activation_too_few_error_names_the_culprit(placer):
  # 20 bytes of state; while `b` runs, 4 + 4 of activations: 28, and there are
  # 27. Every op alone would fit.
  graph = make_graph(
    [
      Op("a", 1.0, (4,), persistent=10),
      Op("b", 1.0, (4,), persistent=10),
      Op("c", 1.0),
    ],
    [("a", 0, "b"), ("b", 0, "c")],
  )
  check_memory(graph, make_cluster(1, memory=27))
  with pytest.raises(InfeasiblePlacementError, match="op 'b'"):
    plan(graph, make_cluster(1, memory=27), placer=placer)
  if placer != "m_topo":  # it counts all activations at once
    result = plan(graph, make_cluster(1, memory=28), placer=placer)
    assert result.simulation.peak_memory_bytes.tolist() == [28]


@every_placer
def test_plan_of_nothing_is_nothing(placer):
  result = plan(make_graph([]), make_cluster(2), placer=placer)
  assert result.placement.as_dict() == {}
  assert result.simulation.makespan_us == 0.0
  assert result.gap == 0


@every_placer
def test_plan_of_one_op_is_its_time(placer):
  result = plan(make_graph([Op("a", 3.0)]), make_cluster(2), placer=placer)
  assert result.placement.as_dict() == {"a": "d0"}
  assert result.simulation.makespan_us == 3.0


@every_placer
def test_plan_tensor_with_1000_consumers_is_planned(placer):
  graph = contracts.fork_join(1000, size=16)
  result = plan(graph, make_cluster(4, bytes_per_us=64.0), placer=placer)
  assert 0 <= result.gap < 4
