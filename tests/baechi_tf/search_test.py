"""The search agrees with the simulator, and finds what there is to find."""

import dataclasses
import itertools

import numpy as np
import pytest

from baechi_tf.cluster import CHANNELS
from baechi_tf.event_loop import POLICIES
from baechi_tf.event_loop import PRIORITY
from baechi_tf.planner import plan
from baechi_tf.search.annealing import anneal
from baechi_tf.search.annealing import new_best
from baechi_tf.search.annealing import Problem
from baechi_tf.search.budget import Budget
from baechi_tf.search.evaluation import evaluate
from baechi_tf.search.hierarchy import make_hierarchy
from baechi_tf.search.instance import make_instance
from baechi_tf.search.instance import make_state
from baechi_tf.search.moves import make_room
from baechi_tf.search.placement_search import search
from baechi_tf.simulator import simulate
from tests import contracts
from tools.known_optimum import known_optimum

_TYPES = ("CPU", "GPU")


def a_case(seed, channel):
  """Returns a graph with groups on unequal devices, and where its ops are."""
  rng = np.random.default_rng(seed)
  num_devices = int(rng.integers(1, 5))
  graph = contracts.random_graph(
    rng, int(rng.integers(1, 25)), group_share=0.3, device_types=_TYPES
  )
  cluster = contracts.make_cluster(
    num_devices,
    memory=rng.integers(20, 200, num_devices).tolist(),
    latency_us=float(rng.integers(0, 3)),
    bytes_per_us=float(rng.choice([1, 2, 8])),
    send_us=float(rng.integers(0, 2)),
    send_us_per_byte=float(rng.choice([0, 0.1])),
    receive_us=float(rng.integers(0, 2)),
    receive_us_per_byte=float(rng.choice([0, 0.3])),
    dispatch_us=float(rng.choice([0, 3])),
    channel=channel,
    types=[_TYPES[i] for i in rng.integers(0, 2, num_devices)],
    processors=[["", "x"][i] for i in rng.integers(0, 2, num_devices)],
  )
  group_device = rng.integers(0, num_devices, graph.num_groups)
  return graph, cluster, group_device[graph.group]


def agrees(graph, cluster, x, state, policy):
  """Whether an evaluation gives what the simulator does, to the bit."""
  makespan, transfer_us, overflow = evaluate(
    x, state, POLICIES.index(policy), 0.0, 0.0, np.inf
  )
  device = np.empty(graph.num_ops, np.int64)
  device[graph.order] = state.schedule.device
  order = graph.order[state.schedule.order]
  simulation = simulate(graph, cluster, device, policy=policy, order=order)
  peak = simulation.peak_memory_bytes
  schedule = state.schedule
  lacking = np.maximum(peak - cluster.memory_bytes, 0).sum()
  lasted = simulation.transfer_finish_us - simulation.transfer_start_us
  return (
    makespan == simulation.makespan_us
    and overflow == lacking
    and transfer_us == pytest.approx(lasted.sum())
    and np.array_equal(schedule.start, simulation.start_time_us[graph.order])
    and np.array_equal(schedule.finish, simulation.finish_time_us[graph.order])
    and (not x.limited or np.array_equal(state.peak, peak))
  )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_evaluation_agrees_with_the_simulator_after_any_moves(channel, policy):
  for seed in range(8):
    graph, cluster, device = a_case(seed, channel)
    x = make_instance(graph, cluster)
    state = make_state(x, device[graph.order])
    hierarchy = make_hierarchy(graph.group[graph.order], x, seed)
    room = make_room(x, hierarchy, seed)
    # Moves and undoes with a policy that any order suits.
    problem = Problem(x, hierarchy, PRIORITY, np.array([0.1, 1.0]))
    best = new_best(state)
    for temperature in (100.0, 1.0, 0.0):
      anneal(problem, state, room, temperature, 20, best)
      if policy == "strict":
        chosen = np.empty(graph.num_ops, np.int64)
        chosen[graph.order] = state.schedule.device
        order = simulate(graph, cluster, chosen, policy="executor").order
        state = make_state(x, state.schedule.device, graph.rank[order])
      assert agrees(graph, cluster, x, state, policy), seed


def test_evaluation_stops_above_a_limit_and_nowhere_else():
  for seed in range(60):
    graph, cluster, device = a_case(seed, "half_duplex")
    x = make_instance(graph, cluster)
    state = make_state(x, device[graph.order])
    makespan, transfer_us, overflow = evaluate(x, state, 0, 0.0, 0.0, np.inf)
    cost = makespan + 0.1 * transfer_us + 2.0 * overflow
    assert evaluate(x, state, 0, 0.1, 2.0, cost)[0] == makespan
    # What is found only as the last op ends is left to the caller.
    stopped, transfer_us, overflow = evaluate(x, state, 0, 0.1, 2.0, cost - 1.0)
    assert stopped + 0.1 * transfer_us + 2.0 * overflow > cost - 1.0


