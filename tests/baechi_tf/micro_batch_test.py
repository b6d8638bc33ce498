"""Micro-batches in graphs that are written by hand: closed forms as oracles."""

import dataclasses

import numpy as np
import pytest

from baechi_tf.micro_batch_graph import as_pipeline
from baechi_tf.micro_batch_graph import limit_in_flight
from baechi_tf.micro_batch_graph import micro_batch_of
from baechi_tf.micro_batch_graph import name_without_scope
from baechi_tf.micro_batch_graph import scope_of
from baechi_tf.micro_batch_plan import plan_micro_batches
from baechi_tf.peak_memory import overflow
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.search.budget import Budget
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import Op
from tests.micro_batch_chain import ACTIVATION
from tests.micro_batch_chain import BACKWARD_US
from tests.micro_batch_chain import chain
from tests.micro_batch_chain import FORWARD_US
from tests.micro_batch_chain import free_transfers
from tests.micro_batch_chain import layer_of


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("num", [1, 2, 4, 8])
def test_pipeline_takes_what_the_formula_says(num, stages):
  graph = as_pipeline(chain(num, stages))
  device = layer_of(graph)
  cluster = free_transfers(stages)
  ideal_us = (num + stages - 1) * (FORWARD_US + BACKWARD_US)
  eager = simulate(graph, cluster, device)
  assert eager.makespan_us == ideal_us  # GPipe's and 1F1B's
  # 1F1B has as many in flight as there are stages, and takes no longer.
  limited = limit_in_flight(graph, stages)
  simulation = simulate(limited, cluster, device)
  assert simulation.makespan_us == ideal_us
  assert simulation.peak_memory_bytes[0] == min(num, stages) * ACTIVATION
  one_by_one = simulate(limit_in_flight(graph, 1), cluster, device)
  assert one_by_one.makespan_us == num * stages * (FORWARD_US + BACKWARD_US)


def test_backward_passes_come_before_later_forward_passes():
  graph = as_pipeline(chain(4, 2))
  simulation = simulate(graph, free_transfers(2), layer_of(graph))
  ran = [graph.names[op] for op in simulation.order]
  last_stage = [x for x in ran if "f1" in x]
  assert last_stage == [
    name
    for i in range(4)
    for name in (f"{scope_of(i)}f1", f"gradient_tape/{scope_of(i)}f1/b")
  ]


def test_gradients_share_the_group_of_their_ops():
  pipeline = as_pipeline(chain(2, 2))
  group = dict(zip(pipeline.names, pipeline.group, strict=True))
  for layer in range(2):
    together = {
      group[name]
      for i in range(2)
      for name in (
        f"{scope_of(i)}f{layer}",
        f"gradient_tape/{scope_of(i)}f{layer}/b",
      )
    }
    assert len(together) == 1


def test_order_is_topological_and_copies_share_a_group():
  graph = chain(3, 2)
  pipeline = as_pipeline(graph)
  assert sorted(pipeline.order) == list(range(graph.num_ops))
  assert (pipeline.rank[graph.edge_source] < pipeline.rank[graph.edge_op]).all()
  own = micro_batch_of(graph.names)
  for op in np.flatnonzero(own > 0).tolist():
    first = graph.names[op].replace(scope_of(own[op]), scope_of(0))
    assert pipeline.group[op] == pipeline.group[graph.index[first]]
  assert len(set(pipeline.group[own < 0])) == len(set(graph.group[own < 0]))


def test_names_tell_micro_batches_apart():
  names = [
    "w",
    "micro_batch_3/a/b",
    "gradient_tape/micro_batch_12/a",
    "xmicro_batch_1/a",
  ]
  assert micro_batch_of(names).tolist() == [-1, 3, 12, -1]
  assert list(map(name_without_scope, names)) == [
    "w", "a/b", "gradient_tape/a", "xmicro_batch_1/a",
  ]  # fmt: skip


def test_a_limit_waits_for_no_op_that_an_earlier_micro_batch_needs():
  # As a mask's count over the whole batch: the first loss needs all slices.
  ops = [Op("x", 0.0, (1,), is_input=True)]
  edges = []
  for i in range(2):
    scope = scope_of(i)
    ops += [Op(f"{scope}{x}", 1.0, (1,)) for x in ("slice", "mask", "loss")]
    edges += [
      ("x", 0, f"{scope}slice"),
      (f"{scope}slice", 0, f"{scope}mask"),
      (f"{scope}slice", 0, f"{scope}loss"),
    ]
    edges += [(f"{scope}mask", 0, f"{scope_of(j)}loss") for j in range(2)]
  graph = limit_in_flight(as_pipeline(contracts.make_graph(ops, edges)), 1)
  simulation = simulate(
    graph, free_transfers(1), np.zeros(graph.num_ops, np.int64)
  )
  assert len(simulation.order) == graph.num_ops


def small_budget(graph, cluster, **arguments):
  return plan_micro_batches(
    graph,
    cluster,
    placer="best",
    budget=Budget(evaluations=2000),
    **arguments,
  )


def test_plan_is_the_ideal_pipeline():
  planned = small_budget(chain(4, 2), free_transfers(2))
  assert planned.simulation.makespan_us == 5 * (FORWARD_US + BACKWARD_US)
  assert planned.ordered_ops


def test_short_memory_limits_what_is_in_flight():
  graph = chain(8, 2)
  # 1F1B holds two activations and a received one; GPipe holds eight.
  cluster = free_transfers(2, memory=3 * ACTIVATION)
  eager = simulate(as_pipeline(graph), cluster, layer_of(graph))
  assert overflow(graph, cluster, eager)
  planned = small_budget(graph, cluster)
  assert planned.simulation.makespan_us == 9 * (FORWARD_US + BACKWARD_US)
  assert overflow(graph, cluster, planned.simulation) is None
  assert "at most 2 micro-batches are in flight" in planned.notes[-1]
  # The plan is one of the graph itself, without the limit's control edges.
  simulation = planned.simulation
  again = simulate(
    graph,
    cluster,
    simulation.device,
    policy="strict",
    order=simulation.order,
  )
  assert again.makespan_us == simulation.makespan_us


def test_no_plan_that_fits_is_one_clear_error():
  cluster = free_transfers(2, memory=ACTIVATION // 2)
  with pytest.raises(InfeasiblePlacementError):
    small_budget(chain(4, 2), cluster)


def test_order_that_is_not_kept_has_no_limit():
  planned = plan_micro_batches(
    chain(2, 2), free_transfers(2), order=False, placer="m_topo"
  )
  assert planned.placement.order is None
  assert planned.ordered_ops == ()


def test_new_order_breaks_ties():
  graph = contracts.make_graph([Op("a"), Op("b"), Op("c")])
  other = graph.with_order([2, 0, 1])
  assert other.order.tolist() == [2, 0, 1]
  assert other.rank.tolist() == [1, 2, 0]
  assert graph.order.tolist() == [0, 1, 2]
  assert dataclasses.replace(other).order.tolist() == [0, 1, 2]
