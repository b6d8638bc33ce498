import numpy as np
import pytest

from baechi_tf import saved_model
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import read_item
from baechi_tf.order_edges import order_edges
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

v1 = tf.compat.v1


def random_step(seed: int, num_ops: int = 24):
  """Returns a graph of MatMuls and sums, a random plan, and a random order.

  Each op takes the outputs of up to two ops before it; the order is topological
  by random priorities.
  """
  rng = np.random.default_rng(seed)
  inputs = [
    rng.choice(i, min(i, rng.integers(3)), replace=False).tolist()
    for i in range(num_ops)
  ]
  with tf.Graph().as_default() as graph:
    source = v1.placeholder(tf.float32, [8, 8], name="x")
    outputs = []
    for i, chosen in enumerate(inputs):
      operands = [outputs[k] for k in chosen] or [source]
      if len(operands) == 2:
        outputs.append(tf.matmul(*operands, name=f"op{i}") / 8)
      else:
        outputs.append(tf.cos(operands[0] + i, name=f"op{i}"))
    tf.stack(outputs, name="all")
  graph_def = graph.as_graph_def()
  names = [node.name for node in graph_def.node]
  device_of = {x: DEVICES[rng.integers(2)] for x in names}
  return graph_def, device_of, random_order(graph_def, rng)


def random_order(graph_def, rng) -> list[str]:
  left = {n.name: {x.split(":")[0] for x in n.input} for n in graph_def.node}
  order = []
  while left:
    name = rng.choice(sorted(x for x in left if not left[x] & left.keys()))
    order.append(str(name))
    del left[name]
  return order


def ancestors(graph_def, inputs=lambda node: node.input) -> dict[str, set]:
  """Returns all that each node waits for; fails if there is a cycle."""
  left = {
    n.name: {x.removeprefix("^").split(":")[0] for x in inputs(n)}
    for n in graph_def.node
  }
  found = {}
  while left:
    ready = [name for name in left if not left[name] & left.keys()]
    assert ready, "a cycle"
    for name in ready:
      sources = left.pop(name)
      found[name] = sources.union(*(found[x] for x in sources))
  return found


@pytest.mark.parametrize("seed", range(12))
def test_order_of_random_graph_is_total_per_device_and_keeps_values(seed):
  graph_def, device_of, order = random_step(seed)
  paths = {name: (name,) for name in device_of}
  edges = order_edges(graph_def, paths, device_of, order)
  placed, _ = rewrite_devices(graph_def, paths, device_of, edges.after)
  waits_for = ancestors(placed)
  last = {}
  for name in order:
    before = last.get(device_of[name])
    assert before is None or before in waits_for[name]
    last[device_of[name]] = name
  assert len(edges.after) + edges.num_implied == len(order) - 2
  assert edges.num_skipped == 0
  without = ancestors(graph_def)
  for name, before in edges.after.items():
    assert device_of[name] == device_of[before]
    assert before not in without[name]
  values = np.random.default_rng(seed).random((8, 8), np.float32)
  results = []
  for graph in (rewrite_devices(graph_def, paths, device_of)[0], placed):
    with session(graph, 2) as running:
      results.append(running.run("all:0", {"x:0": values}))
  np.testing.assert_array_equal(*results)


def test_ops_that_are_not_ordered_get_no_edge():
  graph_def, device_of, order = random_step(0)
  paths = {name: (name,) for name in device_of}
  chosen = order[::3]
  edges = order_edges(graph_def, paths, device_of, chosen)
  assert {*edges.after, *edges.after.values()} <= set(chosen)
  assert order_edges(graph_def, paths, device_of, ()).after == {}


def branches(width: int = 6, size: int = 256):
  """Returns a graph whose MatMuls b0, b1, ... are ready at the same time."""
  with tf.Graph().as_default() as graph:
    x = v1.placeholder(tf.float32, [size, size], name="x")
    found = [tf.matmul(x, x + float(i), name=f"b{i}") for i in range(width)]
    tf.add_n(found, name="sum")
  return graph.as_graph_def()


