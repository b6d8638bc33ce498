"""Contiguous pipelines of steps that are written by hand."""

import itertools

import numpy as np
import pytest

from baechi_tf.layer_line import layer_lines
from baechi_tf.micro_batch_graph import as_pipeline
from baechi_tf.micro_batch_graph import limit_in_flight
from baechi_tf.micro_batch_plan import plan_micro_batches
from baechi_tf.micro_batch_stages import pipeline_splits
from baechi_tf.peak_memory import overflow
from baechi_tf.search.budget import Budget
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import Op
from tests.micro_batch_chain import BACKWARD_US
from tests.micro_batch_chain import chain
from tests.micro_batch_chain import FORWARD_US
from tests.micro_batch_chain import free_transfers
from tests.micro_batch_chain import layer_of


@pytest.mark.parametrize("num", [1, 2, 8])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_split_of_equal_layers_takes_what_the_formula_says(num, stages):
  graph = as_pipeline(chain(num, 12))
  cluster = free_transfers(stages)
  stage_us = (FORWARD_US + BACKWARD_US) * 12 / stages
  makespans = [
    simulate(graph, cluster, device).makespan_us
    for device in pipeline_splits(graph, cluster, num)
    if device.max() == stages - 1
  ]
  # GPipe's and 1F1B's.
  assert min(makespans) == (num + stages - 1) * stage_us


def test_line_has_variables_gradients_and_updates_beside_their_layers():
  graph = as_pipeline(chain(3, 5))
  layer = layer_of(graph)
  is_slice = np.array([x.endswith(("slice", "x")) for x in graph.names])
  for line in layer_lines(graph):
    in_line = np.argsort(line.position[~is_slice], kind="stable")
    assert (np.diff(layer[~is_slice][in_line]) >= 0).all()
    for a, b in zip(graph.group, line.position, strict=True):
      assert line.groups[b] == a


def test_line_with_ops_late_has_a_branch_where_it_joins():
  names = ["a0", "a1", "a2", "join", "side"]
  ops = [Op("x", 0.0, (8,), is_input=True)]
  ops += [Op(f"micro_batch_0/{name}", 1.0, (8,)) for name in names]
  pairs = [("a0", "a1"), ("a1", "a2"), ("a2", "join"), ("side", "join")]
  edges = [(f"micro_batch_0/{a}", 0, f"micro_batch_0/{b}") for a, b in pairs]
  edges += [("x", 0, f"micro_batch_0/{name}") for name in ("a0", "side")]
  graph = as_pipeline(contracts.make_graph(ops, edges))
  early, late = (
    dict(zip(graph.names, line.position.tolist(), strict=True))
    for line in layer_lines(graph)
  )
  assert early["micro_batch_0/side"] < early["micro_batch_0/a1"]
  assert late["micro_batch_0/side"] > late["micro_batch_0/a1"]


def test_long_line_is_cut_near_its_best_places():
  graph = as_pipeline(chain(2, 500))
  cluster = free_transfers(4)
  makespan_us = min(
    simulate(graph, cluster, device).makespan_us
    for device in pipeline_splits(graph, cluster, 2)
  )
  assert makespan_us < 1.02 * 5 * (FORWARD_US + BACKWARD_US) * 125


def test_splits_keep_groups_together_and_inputs_on_the_client():
  graph = as_pipeline(chain(2, 6, weights=[1, 2, 3, 4, 5, 6]))
  for device in pipeline_splits(graph, free_transfers(3), 2):
    first = np.unique(graph.group, return_index=True)[1]
    np.testing.assert_array_equal(device, device[first][graph.group])
    assert device[graph.index["x"]] == 0


@pytest.mark.parametrize("seed", range(4))
def test_plan_is_near_the_best_contiguous_pipeline(seed):
  rng = np.random.default_rng(seed)
  num, num_layers, num_devices = 4, 7, 3

  def draw(low, high):
    return rng.integers(low, high, num_layers).tolist()

  graph = chain(
    num,
    num_layers,
    forward_us=draw(5, 20),
    activations=draw(8, 64),
    weights=draw(50, 200),
  )
  total = int(graph.persistent_bytes.sum())
  cluster = contracts.make_cluster(
    num_devices, memory=int(0.6 * total), latency_us=1.0, bytes_per_us=16.0
  )
  best_us = brute_force_us(graph, cluster, num)
  planned = plan_micro_batches(
    graph, cluster, placer="best", budget=Budget(evaluations=300)
  )
  assert len(set(planned.placement.device.tolist())) > 1
  assert planned.simulation.makespan_us <= 1.15 * best_us


def brute_force_us(graph, cluster, num):
  """Returns the step of the best cuts between layers that fit the memory."""
  layer = layer_of(graph)
  pipeline = as_pipeline(graph)
  steps = [pipeline, *(limit_in_flight(pipeline, i) for i in range(1, num))]
  best_us = np.inf
  for num_cuts in range(cluster.num_devices):
    for cuts in itertools.combinations(range(1, layer.max() + 1), num_cuts):
      device = np.searchsorted(cuts, layer, side="right")
      for step in steps:
        simulation = simulate(step, cluster, device)
        if overflow(step, cluster, simulation) is None:
          best_us = min(best_us, simulation.makespan_us)
  return best_us
