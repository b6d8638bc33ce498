"""Why an op is where it is, worked by hand and against the simulator."""

import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.explanation import explain
from baechi_tf.explanation import Neighbour
from baechi_tf.op_graph import OpGraph
from baechi_tf.reports.explanation_text import explanation_text
from baechi_tf.reports.explanation_text import reasons
from baechi_tf.simulator import simulate
from tests import contracts

HERE, THERE = "/device:CPU:0", "/device:CPU:1"


def _cluster(*memory: int) -> Cluster:
  return Cluster(
    tuple(Device(f"/device:CPU:{k}", "CPU", x) for k, x in enumerate(memory)),
    Link(latency_us=1.0, bytes_per_us=10.0),
    channel="full_duplex",
  )


def _fork_and_join() -> OpGraph:
  """a -> (b, c) -> d: 2, 10, 10 and 3 us; b and c hold 500 and 40 bytes."""
  return OpGraph.build(
    ["a", "b", "c", "d"],
    np.array([2.0, 10.0, 10.0, 3.0]),
    persistent_bytes=[0, 500, 40, 0],
    output_op=[0, 1, 2],
    output_bytes=[20, 10, 10],
    edge_source=[0, 0, 1, 2],
    edge_output=[0, 0, 0, 0],
    edge_target=[1, 2, 3, 3],
  )


def test_explanation_of_a_branch_on_the_other_device():
  """With c there: a 0-2, on its way 2-5, c 5-15, on its way 15-17, d 17-20.

  On the device of the others it would be 2 + 10 + 10 + 3.
  """
  graph, cluster = _fork_and_join(), _cluster(10**9, 10**9)
  simulation = simulate(graph, cluster, np.array([0, 0, 1, 0]))
  found = explain(graph, cluster, simulation, 2)
  assert (found.op, found.device, found.group) == ("c", THERE, ())
  assert (found.start_us, found.finish_us) == (5.0, 15.0)
  assert found.inputs == (Neighbour("a", HERE, 20, 5.0),)
  assert found.outputs == (Neighbour("d", HERE, 10, 17.0),)
  (move,) = found.moves
  assert (move.device, move.makespan_us) == (HERE, 25.0)
  assert move.lacking_bytes == {}
  assert reasons(found) == [
    "it holds 40 B all the time",
    f"on {HERE}, the other device, the step would be 25.0 % longer",
    f"of its inputs, 0 B are made on {THERE}, 20 B are sent to it",
  ]


def test_device_without_memory_lacks_what_the_move_needs():
  """500 + 40 bytes, a's 20 until c ends, b's 10, c's 10: 580."""
  graph, cluster = _fork_and_join(), _cluster(570, 10**9)
  simulation = simulate(graph, cluster, np.array([0, 0, 1, 0]))
  found = explain(graph, cluster, simulation, 2)
  assert found.moves[0].lacking_bytes == {HERE: 10}
  assert "no other device has the memory for it" in reasons(found)
  assert "/device:CPU:0 would lack 10 B" in explanation_text(found)


def test_group_moves_as_one():
  graph = OpGraph.build(
    ["a", "b"], np.array([1.0, 1.0]), persistent_bytes=[3, 4], group=[0, 0]
  )
  cluster = _cluster(10**9, 5)
  simulation = simulate(graph, cluster, np.array([0, 0]))
  found = explain(graph, cluster, simulation, 0)
  assert (found.group, found.group_persistent_bytes) == (("b",), 7)
  assert found.moves[0].lacking_bytes == {THERE: 2}


def test_input_of_the_step_cannot_move():
  graph = OpGraph.build(["x"], np.array([0.0]), is_input=[True])
  cluster = _cluster(10**9, 10**9)
  found = explain(graph, cluster, simulate(graph, cluster, np.array([0])), 0)
  assert found.moves == ()
  assert "which the caller has on" in reasons(found)[0]


@pytest.mark.parametrize("policy", ["strict", "executor"])
@pytest.mark.parametrize("seed", range(10))
def test_moves_are_what_the_simulator_says_of_them(seed, policy):
  rng = np.random.default_rng(seed)
  graph, cluster, device = contracts.placed_at_random(rng, seed, "parallel")
  simulation = simulate(graph, cluster, device, policy=policy)
  op = int(rng.integers(graph.num_ops))
  moves = explain(graph, cluster, simulation, op).moves
  assert len(moves) == cluster.num_devices - 1
  for move in moves:
    moved = device.copy()
    moved[graph.group == graph.group[op]] = cluster.device_names.index(
      move.device
    )
    order = simulation.order if policy == "strict" else None
    expected = simulate(graph, cluster, moved, policy=policy, order=order)
    assert move.makespan_us == expected.makespan_us
    lacking = expected.peak_memory_bytes - cluster.memory_bytes
    assert sum(move.lacking_bytes.values()) == lacking[lacking > 0].sum()