def test_executor_runs_the_enforced_order():
  """Two logical CPUs: each runs its half of the branches in a random order."""
  graph_def = branches()
  names = [n.name for n in graph_def.node]
  device_of = {x: DEVICES[x in ("b1", "b3", "b4")] for x in names}
  for seed in range(3):
    rng = np.random.default_rng(seed)
    order = [f"b{i}" for i in rng.permutation(6)]
    paths = {name: (name,) for name in names}
    edges = order_edges(graph_def, paths, device_of, order)
    placed, _ = rewrite_devices(graph_def, paths, device_of, edges.after)
    for device, ops in executed(placed).items():
      assert ops == [x for x in order if device_of[x] == device]


def executed(graph_def) -> dict[str, list[str]]:
  """Returns which MatMuls each device runs, in the order of their starts."""
  metadata = v1.RunMetadata()
  with session(graph_def, 2) as running:
    running.run(
      "sum:0",
      {"x:0": np.ones((256, 256), np.float32)},
      options=v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE),
      run_metadata=metadata,
    )
  return {
    stats.device: [
      x.node_name
      for x in sorted(stats.node_stats, key=lambda x: x.all_start_nanos)
      if x.node_name.startswith("b")
    ]
    for stats in metadata.step_stats.dev_stats
  }


def test_node_that_another_step_needs_waits_for_nothing_more():
  graph_def = branches(3)
  other = graph_def.node.add(name="other", op="Identity", input=["b2"])
  other.attr["T"].type = tf.float32.as_datatype_enum
  paths = {n.name: (n.name,) for n in graph_def.node if n.name != "other"}
  device_of = dict.fromkeys(paths, DEVICES[0])
  edges = order_edges(graph_def, paths, device_of, ["b0", "b2", "b1"])
  assert edges.after == {"b1": "b2"}
  assert edges.num_skipped == 1
  none = order_edges(
    graph_def, paths, device_of, ["b0", "b2", "b1"], in_main_graph=False
  )
  assert none.after == {}
  assert none.num_skipped == 2


def test_body_with_switches_gets_no_edge():
  graph_def = branches(3)
  graph_def.node.add(name="switch", op="Switch", input=["b0", "b0"])
  paths = {n.name: (n.name,) for n in graph_def.node}
  device_of = dict.fromkeys(paths, DEVICES[0])
  edges = order_edges(graph_def, paths, device_of, ["b0", "b2", "b1"])
  assert (edges.after, edges.num_skipped) == ({}, 2)


def test_saved_step_in_order_trains_the_same(tmp_path):
  """A step in library functions, called twice with different orders."""
  path = models.save_mlp(tmp_path / "model")
  item = read_item(path, signature="train")
  plan = models.spread(item, DEVICES[:2])
  (meta_graph,) = read_saved_model(path).meta_graphs
  order = random_order(item.graph_def, np.random.default_rng(1))
  order = [name for name in order if name in plan]
  written = saved_model.write_saved_model(
    path, tmp_path / "ordered", item, plan, order=order
  )
  assert written.order.after
  saved_model.write_saved_model(path, tmp_path / "free", item, plan)
  (meta_graph,) = read_saved_model(tmp_path / "ordered").meta_graphs
  for body in meta_graph.graph_def.library.function:
    arguments = {x.name for x in body.signature.input_arg}
    nodes = v1.GraphDef(node=body.node_def)
    ancestors(
      nodes,
      lambda node, arguments=arguments: [
        x for x in node.input if x.split(":")[0] not in arguments
      ],
    )
  batch = {k: tf.constant(v) for k, v in models.mlp_batch(0).items()}
  steps = [
    saved_model.load(tmp_path / name).signatures["train"]
    for name in ("free", "ordered")
  ]
  for _ in range(3):
    losses = [step(**batch)["loss"].numpy() for step in steps]
    assert losses[0] == losses[1]
