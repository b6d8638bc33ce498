"""The benchmark of the search."""

import numpy as np

from baechi_tf.search.budget import Budget
from tests import contracts
from tools import bench_search


def test_search_is_between_the_placers_and_the_least():
  outcome = bench_search.measure(
    60, "priority", Budget(evaluations=500), density=3.0, delay=2.0
  )
  assert outcome.least_us <= outcome.search_us <= outcome.placers_us
  assert outcome.evaluations_per_s > 0


def test_cost_graph_without_a_plan_takes_for_ever():
  ops = [contracts.Op("big", persistent=90), contracts.Op("small")]
  graph = contracts.make_graph(ops)
  for memory, fits in ((100, True), (80, False)):
    cluster = contracts.make_cluster(2, memory=memory)
    outcome = bench_search.measure_graph(
      "graph.json", graph, cluster, Budget(evaluations=50), "executor"
    )
    assert np.isfinite(outcome.search_us) == fits


def test_small_graphs_get_the_fastest_placement():
  gaps = bench_search.small_gaps(12, Budget(evaluations=3000))
  assert (gaps >= -1e-9).all()
  assert (gaps <= 1e-9).mean() >= 0.9
