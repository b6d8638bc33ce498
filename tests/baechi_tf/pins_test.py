"""Pins: every placer, the search and the bounds keep them; errors name them."""

import dataclasses
import re

import numpy as np
import pytest

from baechi_tf.cluster import cluster_from_tables
from baechi_tf.op_graph import FREE
from baechi_tf.pins import pinned_graph
from baechi_tf.placement import check_placement
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement import placement_for
from baechi_tf.placers import PLACERS
from baechi_tf.planner import BEST
from baechi_tf.planner import plan
from baechi_tf.search.budget import Budget
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def a_case(seed: int, max_ops: int, *, num_devices: int = 3):
  """Returns a random graph and cluster, and pins of some of its groups."""
  rng = np.random.default_rng(seed)
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = contracts.random_graph(
    rng,
    int(rng.integers(2, max_ops + 1)),
    density=rng.choice([0.1, 0.4]),
    device_types=types,
    group_share=0.3,
  )
  if rng.random() < 0.3:
    is_input = np.zeros(graph.num_ops, bool)
    is_input[graph.order[0]] = True
    graph = dataclasses.replace(graph, is_input=is_input)
  cluster = contracts.random_cluster(rng, num_devices, types=types)
  pins = {}
  share = rng.choice([0.2, 0.5, 1.0])
  for group in np.flatnonzero(rng.random(graph.num_groups) < share):
    op = int(np.argmax(graph.group == group))
    if not graph.is_on_client[op]:
      pins[f"^{graph.names[op]}$"] = f"d{rng.integers(num_devices)}"
  return graph, cluster, pins


def wanted(graph, pins) -> np.ndarray:
  """Returns the device that pins of one name give each op, or `FREE`."""
  result = np.full(graph.num_ops, FREE)
  for regex, device in pins.items():
    op = graph.index[regex.strip("^$")]
    result[graph.group == graph.group[op]] = int(device[1:])
  result[graph.is_on_client] = 0
  return result


def keeps(device, expected) -> bool:
  return (device == expected)[expected != FREE].all()


@pytest.mark.parametrize("seed", range(40))
def test_every_placer_keeps_pins_and_groups(seed):
  graph, cluster, pins = a_case(seed, 20)
  expected = wanted(graph, pins)
  expected[graph.is_on_client] = FREE  # the planner's business
  pinned, _ = pinned_graph(graph, cluster, pins)
  for name, place in PLACERS.items():
    placement = place(pinned, cluster)
    assert keeps(placement.device, expected), name
    of_group = np.full(graph.num_groups, FREE)
    of_group[graph.group] = placement.device
    np.testing.assert_array_equal(of_group[graph.group], placement.device)


@pytest.mark.parametrize("seed", range(12))
def test_plans_and_the_search_keep_pins(seed):
  graph, cluster, pins = a_case(seed, 30)
  expected = wanted(graph, pins)
  for placer in [*PLACERS, BEST]:
    planned = plan(
      graph,
      cluster,
      placer=placer,
      pins=pins,
      budget=Budget(evaluations=300 if placer == BEST else 0),
    )
    for candidate in planned.candidates:
      assert keeps(candidate.simulation.device, expected), candidate.placer
    assert planned.bound.us <= planned.simulation.makespan_us


def a_step():
  """x -> a -> (b, c); b and c share a device, x is an input."""
  ops = [
    Op("x", 0.0, (8,), is_input=True),
    Op("a", 4.0, (8,)),
    Op("b", 4.0, (8,), persistent=50, group="g"),
    Op("c", 4.0, (8,), persistent=50, group="g"),
  ]
  return make_graph(ops, [("x", 0, "a"), ("a", 0, "b"), ("a", 0, "c")])


def test_pin_holds_what_shares_a_device_and_leaves_inputs():
  graph, pins = pinned_graph(a_step(), make_cluster(), {"[xab]": "d1"})
  assert graph.fixed_device.tolist() == [0, 1, 1, 1]
  assert (pins[0].num_ops, pins[0].num_sharing) == (2, 1)
  assert pins[0].note == (
    "pin '[xab]=d1' holds 2 ops, and 1 more that must share its device"
  )


