import os
import shutil

import numpy as np
import pytest
from google.protobuf import text_format

from baechi_tf.graph_files import graph_file_bytes
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import read_item
from tests import models
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

# The flat graph has the same ops and kernels; TensorFlow's graph optimiser may
# rewrite the two differently and so reorder float32 sums: a few units in the
# last place of each of a handful of sums.
RTOL = 1e-5


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
  return models.save_mlp(tmp_path_factory.mktemp("mlp") / "model")


def run_steps(item, batches):
  """Runs the flat graph once per batch; returns outputs and variables."""
  with session(item.graph_def) as running:
    item.initialize(running)
    outputs = [
      running.run(
        [list(item.fetches), list(item.targets)],
        {feed.tensor: batch[feed.name] for feed in item.feeds},
      )[0]
      for batch in batches
    ]
    return outputs, models.read_variables(running)


def call_signature(loaded, signature, batches):
  """Calls a loaded model's signature once per batch."""
  results = []
  for batch in batches:
    named = loaded.signatures[signature](
      **{key: tf.constant(value) for key, value in batch.items()}
    )
    results.append([named[name].numpy() for name in sorted(named)])
  return results


def nodes_of(item):
  return {node.name: node for node in item.graph_def.node}


def planned_ops(item):
  nodes = nodes_of(item)
  return [nodes[name].op for name in item.op_names]


def node_at(graph_def, path):
  """Follows a call path through the library of the original graph."""
  functions = {f.signature.name: f for f in graph_def.library.function}
  nodes = {node.name: node for node in graph_def.node}
  for call in path[:-1]:
    nodes = {
      node.name: node
      for node in functions[nodes[call].attr["f"].func.name].node_def
    }
  return nodes[path[-1]]


def test_read_item_train_step_gives_same_losses_and_variables(mlp):
  item = read_item(mlp, signature="train")
  batches = [models.mlp_batch(seed) for seed in range(3)]
  outputs, variables = run_steps(item, batches)
  loaded = tf.saved_model.load(mlp)
  expected = call_signature(loaded, "train", batches)
  np.testing.assert_allclose(outputs, expected, rtol=RTOL)
  assert variables["step"] == 3
  for name in ("w", "v"):
    np.testing.assert_allclose(
      variables[name], getattr(loaded, name).numpy(), rtol=RTOL
    )


def test_read_item_plans_no_calls_and_no_saver(mlp):
  ops = set(planned_ops(read_item(mlp, signature="train")))
  assert {"MatMul", "AssignSubVariableOp", "VarHandleOp"} <= ops
  assert not ops & {
    "PartitionedCall",
    "StatefulPartitionedCall",
    "SaveV2",
    "RestoreV2",
  }


def test_read_item_paths_lead_to_the_same_op_in_the_original(mlp):
  item = read_item(mlp, signature="train", rewrite=False)
  (meta_graph,) = read_saved_model(mlp).meta_graphs
  nodes = nodes_of(item)
  real = {name: path for name, path in item.paths.items() if path}
  assert all(nodes[x].op == "NoOp" for x in item.paths.keys() - real.keys())
  for name, path in real.items():
    assert node_at(meta_graph.graph_def, path).op == nodes[name].op
  assert len(set(real.values())) == len(real)
  assert max(map(len, real.values())) == 4


def test_read_item_planned_ops_depend_on_planned_ops_only(mlp):
  item = read_item(mlp, signature="train")
  nodes = nodes_of(item)
  planned = set(item.op_names)
  assert planned == item.paths.keys()
  for name in planned:
    for ref in nodes[name].input:
      assert ref.lstrip("^").partition(":")[0] in planned


def test_read_item_two_calls_of_one_body_are_two_sets_of_ops(mlp):
  item = read_item(mlp, signature="train")
  relu = [x for x in item.op_names if nodes_of(item)[x].op == "Relu"]
  assert len(relu) == 2
  assert item.paths[relu[0]][-1] == item.paths[relu[1]][-1]


def test_read_item_takes_serving_default_among_several(mlp):
  item = read_item(mlp)
  assert [feed.name for feed in item.feeds] == ["x"]
  assert item.feeds[0].shape == (None, models.FEATURES)
  assert item.feeds[0].dtype == tf.float32
  assert "AssignSubVariableOp" not in planned_ops(item)


def test_read_item_unknown_signature_lists_the_known(mlp):
  with pytest.raises(ValueError, match="'serving_default', 'train'"):
    read_item(mlp, signature="trian")


def test_read_item_without_default_signature_lists_them(tmp_path):
  model = models.Mlp()
  signatures = {"train": model.train_step, "predict": model.predict}
  path = tmp_path / "model"
  tf.saved_model.save(model, str(path), signatures=signatures)
  with pytest.raises(ValueError, match="choose one .*'predict', 'train'"):
    read_item(path)


