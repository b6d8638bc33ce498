import json

import keras
import numpy as np
import pytest

from baechi_tf.cli import main as cli
from baechi_tf.cluster import read_cluster
from baechi_tf.costed_model import CostSource
from baechi_tf.costs.carried import carried_over
from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.graph_item import read_item
from baechi_tf.pipeline import cost_item
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import plan
from baechi_tf.python_item import item_from_function
from baechi_tf.python_item import item_from_keras
from baechi_tf.rewrites import rewrite_step
from baechi_tf.saved_model import load
from baechi_tf.saved_model import write_saved_model
from baechi_tf.search.budget import Budget
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

MetaGraphDef = tf.compat.v1.MetaGraphDef


class KerasStep(tf.Module):
  """A training step of two Dense layers that ends in Keras' Adam."""

  def __init__(self):
    super().__init__(name="keras_step")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
      [keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    )
    adam = keras.optimizers.Adam()
    adam.build(model.trainable_variables)
    self.kept = [x.value for x in (*model.variables, *adam.variables)]

    @tf.function(
      input_signature=[
        tf.TensorSpec([3, 4], name="x"),
        tf.TensorSpec([3, 2], name="y"),
      ]
    )
    def train(x, y):
      with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
      trained = model.trainable_variables
      adam.apply(tape.gradient(loss, [v.value for v in trained]), trained)
      return {"loss": loss}

    self.train = train


@pytest.fixture(scope="module")
def keras_step(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("keras") / "model")
  step = KerasStep()
  tf.saved_model.save(step, path, signatures={"train": step.train})
  return path


def op_types(item):
  return [x.op for x in item.graph_def.node if x.name in set(item.op_names)]


def run(path, loader):
  """Returns the losses of three steps, and the variables after them."""
  model = loader(path)  # it keeps the variables alive
  step = model.signatures["train"]
  rng = np.random.default_rng(0)
  losses = [
    step(
      x=tf.constant(rng.standard_normal((3, 4)), tf.float32),
      y=tf.constant(rng.standard_normal((3, 2)), tf.float32),
    )["loss"].numpy()
    for _ in range(3)
  ]
  return losses, [x.numpy() for x in step.variables]


def test_keras_gradients_pass_through_one_op_each(keras_step):
  before = op_types(read_item(keras_step, rewrite=False))
  item = read_item(keras_step)
  assert before.count("IdentityN") == 1
  assert "IdentityN" not in op_types(item)
  assert item.num_rewritten["split_pass_through"] == 1


def test_written_model_has_the_rewrite_and_computes_the_same_bits(
  keras_step, tmp_path
):
  item = read_item(keras_step)
  placed = str(tmp_path / "placed")
  # No graph optimizer: it may fuse other ops where neighbours are apart.
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
  try:
    write_saved_model(
      keras_step, placed, item, models.spread(item, DEVICES[:2])
    )
    again = read_item(placed, rewrite=False)
    assert again.op_names == item.op_names
    assert read_item(placed).num_rewritten == {}
    losses, variables = run(keras_step, tf.saved_model.load)
    placed_losses, placed_variables = run(placed, load)
  finally:
    tf.config.optimizer.set_experimental_options(
      {"disable_meta_optimizer": False}
    )
  assert losses == placed_losses
  for x, y in zip(variables, placed_variables, strict=True):
    np.testing.assert_array_equal(x, y)


def pass_through_graph():
  """Returns a meta graph in which a fetched op waits for an IdentityN."""
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
    y = tf.compat.v1.placeholder(tf.int32, [], name="y")
    first, second = tf.raw_ops.IdentityN(input=[x, y], name="both")
    with tf.control_dependencies([first.op]):
      z = tf.cast(second, tf.float32) * 2.0
    sizes = tf.raw_ops.ShapeN(input=[x, first], name="shapes")
    tf.add_n([z, *(tf.cast(s[0], tf.float32) for s in sizes)], name="z")
  return MetaGraphDef(graph_def=graph.as_graph_def())


