"""Models in TensorFlow 1's format, placed: every loader, every variable."""

import numpy as np
import pytest

from baechi_tf import saved_model
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import read_item
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import executed_nodes
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

# Where ops are on several devices TensorFlow's optimiser fuses other ones,
# which reorders float32 sums.
RTOL = 1e-5
BATCHES = [models.mlp_batch(seed) for seed in range(3)]


def graph_of(path):
  (meta_graph,) = read_saved_model(path).meta_graphs
  return meta_graph.graph_def


def save_vocabulary(path, asset_path) -> str:
  """Saves a model with a table, and with a variable of every kind."""
  v1 = tf.compat.v1
  asset_path.write_text("a\nb\nc\n")
  with tf.Graph().as_default(), v1.Session() as session:
    words = v1.placeholder(tf.string, [None], name="words")
    table = tf.lookup.StaticHashTable(
      tf.lookup.TextFileInitializer(
        str(asset_path),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
      ),
      default_value=-1,
    )
    kinds = {
      "global": {"use_resource": True},
      "local": {"use_resource": True, "collections": ["local_variables"]},
      "hidden": {"use_resource": True, "collections": []},
      "reference": {"use_resource": False},
    }
    variables = [
      v1.get_variable(name, initializer=tf.constant(i, tf.int64), **kind)
      for i, (name, kind) in enumerate(kinds.items())
    ]
    ids = table.lookup(words) + tf.add_n(variables)
    init = tf.group(
      v1.local_variables_initializer(),
      v1.tables_initializer(),
      variables[2].initializer,
    )
    session.run([v1.global_variables_initializer(), init])
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(
      session,
      ["serve"],
      {
        "lookup": v1.saved_model.predict_signature_def(
          {"words": words}, {"ids": ids}
        )
      },
      assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
      main_op=init,
    )
    builder.save()
  return str(path)


@pytest.mark.parametrize("use_resource", [True, False])
def test_placed_v1_model_trains_the_same(tmp_path, use_resource):
  expected = models.run_v1(
    models.save_v1(tmp_path / "model", use_resource), "train", BATCHES
  )
  # Pinned to what is not here, as are the ops that set and restore variables.
  path = models.save_v1(tmp_path / "pinned", use_resource, "/device:GPU:0")
  item = read_item(path)
  plan = models.spread(item, DEVICES[1:])
  out = str(tmp_path / "placed")
  report = saved_model.write_saved_model(path, out, item, plan)
  assert report.specialised == ()
  np.testing.assert_allclose(
    models.run_v1(out, "train", BATCHES, num_devices=len(DEVICES)),
    expected,
    rtol=RTOL,
  )
  train = saved_model.load(out).signatures["train"]
  ran = {}
  for batch, loss in zip(BATCHES, expected, strict=True):
    result, nodes = executed_nodes(train, **batch)
    np.testing.assert_allclose(result["loss"], loss[0], rtol=RTOL)
    ran.update(nodes)  # TensorFlow shows a graph when it first runs
  update = "ResourceApplyMomentum" if use_resource else "ApplyMomentum"
  assert {x for op, x in ran.values() if op == update} == {plan["w"]}


@pytest.mark.parametrize("use_resource", [True, False])
def test_placed_v1_model_keeps_no_device_of_the_source(tmp_path, use_resource):
  path = models.save_v1(tmp_path / "model", use_resource, "/device:GPU:0")
  first, second = tmp_path / "first", tmp_path / "second"
  item = read_item(path)
  plan = models.spread(item, DEVICES[:2])
  saved_model.write_saved_model(path, first, item, plan)
  assert {n.device for n in graph_of(first).node} == {"", *DEVICES[:2]}
  with session(graph_of(first)) as running:
    running.run("init")
    feeds = {"x:0": np.ones((1, 4)), "y:0": [[3, 5]]}
    assert running.run("loss:0", feeds) == 1.0  # (4 - 3)² and (4 - 5)²
  # A plan for a part of the step leaves the rest where the first plan put it,
  # but for what takes the variable.
  part = read_item(first, fetches=["loss:0"])
  other = dict.fromkeys(part.op_names, DEVICES[1]) | {"y": DEVICES[0]}
  saved_model.write_saved_model(first, second, part, other)
  rest = {x for x in plan if x not in other}
  devices = {n.name: n.device for n in graph_of(second).node}
  takes = {n.name for n in graph_of(second).node if "w" in n.input}
  assert rest & takes
  for name in rest:
    assert devices[name] == ("" if name in takes else plan[name])
  np.testing.assert_allclose(
    models.run_v1(str(second), "train", BATCHES, num_devices=2),
    models.run_v1(str(first), "train", BATCHES, num_devices=2),
    rtol=RTOL,
  )


def test_load_puts_v1_variables_and_tables_where_planned(tmp_path):
  path = save_vocabulary(tmp_path / "model", tmp_path / "words.txt")
  item = read_item(path)
  plan = models.spread(item, DEVICES[1:])
  out = tmp_path / "placed"
  saved_model.write_saved_model(path, out, item, plan)
  loaded = saved_model.load(out)
  assert [x.name for x in loaded.variables] == ["global:0", "local:0"]
  for variable in loaded.variables:
    assert variable.device == plan[variable.name.removesuffix(":0")]
  words = np.array(["c", "x", "a"])
  result, ran = executed_nodes(loaded.signatures["lookup"], words=words)
  np.testing.assert_array_equal(result["ids"], [8, 5, 6])
  for name in ("hidden", "reference", "hash_table"):
    assert ran[name][1] == plan[name]