def test_read_item_loop_and_branch_stay_one_op(tmp_path):
  path = models.save_loop(tmp_path / "model")
  item = read_item(path)
  ops = planned_ops(item)
  assert ops.count("While") + ops.count("StatelessWhile") == 1
  assert ops.count("If") + ops.count("StatelessIf") == 1
  batches = [{"x": np.float32([[1, 2], [3, 4]])}, {"x": -np.ones((2, 2), "f")}]
  outputs, variables = run_steps(item, batches)
  expected = call_signature(tf.saved_model.load(path), "run", batches)
  np.testing.assert_allclose(outputs, expected, rtol=RTOL)
  assert variables["count"] == 6


def test_read_item_calls_keep_their_order(tmp_path):
  path = models.save_ordered(tmp_path / "model")
  # (1 + x) · 2, then that + x, · 2, + x, · 2: exact in float32.
  x = np.float32(3)
  before = (1 + x) * 2
  after = ((before + x) * 2 + x) * 2
  for _ in range(5):
    outputs, variables = run_steps(read_item(path), [{"x": x}])
    assert outputs == [[after, before]]
    assert variables["a"] == after


def test_read_item_initialises_tables_from_assets(tmp_path):
  asset = tmp_path / "words.txt"
  path = models.save_vocabulary(tmp_path / "model", asset)
  asset.unlink()
  words = {"words": np.array(["c", "x", "a"])}
  outputs, _ = run_steps(read_item(path), [words])
  np.testing.assert_array_equal(outputs[0][0], [20, -10, 0])


@pytest.mark.parametrize("use_resource", [True, False])
def test_read_item_v1_saved_model_gives_same_losses(tmp_path, use_resource):
  path = models.save_v1(tmp_path / "model", use_resource)
  item = read_item(path)
  variable = "VarHandleOp" if use_resource else "VariableV2"
  # The variable and its momentum; the saver's and initialiser's ops are out.
  assert planned_ops(item).count(variable) == 2
  assert not {"RestoreV2", "Assign"} & set(planned_ops(item))
  batches = [models.mlp_batch(seed) for seed in range(3)]
  outputs, _ = run_steps(item, batches)
  np.testing.assert_allclose(
    outputs, models.run_v1(path, "train", batches), rtol=RTOL
  )


@pytest.mark.parametrize("as_text", [True, False])
def test_read_item_several_graphs_are_chosen_by_tags(tmp_path, as_text):
  path = models.save_v1_two_graphs(tmp_path / "model", as_text)
  batch = [{"x": 5.0}]
  assert run_steps(read_item(path), batch)[0] == [[7.0]]
  assert run_steps(read_item(path, tags=["train"]), batch)[0] == [[10.0]]
  with pytest.raises(ValueError, match="tags 'gpu'; there are 'train', 'ser"):
    read_item(path, tags=["gpu"])


def test_read_item_sparse_signature_feeds_its_parts(tmp_path):
  item = read_item(models.save_v1_sparse(tmp_path / "model"))
  assert [(x.name, x.dtype, x.shape) for x in item.feeds] == [
    ("x/values", tf.float32, (None,)),
    ("x/indices", tf.int64, (None, 2)),
    ("x/dense_shape", tf.int64, (2,)),
  ]
  batch = {
    "x/values": [3.0],
    "x/indices": [[0, 1]],
    "x/dense_shape": [2, 2],
  }
  outputs, _ = run_steps(item, [batch])
  values, indices, shape = outputs[0]
  np.testing.assert_array_equal(values, [6.0])
  np.testing.assert_array_equal(indices, [[0, 1]])
  np.testing.assert_array_equal(shape, [2, 2])


def test_read_item_fed_op_in_the_middle_is_where_the_step_begins(tmp_path):
  with tf.Graph().as_default():
    x = tf.compat.v1.placeholder(tf.float32, [], name="x")
    middle = tf.negative(x, name="middle")
    y = tf.add(middle, 1.0, name="y")
    signature = tf.compat.v1.saved_model.predict_signature_def(
      {"middle": middle}, {"y": y}
    )
    meta_graph = tf.compat.v1.train.export_meta_graph()
  meta_graph.signature_def["run"].CopyFrom(signature)
  path = tmp_path / "model.pb"
  path.write_bytes(meta_graph.SerializeToString())
  item = read_item(path)
  assert set(item.op_names) == {"middle", "y", "y/y"}
  assert run_steps(item, [{"middle": 4.0}])[0] == [[5.0]]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  return models.save_v1_examples(tmp_path_factory.mktemp("examples") / "model")