def test_a_bare_graph_is_split_and_gives_the_same(tmp_path):
  meta_graph = pass_through_graph()
  graph_def, counts = rewrite_step(meta_graph, ["z"])
  assert counts == {"split_pass_through": 2}
  feed = {"x:0": np.ones(2, "f"), "y:0": 3}
  for graph in (meta_graph.graph_def, graph_def):
    with session(graph) as running:
      assert running.run("z:0", feed) == 10.0
  nodes = {node.name: node for node in graph_def.node}
  waiting = next(x for x in graph_def.node if "^both/output_0" in x.input)
  assert "^both/output_1" in waiting.input
  assert nodes["both/output_1"].attr["T"].type == tf.int32.as_datatype_enum


@pytest.mark.parametrize("roots", [["z", "both", "shapes"], ["x"]])
def test_ops_that_are_fetched_or_not_the_steps_stay(roots):
  meta_graph = pass_through_graph()
  graph_def, counts = rewrite_step(meta_graph, roots)
  assert counts == {}
  assert graph_def == meta_graph.graph_def


@pytest.mark.parametrize("updates", [False, True])
def test_a_custom_gradient_is_kept_where_it_may_still_be_taken(updates):
  meta_graph = pass_through_graph()
  both = next(x for x in meta_graph.graph_def.node if x.name == "both")
  both.attr["_gradient_op_type"].s = b"Straight"
  if updates:
    update = meta_graph.graph_def.node.add(name="u", op="AssignVariableOp")
    update.input.extend(["x", "x"])
  _, counts = rewrite_step(meta_graph, ["z"])
  assert counts == {"split_pass_through": 1 + updates}


def test_keras_reads_the_learning_rate_and_computes_its_step_size_once(
  keras_step,
):
  before, after = (read_item(keras_step, rewrite=x) for x in (False, True))
  # Two of each trained variable; two are the squared error's.
  assert op_types(before).count("Pow") == 2 * 4 + 2
  assert op_types(after).count("Pow") == 2 + 2
  reads = [
    tuple(x.input)
    for x in after.graph_def.node
    if x.op == "ReadVariableOp" and x.name in after.op_names
  ]
  assert len(set(reads)) == len(reads)
  # Four variables, two slots each, once before and once after the update, but
  # for the weights, which nothing reads again; learning rate and iterations.
  assert len(reads) == 4 + 2 * 8 + 2
  lost = len(before.op_names) - len(after.op_names)
  assert after.num_rewritten["share_equal"] > 3 * 10
  assert lost > after.num_rewritten["share_equal"]  # constants go with them


def write_cluster(path, num_devices, memory):
  """Writes CPUs of a memory such as '"1 GiB"' or 1024; returns the path."""
  devices = "".join(
    f'[[device]]\nname = "{x}"\ntype = "CPU"\nmemory = {memory}\n'
    for x in DEVICES[:num_devices]
  )
  speed = 'kind = "CPU"\ncores = 1\nfrequency_mhz = 2000\n'
  speed += "flops_per_cycle = 8\nbytes_per_us = 1e4\nlaunch_us = 1\n"
  link = "[link]\nlatency_us = 50\nbytes_per_us = 3000\n"
  path.write_text(f"{devices}[device_type.CPU]\n{speed}{link}")
  return path


def test_a_step_fits_devices_that_hold_no_op_of_all_gradients(tmp_path):
  """On one device the step needs a third more than either of the two has."""
  keras.utils.set_random_seed(0)
  x = keras.Input((64,))
  towers = [x, x]
  for _ in range(3):
    towers = [keras.layers.Dense(64)(y) for y in towers]
  y = keras.layers.Dense(64)(keras.layers.concatenate(towers))
  model = keras.Model(x, y)
  model.compile("sgd", "mse", jit_compile=False)
  batch = np.zeros((2, 64), "f")
  before, after = (
    item_from_keras(model, batch, batch, rewrite=x) for x in (False, True)
  )
  path, source = tmp_path / "cluster.toml", CostSource(estimate=True)

  def place(cluster, item):
    graph = cost_item(item, cluster, source).graph
    return plan(graph, cluster, budget=Budget(evaluations=1000))

  one = place(read_cluster(write_cluster(path, 1, '"1 GiB"')), after)
  limit = one.simulation.peak_memory_bytes[0] * 3 // 4
  two = read_cluster(write_cluster(path, 2, limit))
  assert (place(two, after).simulation.peak_memory_bytes <= limit).all()
  with pytest.raises(
    InfeasiblePlacementError, match="IdentityN' fits on no device"
  ):
    place(two, before)