@pytest.mark.parametrize("policy", ["priority", "executor"])
@pytest.mark.parametrize("seed", range(20))
def test_small_graph_gets_a_placement_as_fast_as_any(seed, policy):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 7)
  cluster = contracts.random_cluster(rng, 2)
  x = make_instance(graph, cluster)
  number = POLICIES.index(policy)
  least = min(
    evaluate(x, make_state(x, device), number, 0.0, 0.0, np.inf)[0]
    for device in itertools.product(range(2), repeat=7)
  )
  budget = Budget(evaluations=4000)
  found = search(graph, cluster, [np.zeros(7)], budget, policy=policy)
  result = simulate(
    graph, cluster, found.device, policy=policy, order=found.order
  )
  # Other orders than the topological one can be faster still.
  assert result.makespan_us <= least * (1 + 1e-9)
  assert found.overflow_bytes == 0


def test_search_is_never_worse_than_a_start_and_keeps_groups_together():
  for seed in range(10):
    graph, cluster, device = a_case(seed, "full_duplex")
    ample = tuple(
      dataclasses.replace(x, memory_bytes=contracts.AMPLE)
      for x in cluster.devices
    )
    cluster = dataclasses.replace(cluster, devices=ample)
    found = search(graph, cluster, [device], Budget(evaluations=50))
    result = simulate(graph, cluster, found.device, order=found.order)
    before = simulate(graph, cluster, device).makespan_us
    assert result.makespan_us <= before
    first = np.unique(graph.group, return_index=True)[1]
    np.testing.assert_array_equal(
      found.device, found.device[first][graph.group]
    )


def test_search_finds_a_placement_that_fits():
  ops = [contracts.Op(f"op{i}", persistent=10) for i in range(8)]
  graph = contracts.make_graph(ops)
  cluster = contracts.make_cluster(2, memory=40)
  found = search(graph, cluster, [np.zeros(8)], Budget(evaluations=2000))
  assert found.overflow_bytes == 0
  assert np.bincount(found.device).tolist() == [4, 4]


def test_equal_budgets_and_seeds_give_equal_plans():
  graph, cluster, _, _ = known_optimum(80, 3, density=3.0, delay=2.0)
  first, second = (
    plan(graph, cluster, budget=Budget(evaluations=3000, seed=5))
    for _ in range(2)
  )
  assert first.placement.to_json() == second.placement.to_json()


def test_interrupted_search_keeps_the_best_so_far():
  graph, cluster, _, _ = known_optimum(80, 3, density=3.0, delay=2.0)
  lines = []

  def progress(line):
    lines.append(line)
    if line.startswith("searching, ") and len(lines) > 40:
      raise KeyboardInterrupt  # as Ctrl-C does

  budget = Budget(evaluations=10**6)
  planned = plan(graph, cluster, budget=budget, progress=progress)
  assert planned.chosen.placer == "search"
  searched = [x for x in lines if x.startswith("searching, ")]
  assert f"best {planned.simulation.makespan_us:,.0f} us" in searched[-1]
  assert any("until it was interrupted" in note for note in planned.notes)


@pytest.mark.parametrize(("density", "delay"), [(1.8, 0.5), (4.0, 5.0)])
@pytest.mark.parametrize("num_devices", [2, 5])
def test_known_optimum_is_reached_by_its_schedule_and_no_plan_beats_it(
  num_devices, density, delay
):
  graph, cluster, least, device = known_optimum(
    60, num_devices, density=density, delay=delay
  )
  assert np.bincount(device, graph.compute_time_us[:, 0]).tolist() == (
    [least] * num_devices
  )
  planned = plan(graph, cluster, budget=Budget(evaluations=2000))
  assert planned.bound.us <= least <= planned.simulation.makespan_us


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"seconds": -1.0}, "seconds= must be from 0"),
    ({"seconds": float("nan")}, "seconds= must be from 0"),
    ({"seconds": 1e300}, "seconds= must be from 0"),
    ({"evaluations": -1}, "evaluations= must be from 0"),
    ({"evaluations": 10**30}, "evaluations= must be from 0"),
    ({"seed": -1}, "seed= must be from 0"),
  ],
)
def test_bad_budget_is_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    Budget(**arguments)
