import dataclasses
import re

import numpy as np
import pytest

from baechi_tf import planner
from baechi_tf import watched
from baechi_tf.peak_memory import overflow
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers.favorite_child import LinearProgramError
from baechi_tf.planner import plan
from baechi_tf.search.placement_search import Budget
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def test_plan_unknown_placer_error_lists_the_known():
  with pytest.raises(
    ValueError, match="unknown placer 'etf'; choose from best, single_device"
  ):
    plan(contracts.chain(2), make_cluster(1), placer="etf")


def test_plan_best_tries_every_placer_with_and_without_coplacement():
  result = plan(contracts.chain(3, size=4), make_cluster(2))
  assert [(x.placer, x.coplacement) for x in result.candidates] == [
    (name, together)
    for together in ("yes", "no")
    for name in contracts.PLACER_NAMES
  ]
  assert result.num_coarse_ops == {"yes": 1, "no": 3}
  assert result.chosen in result.candidates


def test_plan_best_leaves_out_a_placer_whose_linear_program_fails():
  # Costs of 1e18 and 1e-3 us in one program: HiGHS gives up.
  graph = make_graph(
    [Op(x, 1e-3, (10**12,)) for x in "abcde"],
    [("a", 0, "b"), ("a", 0, "c"), ("b", 0, "d"), ("c", 0, "e")],
  )
  cluster = make_cluster(2, memory=2**50, bytes_per_us=1e-6)
  result = plan(graph, cluster, coplacement=False)
  (left_out,) = [x for x in result.candidates if x.placer == "m_sct"]
  assert left_out.simulation is None
  (note,) = result.notes
  assert note.startswith("m_sct (co-placed: no) is left out: the linear prog")
  assert result.chosen.placer != "m_sct"
  with pytest.raises(LinearProgramError, match="HiGHS"):
    plan(graph, cluster, coplacement=False, placer="m_sct")


def test_plan_without_coplacement_tries_the_hard_groups_alone():
  result = plan(contracts.chain(3, size=4), make_cluster(2), coplacement=False)
  assert {x.coplacement for x in result.candidates} == {"no"}
  assert result.num_coarse_ops == {"no": 3}


def test_plan_without_fusion_places_every_op():
  result = plan(contracts.chain(3, size=4), make_cluster(2), fusion=False)
  assert result.num_coarse_ops == {"yes": 3, "no": 3}


@pytest.mark.parametrize("coplacement", [True, False])
@pytest.mark.parametrize("fusion", [True, False])
def test_plan_switches_keep_plans_feasible(coplacement, fusion):
  for seed in range(10):
    rng = np.random.default_rng(seed)
    graph = contracts.random_graph(rng, 15, group_share=0.3)
    cluster = contracts.random_cluster(rng, 3, memory=500)
    result = plan(graph, cluster, coplacement=coplacement, fusion=fusion)
    assert overflow(graph, cluster, result.simulation) is None


def test_plan_named_placer_takes_coplaced_groups_apart_when_they_do_not_fit():
  # The chain is one co-placed group of 20 bytes; each device has 12.
  graph = make_graph(
    [Op("a", 1.0, (1,), persistent=10), Op("b", 1.0, persistent=10)],
    [("a", 0, "b")],
  )
  result = plan(graph, make_cluster(2, memory=12), placer="m_etf")
  assert [x.coplacement for x in result.candidates] == ["yes", "capped"]
  assert result.chosen.coplacement == "capped"
  assert sorted(result.placement.device.tolist()) == [0, 1]
  first, second = result.candidates
  assert first.simulation is None and "'a'" in first.error
  assert first.makespan_us == np.inf
  assert second.error == ""


def test_plan_best_caps_groups_only_where_memory_is_short():
  # Four ops of 10 bytes in one chain: one group of 40 to place, or four.
  names = "abcd"
  graph = make_graph(
    [Op(x, 1.0, (1,), persistent=9) for x in names],
    [(x, 0, y) for x, y in zip(names, names[1:], strict=False)],
  )
  ample = plan(graph, make_cluster(2, memory=100))
  assert list(ample.num_coarse_ops) == ["yes", "no"]
  short = plan(graph, make_cluster(2, memory=24))
  assert short.num_coarse_ops == {"yes": 1, "capped": 4, "no": 4}


def test_plan_prefers_the_earlier_of_equal_candidates():
  result = plan(contracts.chain(3, size=4), make_cluster(2))
  assert (result.chosen.placer, result.chosen.coplacement) == (
    "single_device",
    "yes",
  )


@pytest.mark.parametrize("first_run", [False, True])
def test_plan_reports_its_stages_and_their_seconds(monkeypatch, first_run):
  monkeypatch.setattr(planner, "FIRST_RUN", first_run)
  stages = []
  result = plan(
    contracts.chain(3), make_cluster(2), placer="m_topo", progress=stages.append
  )
  names = ["bounds", "coarsening", "placing with m_topo", "simulating"]
  assert list(result.timings_s) == names
  suffix = " (compiling, the first time)" if first_run else ""
  assert stages == [name + suffix for name in names]
  assert all(x >= 0 for x in result.timings_s.values())


@pytest.mark.parametrize("placer", ["m_etf", "m_sct"])
def test_plan_shows_how_far_a_long_placement_is(monkeypatch, placer):
  monkeypatch.setattr(watched, "_INTERVAL_S", 1e-4)
  lines = []
  graph = contracts.independent(5000)
  plan(
    graph, make_cluster(64), placer=placer, fusion=False, progress=lines.append
  )
  pattern = rf"placing with {placer}, ([\d,]+) of 5,000 ops"
  shown = [re.fullmatch(pattern, line) for line in lines]
  done = [int(x[1].replace(",", "")) for x in shown if x]
  assert done and done == sorted(done) and done[-1] < 5000


