import os
import resource
import shutil

import numpy as np
import pytest
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

from baechi_tf import private
from baechi_tf import saved_model
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import read_item
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import executed_nodes
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

# The same kernels run on every device; but where ops are on several devices
# TensorFlow's optimiser fuses other ones, which reorders float32 sums.
RTOL = 1e-5
BATCHES = [models.mlp_batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
  return models.save_mlp(tmp_path_factory.mktemp("mlp") / "model")


@pytest.fixture(scope="module")
def item(mlp):
  return read_item(mlp, signature="train", rewrite=False)


@pytest.fixture(scope="module")
def plan(item):
  return models.spread(item, DEVICES)


@pytest.fixture(scope="module")
def placed(mlp, item, plan, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("placed") / "model")
  report = saved_model.write_saved_model(mlp, path, item, plan)
  assert report.path == path
  return path


def graph_of(path):
  (meta_graph,) = read_saved_model(path).meta_graphs
  return meta_graph.graph_def


def files_of(path):
  """Returns the bytes of all files in a directory."""
  found = {}
  for directory, _, names in os.walk(path):
    for name in names:
      full = os.path.join(directory, name)
      with open(full, "rb") as file:
        found[os.path.relpath(full, path)] = file.read()
  return found


def without_devices(graph_def, copies):
  """Clears all devices, and points calls of copies at what they copy."""
  result = tf.compat.v1.GraphDef()
  result.CopyFrom(graph_def)
  origin = {}
  for name in copies:
    origin[name] = name[: name.rindex("_placed_")]
  bodies = [f.node_def for f in result.library.function]
  for nodes in (result.node, *bodies):
    for node in nodes:
      node.device = ""
      node.op = origin.get(node.op, node.op)
      for key in list(node.attr):
        value = node.attr[key]
        if value.WhichOneof("value") == "func":
          value.func.name = origin.get(value.func.name, value.func.name)
  functions = {f.signature.name: f for f in result.library.function}
  for copy, name in origin.items():
    functions[copy].signature.name = name
    assert functions[copy] == functions[name]
  # Copies are added at the end.
  del result.library.function[len(functions) - len(origin) :]
  return result


def agreement(item, plan, nodes):
  """Returns how many planned ops ran, and those that ran elsewhere.

  Only ops inside the function that the signature calls are looked at: its own
  few are replaced when that function is called directly. A node of the same
  name but another op is what TensorFlow's optimiser fused from several ops.
  """
  op_of = {node.name: node.op for node in item.graph_def.node}
  found, elsewhere = 0, []
  for name, device in plan.items():
    path = item.paths[name]
    inner = "/".join(path[1:])
    op, ran_on = nodes.get(inner, (None, None))
    if len(path) > 2 and op == op_of[name]:
      found += 1
      if ran_on != device:
        elsewhere.append((inner, device, ran_on))
  return found, elsewhere


def test_rewrite_devices_changes_only_devices_and_calls_of_copies(
  mlp, item, plan
):
  original = graph_of(mlp)
  before = original.SerializeToString(deterministic=True)
  placed, copies = rewrite_devices(original, item.paths, plan)
  assert original.SerializeToString(deterministic=True) == before
  assert len(copies) >= 1
  assert without_devices(placed, copies) == without_devices(original, ())


def test_rewrite_devices_sets_every_planned_op(mlp, item, plan):
  placed, _ = rewrite_devices(graph_of(mlp), item.paths, plan)
  functions = {f.signature.name: f for f in placed.library.function}
  for name, device in plan.items():
    path = item.paths[name]
    nodes = {node.name: node for node in placed.node}
    for call in path[:-1]:
      body = functions[nodes[call].attr["f"].func.name]
      nodes = {node.name: node for node in body.node_def}
    if path:
      assert nodes[path[-1]].device == device


def test_rewrite_devices_equal_plans_share_the_body(mlp, item):
  plan = dict.fromkeys(item.op_names, DEVICES[1])
  placed, copies = rewrite_devices(graph_of(mlp), item.paths, plan)
  assert copies == ()
  assert len(placed.library.function) == len(graph_of(mlp).library.function)


def test_rewrite_devices_is_deterministic(mlp, item, plan):
  results = [rewrite_devices(graph_of(mlp), item.paths, plan) for _ in range(2)]
  assert results[0] == results[1]


def test_rewrite_devices_loop_body_follows_the_loop(tmp_path):
  path = models.save_loop(tmp_path / "model")
  item = read_item(path, rewrite=False)
  plan = models.spread(item, DEVICES)
  placed, copies = rewrite_devices(graph_of(path), item.paths, plan)
  functions = {f.signature.name: f for f in placed.library.function}
  (loop,) = (
    node
    for function in placed.library.function
    for node in function.node_def
    if node.op in ("While", "StatelessWhile")
  )
  assert loop.device
  for key in ("cond", "body"):
    body = functions[loop.attr[key].func.name]
    assert {node.device for node in body.node_def} == {loop.device}
  assert without_devices(placed, copies) == without_devices(graph_of(path), ())


def test_rewrite_devices_loops_of_one_body_apart_get_two(tmp_path):
  path = models.save_two_loops(tmp_path / "model")
  item = read_item(path, rewrite=False)
  nodes = {node.name: node for node in item.graph_def.node}
  loops = [x for x in item.op_names if nodes[x].op.endswith("While")]
  assert len(loops) == 2
  plan = dict.fromkeys(item.op_names, DEVICES[0]) | {loops[1]: DEVICES[1]}
  out = tmp_path / "placed"
  report = saved_model.write_saved_model(path, out, item, plan)
  # The function that holds the loop, the loop's condition and its body.
  assert len(report.specialised) == 3
  x = np.float32([[1, 2], [3, 4]])
  expected = tf.saved_model.load(path).signatures["run"](x=tf.constant(x))
  result, ran = executed_nodes(saved_model.load(out).signatures["run"], x=x)
  np.testing.assert_allclose(result["y"], expected["y"], rtol=RTOL)
  assert {DEVICES[0], DEVICES[1]} <= {device for _, device in ran.values()}


def test_rewrite_devices_unknown_op_is_rejected(mlp, item):
  with pytest.raises(ValueError, match="op 'nowhere' that the model has not"):
    rewrite_devices(graph_of(mlp), item.paths, {"nowhere": DEVICES[0]})


def test_rewrite_devices_path_of_another_model_is_rejected(mlp):
  paths = {"a": ("serving_default_x", "a")}
  with pytest.raises(ValueError, match="'serving_default_x'.*is no call"):
    rewrite_devices(graph_of(mlp), paths, {"a": DEVICES[0]})
  with pytest.raises(ValueError, match="node 'b' that the graph has not"):
    rewrite_devices(graph_of(mlp), {"a": ("b",)}, {"a": DEVICES[0]})


def test_load_puts_variables_and_ops_where_planned(item, plan, placed):
  loaded = saved_model.load(placed)
  for name in ("w", "v", "step"):
    assert getattr(loaded, name).device == plan[name]
  for call in (loaded.signatures["train"], loaded.train_step):
    _, nodes = executed_nodes(call, **BATCHES[0])
    found, elsewhere = agreement(item, plan, nodes)
    assert found >= 40
    assert elsewhere == []
    assert "_Send" in {op for op, _ in nodes.values()}


def test_load_without_soft_placement_is_refused(placed):
  tf.config.set_soft_device_placement(False)
  try:
    with pytest.raises(RuntimeError, match="set_soft_device_placement"):
      saved_model.load(placed)
  finally:
    tf.config.set_soft_device_placement(True)


@pytest.mark.parametrize("load", [saved_model.load, tf.saved_model.load])
def test_placed_model_trains_the_same(mlp, placed, load):
  original, loaded = tf.saved_model.load(mlp), load(placed)
  for batch in BATCHES:
    batch = {key: tf.constant(value) for key, value in batch.items()}
    np.testing.assert_allclose(
      loaded.signatures["train"](**batch)["loss"],
      original.signatures["train"](**batch)["loss"],
      rtol=RTOL,
    )
  for name in ("w", "v", "step"):
    np.testing.assert_allclose(
      getattr(loaded, name), getattr(original, name), rtol=RTOL
    )


@pytest.mark.parametrize("load", [saved_model.load, tf.saved_model.load])
def test_placed_compiled_calls_follow_their_variables(tmp_path, load):
  path = models.save_compiled(tmp_path / "model")
  item = read_item(path, signature="run")
  plan = models.spread(item, DEVICES[1:])
  assert plan["a"] != plan["b"]
  out = tmp_path / "placed"
  saved_model.write_saved_model(path, out, item, plan)
  original, placed = tf.saved_model.load(path), load(out)
  is_planned = load is saved_model.load
  x = np.float32([[1, 2], [3, 4]])
  for signature in ("run", "predict"):  # "predict" was not planned
    expected = original.signatures[signature](x=tf.constant(x))
    result, ran = executed_nodes(placed.signatures[signature], x=x)
    np.testing.assert_array_equal(result["y"], expected["y"])
    on = {x for op, x in ran.values() if op == "StatefulPartitionedCall"}
    variables = {placed.a.device}
    if signature == "run":
      variables.add(placed.b.device)
    assert variables <= on
  np.testing.assert_array_equal(placed.b, original.b)
  for variable, name in ((placed.a, "a"), (placed.b, "b")):
    assert variable.device == (plan[name] if is_planned else DEVICES[0])


@pytest.mark.parametrize("apart", [False, True])
def test_compiled_calls_of_other_signatures_that_lose_variables_are_named(
  tmp_path, apart
):
  module = tf.Module()
  module.a, module.b = tf.Variable([1.0]), tf.Variable([2.0])

  @tf.function(jit_compile=True)
  def compiled(x):
    return x * module.a + module.b

  spec = tf.TensorSpec([1], tf.float32, "x")
  step = tf.function(lambda x: {"y": x * module.a + module.b}, [spec])
  other = tf.function(lambda x: {"y": compiled(x)}, [spec])
  path = str(tmp_path / "model")
  signatures = {"run": step, "other": other}
  tf.saved_model.save(module, path, signatures=signatures)
  item = read_item(path, signature="run")
  plan = dict.fromkeys(item.op_names, DEVICES[1])
  if apart:
    plan["Variable_1" if "Variable_1" in plan else "b"] = DEVICES[2]
  out = tmp_path / "placed"
  written = saved_model.write_saved_model(path, out, item, plan)
  run = saved_model.load(out).signatures["other"]
  x = tf.constant([3.0])
  if apart:
    assert len(written.divided) == 1 and "compiled" in written.divided[0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="resource"):
      run(x=x)
  else:
    assert written.divided == ()
    assert run(x=x)["y"].numpy() == [5.0]


def test_placed_model_runs_in_the_v1_loader(mlp, placed):
  np.testing.assert_allclose(
    models.run_v1(placed, "train", BATCHES, num_devices=len(DEVICES)),
    models.run_v1(mlp, "train", BATCHES),
    rtol=RTOL,
  )


def test_placed_model_reads_back_as_the_same_item(item, plan, placed):
  again = read_item(placed, signature="train", rewrite=False)
  assert again.op_names == item.op_names
  devices = {node.name: node.device for node in again.graph_def.node}
  real = [name for name in again.op_names if again.paths[name]]
  assert {x: devices[x] for x in real} == {x: plan[x] for x in real}


def test_placed_loop_and_branch_give_the_same(tmp_path):
  path = models.save_loop(tmp_path / "model")
  item = read_item(path)
  out = tmp_path / "placed"
  saved_model.write_saved_model(path, out, item, models.spread(item, DEVICES))
  original, placed = tf.saved_model.load(path), saved_model.load(out)
  for x in (np.float32([[1, 2], [3, 4]]), -np.ones((2, 2), "f")):
    x = tf.constant(x)
    np.testing.assert_allclose(
      placed.signatures["run"](x=x)["y"],
      original.signatures["run"](x=x)["y"],
      rtol=RTOL,
    )
  assert placed.count.numpy() == original.count.numpy() == 6


@pytest.mark.parametrize("as_text", [True, False])
def test_write_saved_model_rewrites_the_graph_with_the_tags(tmp_path, as_text):
  path = models.save_v1_two_graphs(tmp_path / "model", as_text)
  item = read_item(path, tags=["train"])
  plan = dict.fromkeys(item.op_names, DEVICES[1])
  out = tmp_path / "placed"
  saved_model.write_saved_model(path, out, item, plan, tags=["train"])
  assert not (out / "saved_model.pbtxt").exists()
  for tag, placed in (("train", True), ("serve", False)):
    again = read_item(out, tags=[tag])
    devices = {n.name: n.device for n in again.graph_def.node}
    expected = {DEVICES[1]} if placed else {""}
    assert {devices[x] for x in again.op_names} == expected
  (variable,) = saved_model.load(out, tags=["train"]).variables
  assert variable.device == DEVICES[1]


def test_placed_table_is_on_its_device(tmp_path):
  path = models.save_vocabulary(tmp_path / "model", tmp_path / "words.txt")
  item = read_item(path)
  plan = dict.fromkeys(item.op_names, DEVICES[2])
  out = tmp_path / "placed"
  report = saved_model.write_saved_model(path, out, item, plan)
  assert report.num_variables == 2
  words = np.array(["c", "x", "a"])
  lookup = saved_model.load(out).signatures["lookup"]
  result, nodes = executed_nodes(lookup, words=words)
  np.testing.assert_array_equal(result["ids"], [20, -10, 0])
  on = {device for op, device in nodes.values() if op == "LookupTableFindV2"}
  assert on == {DEVICES[2]}


def test_write_saved_model_copies_the_rest_and_leaves_the_input(
  mlp, item, plan, tmp_path
):
  source = tmp_path / "source"
  shutil.copytree(mlp, source)
  (source / "assets.extra").mkdir()
  (source / "assets.extra" / "warm_up").write_bytes(b"requests")
  (source / "keras_metadata.pb").write_bytes(b"metadata")
  before = files_of(source)
  out = tmp_path / "placed"
  saved_model.write_saved_model(source, out, item, plan)
  assert files_of(source) == before
  after = files_of(out)
  assert after.keys() == before.keys()
  rewritten = {"saved_model.pb", "fingerprint.pb"}
  assert {k for k in before if before[k] != after[k]} == rewritten
  assert sorted(os.listdir(tmp_path)) == ["placed", "source"]


def test_write_saved_model_links_inside_become_files(mlp, item, plan, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(mlp, source)
  (source / "shared.extra" / "words").mkdir(parents=True)
  (source / "shared.extra" / "words" / "first").write_text("word")
  (source / "shared.extra" / "again").symlink_to("words")
  (source / "shared.extra" / "second").symlink_to("words/first")
  saved_model.write_saved_model(source, tmp_path / "placed", item, plan)
  copied = files_of(tmp_path / "placed" / "shared.extra")
  names = ("words/first", "again/first", "second")
  assert copied == dict.fromkeys(names, b"word")
  for name in ("again", "second"):
    assert not (tmp_path / "placed" / "shared.extra" / name).is_symlink()


def test_write_saved_model_links_outside_are_followed_only_if_asked(
  mlp, item, plan, tmp_path
):
  source, shared, out = (tmp_path / x for x in ("source", "shared", "placed"))
  shutil.copytree(mlp, source)
  shared.mkdir()
  (shared / "words").write_text("word")
  for link, target in (
    (source / "shared.extra", shared),
    (shared / "x", "words"),
  ):
    link.symlink_to(target)
    with pytest.raises(
      ValueError, match="shared.extra is a link out of the model"
    ):
      saved_model.write_saved_model(source, out, item, plan)
    assert not out.exists()
  saved_model.write_saved_model(source, out, item, plan, follow_links=True)
  assert files_of(out / "shared.extra") == {"words": b"word", "x": b"word"}
  assert not (out / "shared.extra").is_symlink()


@pytest.mark.parametrize(
  ("target", "message"),
  [
    ("none", "shared.extra/x is a link that leads nowhere"),
    (".", "shared.extra/x is a link to a directory that it is in"),
    ("../..", "shared.extra/x is a link to a directory that it is in"),
    ("/dev/null", "shared.extra/x is neither a file nor a directory"),
  ],
)
def test_write_saved_model_link_that_cannot_be_copied_is_rejected(
  mlp, item, plan, tmp_path, target, message
):
  source = tmp_path / "source"
  shutil.copytree(mlp, source)
  (source / "shared.extra").mkdir()
  (source / "shared.extra" / "x").symlink_to(target)
  with pytest.raises(ValueError, match=message):
    saved_model.write_saved_model(
      source, tmp_path / "placed", item, plan, follow_links=True
    )
  assert os.listdir(tmp_path) == ["source"]


def test_write_saved_model_fingerprint_is_the_new_models(mlp, placed):
  old, new = (
    tf.saved_model.experimental.read_fingerprint(x) for x in (mlp, placed)
  )
  assert new.saved_model_checksum != old.saved_model_checksum
  assert new.checkpoint_hash == old.checkpoint_hash
  written = FingerprintDef.FromString(files_of(placed)["fingerprint.pb"])
  computed = FingerprintDef.FromString(
    fingerprinting.CreateFingerprintDef(placed)
  )
  assert written.uuid
  written.uuid = computed.uuid  # TensorFlow draws a random one each time
  assert written == computed


def test_write_saved_model_twice_gives_the_same_bytes(
  mlp, item, plan, placed, tmp_path
):
  saved_model.write_saved_model(mlp, tmp_path / "again", item, plan)
  assert files_of(tmp_path / "again") == files_of(placed)


def test_write_saved_model_existing_target_needs_overwrite(
  mlp, item, plan, tmp_path
):
  out = tmp_path / "placed"
  shutil.copytree(mlp, out)
  with pytest.raises(ValueError, match="placed exists; give overwrite=True"):
    saved_model.write_saved_model(mlp, out, item, plan)
  assert files_of(out) == files_of(mlp)
  (out / "old").write_text("left over")
  saved_model.write_saved_model(mlp, out, item, plan, overwrite=True)
  assert not (out / "old").exists()
  assert os.listdir(tmp_path) == ["placed"]


def test_write_saved_model_never_replaces_what_is_no_model(
  mlp, item, plan, tmp_path
):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(
    ValueError, match="is not a SavedModel, so overwrite=True"
  ):
    saved_model.write_saved_model(mlp, tmp_path, item, plan, overwrite=True)
  assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("where", [".", "placed", "variables/placed"])
def test_write_saved_model_inside_the_input_is_rejected(mlp, item, plan, where):
  before = files_of(mlp)
  with pytest.raises(ValueError, match="are the same|is inside"):
    saved_model.write_saved_model(mlp, os.path.join(mlp, where), item, plan)
  assert files_of(mlp) == before


def test_write_saved_model_around_the_input_is_rejected(mlp, item, plan):
  parent = os.path.dirname(mlp)
  with pytest.raises(ValueError, match="is inside the output"):
    saved_model.write_saved_model(mlp, parent, item, plan, overwrite=True)


def test_write_saved_model_full_disk_leaves_nothing(mlp, item, plan, tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(OSError, match="File too large: .*/placed"):
      saved_model.write_saved_model(mlp, tmp_path / "placed", item, plan)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert os.listdir(tmp_path) == []


# A parent that kills its children while they write, one after the other; it
# forks before TensorFlow has made threads, and imports it only once.
_KILLED_WRITERS = """
import os, random, signal, sys, time
from baechi_tf import private
from baechi_tf import saved_model
from baechi_tf.graph_item import read_item

source, target = sys.argv[1:]
item = read_item(source, signature="train")
plans = [dict.fromkeys(item.op_names, f"/device:CPU:{i}") for i in range(2)]
allowed = []
for plan in plans:
  saved_model.write_saved_model(source, target, item, plan, overwrite=True)
  allowed.append({x: open(f"{target}/{x}", "rb").read() for x in
                  ("saved_model.pb", "fingerprint.pb", "big")})
draw = random.Random(0)
leftovers = 0
for _ in range(40):
  child = os.fork()
  if not child:
    while True:
      for plan in plans:
        saved_model.write_saved_model(
          source, target, item, plan, overwrite=True)
  time.sleep(draw.uniform(0.0, 0.1))
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  found = {x: open(f"{target}/{x}", "rb").read() for x in allowed[0]}
  assert found in allowed, "half a model"
  leftovers += len(os.listdir(os.path.dirname(target))) - 1
saved_model.write_saved_model(source, target, item, plans[0], overwrite=True)
assert os.listdir(os.path.dirname(target)) == [os.path.basename(target)]
print("killed in the middle:", leftovers)
"""


@pytest.mark.slow
def test_write_saved_model_killed_is_old_or_new(mlp, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(mlp, source)
  (source / "big").write_bytes(b"x" * 2**20)
  (tmp_path / "out").mkdir()
  result = run_script(
    _KILLED_WRITERS, str(source), str(tmp_path / "out" / "placed")
  )
  assert result.returncode == 0, result.stderr
  assert int(result.stdout.split()[-1]) > 0


def test_load_flat_graph_agrees_with_placed_model(mlp, placed):
  # The flat graph with the plan's devices in it is the third way to run it.
  item = read_item(placed, signature="train")
  with session(item.graph_def) as running:
    item.initialize(running)
    losses = [
      running.run(
        list(item.fetches), {x.tensor: batch[x.name] for x in item.feeds}
      )
      for batch in BATCHES
    ]
  np.testing.assert_allclose(
    losses, models.run_v1(mlp, "train", BATCHES), rtol=RTOL
  )


def test_missing_private_module_is_an_error_that_names_it_and_the_version():
  with pytest.raises(ImportError, match="the costs of ops") as raised:
    private.find("tensorflow.python.gone", "the costs of ops")
  message = str(raised.value)
  assert f"TensorFlow {tf.__version__} has no tensorflow.python.gone" in message
