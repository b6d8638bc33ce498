"""Bounds by trial makespans against every schedule of tiny graphs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from baechi_tf.bounds import check_memory
from baechi_tf.bounds import lower_bound
from baechi_tf.cluster import CHANNELS
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import FREE
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import plan
from baechi_tf.search.budget import Budget
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def least_us(graph, cluster):
  """The least makespan of all placements and orders; inf if none fits."""
  above = np.zeros((graph.num_ops, graph.num_ops), bool)
  above[graph.edge_source, graph.edge_op] = True
  orders = [
    np.array(order)
    for order in itertools.permutations(range(graph.num_ops))
    if not np.tril(above[np.ix_(order, order)]).any()
  ]
  best = math.inf
  for of_group in itertools.product(
    range(cluster.num_devices), repeat=graph.num_groups
  ):
    device = np.array(of_group)[graph.group]
    if (device != graph.with_fixed(device)).any():
      continue
    for order in orders:
      step = simulate(graph, cluster, device, policy="strict", order=order)
      if (step.peak_memory_bytes <= cluster.memory_bytes).all():
        best = min(best, step.makespan_us)
  return best


def a_case(seed, max_ops):
  """A graph and a cluster with a bit of everything, memory often short."""
  rng = np.random.default_rng(seed)
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = contracts.random_graph(
    rng,
    int(rng.integers(2, max_ops + 1)),
    density=rng.choice([0.3, 0.6]),
    device_types=types,
    group_share=0.2,
    max_size=int(rng.choice([4, 16])),
  )
  if rng.random() < 0.2:
    is_input = np.zeros(graph.num_ops, bool)
    is_input[graph.order[0]] = True
    graph = dataclasses.replace(graph, is_input=is_input)
  memory = 1000
  if rng.random() < 0.5:
    memory = rng.integers(20, 120, 2 + seed % 5 // 4).tolist()
  cluster = contracts.random_cluster(
    rng,
    2 + seed % 5 // 4,
    channel=CHANNELS[seed % 3],
    types=types,
    memory=memory,
  )
  if rng.random() < 0.4:
    cluster = contracts.costly(rng, cluster)
  return graph, cluster


def check_bounds(seeds, max_ops):
  """Compares bounds with the optimum; returns how often they are equal."""
  tight = []
  for seed in seeds:
    graph, cluster = a_case(seed, max_ops)
    best = least_us(graph, cluster)
    try:
      check_memory(graph, cluster)
    except InfeasiblePlacementError:
      assert best == math.inf, seed
      continue
    if best == math.inf:
      continue
    known = lower_bound(graph, cluster, best).us
    assert known <= best * (1 + 1e-8), seed
    # A plan that is not the best: no bound may come up to it.
    bound = lower_bound(graph, cluster, best * 1.5 + 1).us
    assert bound <= best * (1 + 1e-8), seed
    assert lower_bound(graph, cluster).us <= best * (1 + 1e-8), seed
    tight.append(known >= best - 1e-6)
  return np.mean(tight)


def test_trial_makespan_is_no_larger_than_the_optimum():
  assert check_bounds(range(30), max_ops=4) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_trial_makespan_is_no_larger_than_more_optima(part):
  first = 1000 + 100 * part
  assert check_bounds(range(first, first + 100), max_ops=4) > 0.7


def test_trial_makespan_dear_transfers_keep_two_chains_whole():
  # Two chains on two devices, joined at the end: one of them pays 7, or waits.
  graph = make_graph(
    [Op("a", 5.0, (7,)), Op("b", 5.0, (7,)), Op("c", 1.0)],
    [("a", 0, "c"), ("b", 0, "c")],
  )
  bound = lower_bound(graph, make_cluster(2))
  assert bound.us == least_us(graph, make_cluster(2)) == 11.0


def test_trial_makespan_whole_ops_do_not_share_the_work_evenly():
  graph = contracts.independent(3, time_us=2.5)
  bound = lower_bound(graph, make_cluster(2), 5.0)
  assert (bound.us, bound.name) == (5.0, "trial makespan")
  assert bound.witness.startswith("ops' windows in a faster step contradict")


def test_trial_makespan_memory_keeps_ops_apart():
  # Together they take 2 us; but no device has memory for both.
  graph = make_graph(
    [Op("a", 1.0, (10,), persistent=6), Op("b", 1.0, persistent=6)],
    [("a", 0, "b")],
  )
  assert lower_bound(graph, make_cluster(2)).us == 2.0
  short = make_cluster(2, memory=25)
  assert lower_bound(graph, short).us == 2.0
  short = make_cluster(2, memory=21)
  assert lower_bound(graph, short).us == least_us(graph, short) == 12.0


def test_trial_makespan_inputs_are_on_the_client():
  graph = make_graph([Op("x", 0.0, (8,)), Op("a", (9.0))], [("x", 0, "a")])
  graph = dataclasses.replace(graph, is_input=np.array([True, False]))
  slow_client = dataclasses.replace(make_cluster(2), channel="parallel")
  assert lower_bound(graph, slow_client).us == 9.0


def test_trial_makespan_finds_what_devices_lack_for_an_op_and_its_inputs():
  graph = make_graph(
    [Op("a", 1.0, (6,)), Op("b", 1.0, (5,)), Op("c", 1.0, (2,), temporary=3)],
    [("a", 0, "c"), ("b", 0, "c"), ("a", CONTROL, "b")],
  )
  check_memory(graph, make_cluster(2, memory=16))
  with pytest.raises(
    InfeasiblePlacementError,
    match=r"op 'c' .* 16 bytes \(2 outputs \+ 3 temporary \+ 11 inputs\)",
  ):
    check_memory(graph, make_cluster(2, memory=15))
  assert least_us(graph, make_cluster(2, memory=15)) == math.inf


def test_check_memory_inputs_of_an_op_of_no_time_may_be_gone():
  graph = make_graph([Op("a", 1.0, (6,)), Op("b", 0.0, (6,))], [("a", 0, "b")])
  check_memory(graph, make_cluster(2, memory=6))
  assert least_us(graph, make_cluster(2, memory=6)) < math.inf


@pytest.mark.parametrize("seed", range(16))
def test_pinned_bound_holds_and_the_search_reaches_the_optimum(seed):
  graph, cluster = a_case(seed, 4)
  rng = np.random.default_rng(seed)
  of_group = rng.integers(0, cluster.num_devices, graph.num_groups)
  of_group[rng.random(graph.num_groups) < 0.5] = FREE
  pin = np.where(graph.is_on_client, FREE, of_group[graph.group])
  memory = dataclasses.replace(cluster.devices[0], memory_bytes=1000)
  devices = [
    dataclasses.replace(memory, name=x.name, type=x.type)
    for x in cluster.devices
  ]
  ample = dataclasses.replace(cluster, devices=tuple(devices))
  pinned = graph.with_pins(pin)
  least = least_us(pinned, ample)
  assert lower_bound(pinned, ample).us <= least
  planned = plan(pinned, ample, budget=Budget(evaluations=2000))
  assert planned.simulation.makespan_us == least
  assert planned.bound.us <= least