_OPERATIONS = {
  "AddV2": np.add, "Mul": np.multiply, "Sub": np.subtract,
  "Maximum": np.maximum,
}  # fmt: skip


def random_program(seed):
  """Returns statements: (what, variable or two operands), in order."""
  rng = np.random.default_rng(seed)
  kinds = ["read", "read", "write", *_OPERATIONS]
  return [(str(rng.choice(kinds)), *rng.integers(2, size=2)) for _ in range(40)]


def traced(program, variables):
  """Returns a step that runs a program and returns all its values."""

  @tf.function
  def step(x):
    values = [x, x * x]
    for what, i, j in program:
      if what == "read":
        values.append(variables[i].value())
      elif what == "write":
        variables[i].assign(values[-1 - j])
      else:
        operation = getattr(tf.raw_ops, what)
        values.append(operation(x=values[-1 - i], y=values[-1 - j]))
    return values

  return step


def interpreted(program, variables, x):
  """Returns the program's values; changes the variables."""
  values = [x, x * x]
  for what, i, j in program:
    if what == "read":
      values.append(variables[i])
    elif what == "write":
      variables[i] = values[-1 - j]
    else:
      values.append(_OPERATIONS[what](values[-1 - i], values[-1 - j]))
  return values


@pytest.mark.parametrize("seed", range(8))
def test_shared_reads_see_what_each_read_saw(seed):
  """Reads between the same writes are one, others are not."""
  program = random_program(seed)
  variables = [tf.Variable(2), tf.Variable(3)]
  step = traced(program, variables)
  item = item_from_function(step, tf.TensorSpec([], tf.int32))
  assert item.num_rewritten["share_equal"] > 0
  expected = np.array([2, 3], np.int32)
  with session(item.graph_def) as running:
    item.initialize(running)
    for x in (np.int32(5), np.int32(-7)):
      values, _ = running.run(
        [list(item.fetches), list(item.targets)], {item.feeds[0].tensor: x}
      )
      with np.errstate(over="ignore"):
        np.testing.assert_array_equal(values, interpreted(program, expected, x))


def test_equal_ops_that_are_fetched_both_stay():
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
    tf.add(tf.add(x, 1.0, name="a"), tf.add(x, 1.0, name="b"), name="z")
  meta_graph = MetaGraphDef(graph_def=graph.as_graph_def())
  assert rewrite_step(meta_graph, ["z"])[1] == {"share_equal": 1}
  assert rewrite_step(meta_graph, ["z", "a", "b"])[1] == {}


def test_python_items_are_left_as_they_are_if_told():
  variables = [tf.Variable(2), tf.Variable(3)]
  step = traced(random_program(0), variables)
  spec = tf.TensorSpec([], tf.int32)
  before = item_from_function(step, spec, rewrite=False)
  after = item_from_function(step, spec)
  assert before.num_rewritten == {} and before.rewritten_for == ()
  lost = len(before.op_names) - len(after.op_names)
  assert lost == after.num_rewritten["share_equal"]


def constant_graph():
  """Returns z = 2 x + (2 + y) * 2 * 2 of one constant 2, and a large one."""
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [32], name="x")
    y = tf.compat.v1.placeholder(tf.float32, [32], name="y")
    two, large = tf.constant(2.0, name="two"), tf.zeros([32], name="large")
    first = tf.multiply(x + large, two, name="first")
    second = tf.add(y + large, two, name="second")
    third = tf.multiply(second, two * two, name="third")
    tf.add(first, third, name="z")
  return MetaGraphDef(graph_def=graph.as_graph_def())


def constants(graph_def):
  """Returns the names of each constant's users."""
  return {
    node.name: [x.name for x in graph_def.node if node.name in x.input]
    for node in graph_def.node
    if node.op == "Const"
  }


def test_every_user_of_a_small_constant_gets_its_own():
  meta_graph = constant_graph()
  graph_def, counts = rewrite_step(meta_graph, ["z"])
  assert counts == {"replicate_constant": 1}
  users = constants(graph_def)
  assert len(users.pop("large")) == 2
  assert users == {
    "two": ["first"], "two/copy_1": ["second"], "two/copy_2": ["mul"]
  }  # fmt: skip
  feed = {"x:0": np.arange(32.0), "y:0": np.ones(32)}
  for graph in (meta_graph.graph_def, graph_def):
    with session(graph) as running:
      expected = 2 * np.arange(32.0) + 12
      np.testing.assert_array_equal(running.run("z:0", feed), expected)
  again = MetaGraphDef(graph_def=graph_def)
  assert rewrite_step(again, ["z"]) == (graph_def, {})