def test_pins_of_the_cluster_file_count():
  tables = {
    "device": [{"name": x, "memory": 1000} for x in ("d0", "d1")],
    "link": {"latency_us": 0, "bytes_per_us": 1},
    "pins": {"a": "d1"},
  }
  cluster = cluster_from_tables(tables)
  planned = plan(a_step(), cluster, pins={"b": "d0"})
  assert planned.placement.device.tolist() == [0, 1, 0, 0]
  assert [x.regex for x in planned.pins] == ["a", "b"]
  with pytest.raises(ValueError, match="'a=d1', of the cluster, and 'a=d0'"):
    plan(a_step(), cluster, pins={"a": "d0"})
  for wrong in ([], {"a": 1}):
    with pytest.raises(ValueError, match="pins must be a table of"):
      cluster_from_tables(tables | {"pins": wrong})


@pytest.mark.parametrize(
  "pins, message",
  [
    (
      {"q": "d1"},
      "pin 'q=d1' matches none of the 4 ops, which have names such",
    ),
    ({"a": "d7"}, "no device 'd7'; its devices are d0, d1"),
    ({"(": "d1"}, "pin '(=d1': not a regular expression: missing )"),
    ({"": "d1"}, "the regular expression is empty"),
    ({"x": "d1"}, "matches only inputs of the step, such as 'x'"),
    (
      {"a": "d1", "^a$": "d0"},
      "'a=d1' and '^a$=d0' contradict each other: both",
    ),
    ({"b": "d1", "c": "d0"}, "op 'c' must share a device with op 'b'"),
    ({"q" * 300: "d1"}, "pin 'qqq"),
  ],
)
def test_bad_pins_are_one_clear_error(pins, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    pinned_graph(a_step(), make_cluster(), pins)
  assert len(str(caught.value)) < 250


def test_op_that_shares_the_device_of_an_input_stays():
  ops = [Op("x", 0.0, (8,), is_input=True, group="g"), Op("a", group="g")]
  graph = make_graph(ops, [("x", 0, "a")])
  with pytest.raises(ValueError, match="'a', which must share a device with"):
    pinned_graph(graph, make_cluster(), {"a": "d1"})
  pinned, _ = pinned_graph(graph, make_cluster(), {"a": "d0"})
  assert pinned.fixed_device.tolist() == [0, 0]


def test_device_without_room_is_named_with_its_pins():
  # b and c hold 50 bytes each; an op its output and its input beside: 16.
  pins = {"a": "d1", "b": "d1"}
  pinned_graph(a_step(), make_cluster(memory=[1000, 116]), pins)
  with pytest.raises(
    InfeasiblePlacementError,
    match="d1 has 115 bytes, too few for the 3 ops that are pinned to it by"
    " 'a=d1' and 'b=d1': they hold 100 persistent bytes, and op 'a' needs 16",
  ):
    pinned_graph(a_step(), make_cluster(memory=[1000, 115]), pins)


def test_plan_that_pins_leave_no_room_for_names_them():
  # Each op has room; but a's output is held, beside b's and c's, until d ends.
  ops = [Op(name, 1.0, (8,)) for name in "abc"] + [Op("d")]
  edges = [("a", 0, "b"), ("b", 0, "c"), ("a", 0, "d"), ("c", 0, "d")]
  graph = make_graph(ops, edges)
  cluster = make_cluster(memory=[1000, 20])
  with pytest.raises(
    InfeasiblePlacementError, match=r"d1.*A plan must keep '\[abcd\]=d1'"
  ):
    plan(graph, cluster, placer="m_etf", pins={"[abcd]": "d1"})


def test_placement_that_breaks_a_pin_is_refused():
  cluster = make_cluster()
  graph, _ = pinned_graph(a_step(), cluster, {"a": "d1"})
  device_of = dict(zip(graph.names, ["d0", "d1", "d0", "d0"], strict=True))
  check_placement(graph, cluster, placement_for(graph, cluster, device_of))
  with pytest.raises(ValueError, match="op 'a' must be on d1, as a pin"):
    placement_for(graph, cluster, device_of | {"a": "d0"})


def test_graph_keeps_its_own_pins_beside_new_ones():
  cluster = make_cluster()
  graph = a_step().with_pins([FREE, 1, FREE, FREE])
  assert plan(graph, cluster).placement.device[1] == 1
  with pytest.raises(ValueError, match="keep_devices=True keeps contradict"):
    pinned_graph(graph, cluster, {"a": "d0"})
  with pytest.raises(ValueError, match="'c' is pinned to another device"):
    a_step().with_pins([FREE, FREE, 1, 0])