@pytest.mark.parametrize(
  ("signature", "placeholder"),
  [("parsed", "ParseExample/ParseExampleV2"), ("defaulted", "defaulted")],
)
def test_read_item_fed_op_does_not_run(examples, signature, placeholder):
  item = read_item(examples, signature=signature)
  (feed,) = item.feeds
  assert nodes_of(item)[placeholder].op == "Placeholder"
  assert feed.tensor == f"{placeholder}:0"
  assert item.paths[placeholder] == (placeholder,)
  assert not {"ParseExampleV2", "ones", "examples"} & set(item.op_names)
  outputs, _ = run_steps(item, [{"in": np.float32([[3], [5]])}])
  np.testing.assert_array_equal(outputs[0][0], [[3.5], [4.5]])


def fed_item(tmp_path, feed, fetches):
  """Returns the item of x -> split in two, and what follows, fed inside."""
  with tf.Graph().as_default():
    x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
    low, high = tf.split(tf.negative(x, name="minus"), 2, name="halves")
    with tf.control_dependencies([low.op]):
      tf.identity(tf.constant(1.0), name="after")
    tf.add(low, 1.0, name="low")
    tf.add(high, 1.0, name="high")
    get = tf.compat.v1.get_default_graph().get_tensor_by_name
    signature = tf.compat.v1.saved_model.predict_signature_def(
      {x: get(x) for x in feed}, {x: get(x) for x in fetches}
    )
    meta_graph = tf.compat.v1.train.export_meta_graph()
  meta_graph.signature_def["run"].CopyFrom(signature)
  path = tmp_path / "model.pb"
  path.write_bytes(meta_graph.SerializeToString())
  return read_item(path)


@pytest.mark.parametrize(
  ("feed", "fetches", "runs", "expected"),
  [
    # The op runs for its other output: x = [5, 7].
    (["halves:0", "x:0"], ["high:0", "low:0"], True, [[-6.0], [4.0]]),
    # All that is used is fed.
    (["halves:0"], ["low:0"], False, [[4.0]]),
    (["halves:0", "halves:1"], ["high:0", "low:0"], False, [[5.0], [4.0]]),
    # What waits for the op waits for it although its output is fed.
    (["halves:0", "x:0"], ["after:0", "low:0"], True, [1.0, [4.0]]),
    # A fetch that is fed.
    (["halves:0"], ["halves:0"], False, [[3.0]]),
  ],
)
def test_read_item_feeds_one_output_of_several(
  tmp_path, feed, fetches, runs, expected
):
  item = fed_item(tmp_path, feed, fetches)
  assert ("minus" in item.op_names) == runs
  assert ("Split" in planned_ops(item)) == runs
  values = {"halves:0": [3.0], "halves:1": [4.0], "x:0": [5.0, 7.0]}
  outputs, _ = run_steps(item, [values])
  for value, right in zip(outputs[0], expected, strict=True):
    np.testing.assert_array_equal(value, right)


def step_graph():
  """Returns a GraphDef with a resource variable that counts its steps."""
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
    tf.compat.v1.placeholder(tf.float32, [], name="unused")
    count = tf.compat.v1.get_variable("count", [], use_resource=True)
    with tf.control_dependencies([count.assign_add(1.0)]):
      y = tf.add(x, count.read_value(), name="y")
    tf.split(y, 2, axis=1, name="halves")
    tf.no_op(name="nothing")
  return graph


@pytest.mark.parametrize("suffix", ["pb", "pbtxt"])
@pytest.mark.parametrize("kind", ["graph", "meta_graph"])
def test_read_item_graph_file_runs_from_zeros(tmp_path, suffix, kind):
  graph = step_graph()
  if kind == "graph":
    proto = graph.as_graph_def()
  else:
    with graph.as_default():
      proto = tf.compat.v1.train.export_meta_graph()
  path = tmp_path / f"model.{suffix}"
  if suffix == "pb":
    path.write_bytes(proto.SerializeToString())
  else:
    path.write_text(text_format.MessageToString(proto))
  item = read_item(path, fetches=("y", "halves:1", "nothing"))
  assert item.fetches == ("y:0", "halves:1")
  assert item.targets == ("nothing",)
  assert [feed.name for feed in item.feeds] == ["x"]
  batch = {"x": np.float32([[5, 7]])}
  outputs, _ = run_steps(item, [batch, batch])
  np.testing.assert_array_equal(outputs[0][0], [[6, 8]])
  np.testing.assert_array_equal(outputs[1][1], [[9]])


@pytest.fixture
def graph_file(tmp_path):
  path = tmp_path / "graph.pb"
  path.write_bytes(graph_file_bytes(step_graph().as_graph_def(), path))
  return path


def test_read_item_graph_without_fetch_lists_sinks(graph_file):
  with pytest.raises(ValueError, match="fetches=; .*'halves', 'nothing'"):
    read_item(graph_file)


def test_read_item_missing_fetch_suggests_names(graph_file):
  with pytest.raises(ValueError, match="no op 'halfs'.* mean 'halves'"):
    read_item(graph_file, fetches=["halfs:0"])