def test_the_fetch_of_a_constant_is_a_use():
  graph_def, counts = rewrite_step(constant_graph(), ["z", "two"])
  assert counts == {"replicate_constant": 1}
  users = constants(graph_def)
  assert users.pop("two") == []
  copies = [f"two/copy_{i}" for i in (1, 2, 3)]
  assert [users[x] for x in copies] == [["first"], ["second"], ["mul"]]
  with session(graph_def) as running:
    assert running.run("two:0") == 2.0


def test_a_constant_that_is_waited_for_stays():
  meta_graph = constant_graph()
  node = next(x for x in meta_graph.graph_def.node if x.name == "z")
  node.input.append("^two")
  assert rewrite_step(meta_graph, ["z"])[1] == {}


def test_a_small_constant_sits_with_its_user(keras_step):
  item = read_item(keras_step)
  costs = {
    x.name: OpCost(x.op, 1.0, output_bytes=(4,) * 9)
    for x in item.graph_def.node
    if x.name in item.op_names
  }
  graph = op_graph_from_item(item, {"CPU": costs}, ["CPU"])
  types = {node.name: node.op for node in item.graph_def.node}
  is_constant = np.array([types[x] == "Const" for x in graph.names])
  assert is_constant.sum() > 3
  from_constant = is_constant[graph.edge_source]
  group = graph.group
  same = group[graph.edge_source] == group[graph.edge_op]
  assert same[from_constant].all()


def test_a_profile_of_the_model_as_it_was_serves_the_rewritten(keras_step):
  item = read_item(keras_step)
  before = read_item(keras_step, rewrite=False)
  (old,) = (x.name for x in before.graph_def.node if x.op == "IdentityN")
  sizes = tuple(range(8, 16))
  profile = {"CPU": {old: OpCost("IdentityN", 80.0, output_bytes=sizes)}}
  costs = carried_over(profile, item)["CPU"]
  part = costs[f"{old}/output_3"]
  assert part == OpCost("Identity", 10.0, output_bytes=(11,))
  assert carried_over(profile, before) == profile
  copy = next(x for x in item.op_names if x.endswith("/copy_1"))
  constant = copy.removesuffix("/copy_1")
  profile = {"CPU": {constant: OpCost("Const", 2.0, output_bytes=(4,))}}
  assert carried_over(profile, item)["CPU"][copy].compute_time_us == 2.0


def test_place_says_what_it_rewrote_and_leaves_it_if_told(
  keras_step, tmp_path, capsys
):
  cluster = write_cluster(tmp_path / "cluster.toml", 1, '"1 GiB"')
  command = ["place", keras_step, str(tmp_path / "p"), "--estimate", "--json"]
  command += [f"--cluster={cluster}", "--emit=plan", "--overwrite"]
  assert cli.main(command) == 0
  summary = json.loads(capsys.readouterr().out)
  assert summary["num_rewritten"]["split_pass_through"] == 1
  assert any("1 op that passes" in x for x in summary["notes"])
  assert cli.main([*command, "--no-rewrite"]) == 0
  assert json.loads(capsys.readouterr().out)["num_rewritten"] == {}


def test_profile_of_the_rewritten_model_serves_the_model_as_it_was(keras_step):
  before = read_item(keras_step, signature="train", rewrite=False)
  after = read_item(keras_step, signature="train", rewrite=True)
  profile = {"CPU": {x: OpCost("Any", 2.0, 1, 0, (8,)) for x in after.op_names}}
  costs = carried_over(profile, before)["CPU"]
  assert set(before.op_names) <= costs.keys()
  (whole,) = (x.name for x in before.graph_def.node if x.op == "IdentityN")
  num_parts = len(costs[whole].output_bytes)
  assert num_parts > 1
  assert costs[whole] == OpCost(
    "IdentityN", 2.0 * num_parts, num_parts, 0, (8,) * num_parts
  )