def test_plan_gap_is_relative_to_the_bound():
  # Too many ops for trial makespans: 202 against a bound of 201.
  result = plan(contracts.independent(201, time_us=2.0), make_cluster(2))
  assert result.bound.us == 201.0
  assert result.gap == pytest.approx(1 / 201)
  assert result.placement.lower_bound_us == 201.0
  assert result.placement.makespan_us == 202.0


def test_plan_of_few_ops_is_proved_optimal():
  # Three equal ops on two devices: the work is 3 each, and yet it takes 4.
  result = plan(contracts.independent(3, time_us=2.0), make_cluster(2))
  assert result.bound.name == "trial makespan"
  assert result.placement.lower_bound_us == result.placement.makespan_us == 4.0


def test_plan_unknown_device_type_is_an_error():
  graph = make_graph([Op("a", (3.0,))], device_types=("GPU",))
  with pytest.raises(ValueError, match="no compute times .* 'CPU'"):
    plan(graph, make_cluster(1))


def test_plan_infeasible_error_comes_before_any_placing():
  stages = []
  with pytest.raises(InfeasiblePlacementError, match="op 'a' .* need 10 bytes"):
    plan(
      make_graph([Op("a", persistent=10), Op("b")]),
      make_cluster(2, memory=9),
      progress=stages.append,
    )
  assert len(stages) == 1


def test_overflow_names_device_bytes_and_op():
  graph = make_graph(
    [Op("a", 1.0, (4,)), Op("b", 1.0, temporary=8)], [("a", 0, "b")]
  )
  simulation = simulate(graph, make_cluster(2), [1, 1])
  message = overflow(graph, make_cluster(2, memory=11), simulation)
  assert message.startswith(
    "d1 would need 12 bytes at op 'b' (4 outputs + 8 temporary) and has 11."
  )
  assert overflow(graph, make_cluster(2, memory=12), simulation) is None


def test_overflow_on_a_device_that_only_receives_names_the_receiver():
  graph = make_graph([Op("a", 1.0, (40,)), Op("b")], [("a", 0, "b")])
  simulation = simulate(graph, make_cluster(2), [0, 1])
  message = overflow(graph, make_cluster(2, memory=[40, 30]), simulation)
  assert message.startswith(
    "d1 would need 40 bytes at op 'b' (40 received inputs) and has 30."
  )


@pytest.mark.parametrize("seed", range(12))
def test_plan_is_never_slower_than_one_device(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 14, group_share=0.3)
  cluster = contracts.costly(rng, contracts.random_cluster(rng, 3))
  planned = plan(graph, cluster)
  alone_us = [
    simulate(graph, cluster, np.full(14, k)).makespan_us for k in range(3)
  ]
  assert planned.bound.us - 1e-9 <= planned.simulation.makespan_us
  assert planned.simulation.makespan_us <= min(alone_us)


def test_plan_on_one_processor_is_one_device():
  graph = contracts.two_chains(6, time_us=3.0, size=1)
  shared = make_cluster(2, processors=["p", "p"])
  planned = plan(graph, shared)
  assert planned.simulation.makespan_us == 36 == planned.bound.us
  assert set(planned.placement.device.tolist()) == {0}
  assert plan(graph, make_cluster(2)).simulation.makespan_us == 18


@pytest.mark.parametrize("time_us, is_believed", [(9.0, False), (30.0, True)])
def test_plan_believes_no_small_gain_where_transfers_take_processors(
  time_us, is_believed
):
  graph = make_graph(
    [Op("a", 100.0), Op("b", 1.0, (1,)), Op("c", time_us)],
    [("b", 0, "a"), ("b", 0, "c")],
  )
  # c on the other device spares its time, for 1 us of sending.
  cluster = make_cluster(2, send_us=1.0)
  result = plan(graph, cluster, coplacement=False)
  moves = result.simulation.bytes_moved > 0
  assert moves == is_believed
  assert any("is not believed" in x for x in result.notes) != is_believed
  free = plan(graph, make_cluster(2), coplacement=False)
  assert free.simulation.makespan_us == 101.0


def test_plan_pays_for_inputs_that_leave_the_client():
  graph = make_graph(
    [Op("x", 0.0, outputs=(1000,), is_input=True), Op("a", (10.0, 2.0))],
    [("x", 0, "a")],
    device_types=("slow", "fast"),
  )
  cluster = make_cluster(2, types=["slow", "fast"], bytes_per_us=500)
  planned = plan(graph, cluster)
  assert planned.placement.device.tolist() == [0, 1]
  assert planned.simulation.makespan_us == 1000 / 500 + 2
  slow = make_cluster(2, types=["slow", "fast"], bytes_per_us=100)
  assert plan(graph, slow).placement.device.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_plan_leaves_inputs_and_their_groups_on_the_client(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 14, group_share=0.3)
  is_input = rng.random(14) < 0.3
  graph = dataclasses.replace(graph, is_input=is_input)
  cluster = contracts.costly(rng, contracts.random_cluster(rng, 3))
  planned = plan(graph, cluster, budget=Budget(evaluations=300))
  with_input = np.isin(graph.group, graph.group[is_input])
  assert with_input.any()
  for candidate in planned.candidates:
    if candidate.simulation:
      assert not candidate.simulation.device[with_input].any()