def test_read_item_missing_output_tells_how_many(graph_file):
  with pytest.raises(ValueError, match="'halves' has 2 outputs.*'halves:2'"):
    read_item(graph_file, fetches=["halves:2"])


def test_read_item_unknown_op_is_rejected(tmp_path):
  graph_def = step_graph().as_graph_def()
  next(x for x in graph_def.node if x.name == "y").op = "MyAdd"
  path = tmp_path / "graph.pb"
  path.write_bytes(graph_file_bytes(graph_def, path))
  with pytest.raises(ValueError, match="has no op 'MyAdd', but node 'y' is"):
    read_item(path, fetches=["y:0"])


def test_read_item_colocation_with_no_node_is_rejected(tmp_path):
  graph_def = step_graph().as_graph_def()
  node = next(x for x in graph_def.node if x.name == "y")
  node.attr["_class"].list.s.append(b"loc:@gone")
  with pytest.raises(ValueError, match="unknown node"):
    tf.import_graph_def(graph_def)
  path = tmp_path / "graph.pb"
  path.write_bytes(graph_file_bytes(graph_def, path))
  with pytest.raises(ValueError, match="'y' is to share a device with 'gone'"):
    read_item(path, fetches=["y"])


def test_read_item_lowered_loop_is_rejected(tmp_path):
  path = tmp_path / "loop.pb"
  path.write_bytes(graph_file_bytes(models.lowered_loop(), path))
  with pytest.raises(ValueError, match="is a NextIteration: .*control_flow_v2"):
    read_item(path, fetches=["y"])


def test_read_item_directory_without_model_is_rejected(tmp_path):
  with pytest.raises(ValueError, match="no saved_model.pb"):
    read_item(tmp_path)


def test_read_item_model_in_chunks_is_rejected(tmp_path):
  (tmp_path / "saved_model.cpb").write_bytes(b"x")
  with pytest.raises(ValueError, match="saved_model.cpb.*in variables"):
    read_item(tmp_path)


def test_read_item_model_without_signature_lists_sinks(tmp_path):
  path = str(tmp_path / "model")
  tf.saved_model.save(models.Mlp(), path)
  with pytest.raises(ValueError, match="no signature: name .* fetches="):
    read_item(path)
  with pytest.raises(ValueError, match="no signature 'run'; there are none"):
    read_item(path, signature="run")


@pytest.mark.parametrize("fetch", ["y:z", "^y", "", "y:0:1"])
def test_read_item_fetch_that_is_no_name_is_rejected(graph_file, fetch):
  with pytest.raises(ValueError, match="is no tensor or op"):
    read_item(graph_file, fetches=[fetch])


def test_read_item_resource_placeholder_is_rejected(tmp_path):
  model = models.Mlp()
  path = tmp_path / "graph.pb"
  concrete = model.predict.get_concrete_function()
  path.write_bytes(graph_file_bytes(concrete.graph.as_graph_def(), path))
  with pytest.raises(ValueError, match="takes a resource, which cannot be fed"):
    read_item(path, fetches=["Identity"])


@pytest.mark.parametrize(
  ("name", "message"),
  [("model.onnx", "not a model"), ("model.keras", "export_keras, or place it")],
)
def test_read_item_other_file_is_rejected(name, message, tmp_path):
  path = tmp_path / name
  path.write_bytes(b"x")
  with pytest.raises(ValueError, match=f"{name}: .*{message}"):
    read_item(path)


def test_read_item_missing_file_is_an_os_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="none.pb"):
    read_item(tmp_path / "none.pb")


@pytest.mark.parametrize("data", [b"", b"\x0a\xff\xff", b"hello", b"\x00" * 9])
@pytest.mark.parametrize("suffix", ["pb", "pbtxt"])
def test_read_item_damaged_graph_is_rejected(tmp_path, suffix, data):
  path = tmp_path / f"graph.{suffix}"
  path.write_bytes(data)
  with pytest.raises(ValueError, match="neither a GraphDef nor"):
    read_item(path, fetches=["y"])


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_read_item_truncated_saved_model_is_rejected(tmp_path, mlp, keep):
  path = tmp_path / "model"
  shutil.copytree(mlp, path)
  file = path / "saved_model.pb"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match="damaged or truncated|holds no graph"):
    read_item(path)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_read_item_missing_variables_are_named(tmp_path, mlp, suffix):
  path = tmp_path / "model"
  shutil.copytree(mlp, path)
  os.remove(path / "variables" / ("variables" + suffix))
  with pytest.raises(ValueError, match=r"variables\.index|0 of 1 data files"):
    read_item(path)


def test_read_item_wrong_tags_lists_the_right(mlp):
  with pytest.raises(ValueError, match="tags 'gpu'; there are 'serve'"):
    read_item(mlp, tags=["gpu"])
