"""The command line on real TensorFlow models."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from baechi_tf.cli import progress
from baechi_tf.cli.main import main
from baechi_tf.cluster import read_cluster
from baechi_tf.costs.profile import read_profile
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_files import read_graph_file
from baechi_tf.graph_item import read_item
from baechi_tf.pipeline import place
from baechi_tf.saved_model import load
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf

STEP = ("--signature=train", "--batch-size=5")


def cluster_text(memory: str, *fields: str) -> str:
  """Two CPU devices with links that cost nothing, so that both are used."""
  extra = "".join(f"{x}\n" for x in fields)
  devices = "".join(
    f'[[device]]\nname = "{name}"\nmemory = "{memory}"\n{extra}'
    for name in DEVICES[:2]
  )
  return f"{devices}[link]\nlatency_us = 0\nbytes_per_us = 1e9\n"


@pytest.fixture(scope="module")
def saved_mlp(tmp_path_factory) -> str:
  return models.save_mlp(tmp_path_factory.mktemp("saved") / "mlp")


@pytest.fixture(scope="module")
def profile(saved_mlp, tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp("profile") / "mlp.profile")
  assert main(["profile", saved_mlp, path, *STEP, "--num-steps=3"]) == 0
  return path


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
  """A directory with a cluster, and no slow-machine chatter."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(progress, "INTERVAL_S", 1000.0)
  (tmp_path / "cluster.toml").write_text(cluster_text("1 MiB"))
  return tmp_path


def complaint(capsys, *argv: str, code: int = 2) -> str:
  """Runs a command that must fail, with one line and nothing written."""
  before = sorted(os.listdir("."))
  assert main(list(argv)) == code
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith("baechi: ")
  assert captured.err.count("\n") == 1
  assert sorted(os.listdir(".")) == before
  return captured.err


def losses(model, num_steps: int = 3) -> list[float]:
  train = model.signatures["train"]
  batches = [models.mlp_batch(seed) for seed in range(num_steps)]
  return [
    float(train(**{k: tf.constant(v) for k, v in batch.items()})["loss"])
    for batch in batches
  ]


def test_placed_model_runs_on_its_devices_with_the_same_losses(
  saved_mlp, profile, capsys
):
  argv = ["place", saved_mlp, "placed", "--cluster=cluster.toml", *STEP]
  argv += [f"--profile={profile}", "--placer=m_topo", "--report=report"]
  assert main([*argv, "--no-coplacement"]) == 0
  captured = capsys.readouterr()
  assert "op costs on CPU: " in captured.out
  assert captured.err == ""
  with open("report/placement.json") as file:
    devices = set(json.load(file)["placement"].values())
  assert devices == set(DEVICES[:2])
  # The same kernels on the same numbers: only the order of additions inside
  # one kernel could differ.
  np.testing.assert_allclose(
    losses(load("placed")), losses(tf.saved_model.load(saved_mlp)), rtol=1e-5
  )


def test_pinned_ops_are_on_their_devices_in_the_written_graph(
  saved_mlp, profile, capsys
):
  argv = ["--cluster=cluster.toml", *STEP, f"--profile={profile}"]
  argv += ["--search-evaluations=300", "--json"]
  pins = (("MatMul", DEVICES[1]), ("^(?!.*MatMul)", DEVICES[0]))
  flags = [f"--pin={regex}={device}" for regex, device in pins]
  assert main(["place", saved_mlp, "placed", *argv, *flags]) == 0
  printed = json.loads(capsys.readouterr().out)
  item = read_item("placed", signature="train", rewrite=False)
  # Inputs stay on the first device, TensorFlow makes constants where they
  # are used, and an op without a path is no node.
  fed = {parse_ref(feed.tensor)[0] for feed in item.feeds}
  written = {
    node.name: node.device
    for node in item.graph_def.node
    if item.paths.get(node.name) and node.op != "Const" and node.name not in fed
  }
  for (regex, device), pin in zip(pins, printed["pins"], strict=True):
    held = [x for name, x in written.items() if re.search(regex, name)]
    assert pin["num_ops"] >= len(held) > 0
    assert set(held) == {device}
  np.testing.assert_allclose(
    losses(load("placed")), losses(tf.saved_model.load(saved_mlp)), rtol=1e-5
  )
  # What is written are devices of a model: ignored, kept, or not to be had.
  plan = ["place", "placed", "plan.json", "--emit=plan", *argv]
  assert main(plan) == 0
  assert "ops have devices in the model, which" in capsys.readouterr().out
  assert main([*plan, "--keep-devices", "--overwrite"]) == 0
  with open("plan.json") as file:
    kept = json.load(file)["placement"]
  assert {name: kept[name] for name in written} == written
  arguments = {"signature": "train", "profile": profile, "batch_size": 5}
  for steer in {"keep_devices": True, "placer": "m_etf"}, {"plan": "plan.json"}:
    again = place(
      "placed", "again", read_cluster("cluster.toml"),
      **arguments, **steer, overwrite=True,
    )  # fmt: skip
    again = again.placement.as_dict()
    assert {name: again[name] for name in written} == written
  capsys.readouterr()
  error = complaint(
    capsys, *plan, "--keep-devices", "--overwrite",
    f"--exclude={DEVICES[1]}",
  )  # fmt: skip
  assert "in the model, which is none of the cluster's devices" in error
  error = complaint(
    capsys, *plan, "--keep-devices", "--overwrite", f"--pin=Mat={DEVICES[0]}"
  )
  assert "that --keep-devices keeps contradict each other" in error


def test_inputs_of_a_step_come_from_a_file(tmp_path_factory, capsys):
  # Of a sparse tensor's parts no shape is known, and not every value will do.
  path = models.save_v1_sparse(tmp_path_factory.mktemp("sparse") / "model")
  np.savez(
    "in.npz",
    **{
      "x/values": np.float32([3]),
      "x/indices": np.int64([[0, 1]]),
      "x/dense_shape": np.int64([2, 2]),
    },
  )
  argv = [path, "plan.json", "--cluster=cluster.toml", "--inputs=in.npz"]
  assert main(["place", *argv, "--emit=plan", "--json"]) == 0
  (costs,) = json.loads(capsys.readouterr().out)["costs"]
  assert costs["num_measured"] == 5
  assert main(["simulate", *argv]) == 0
  assert main(["compare", *argv[:1], *argv[2:]]) == 0
  capsys.readouterr()
  assert "input 'x/values' has shape" in complaint(
    capsys, "compare", path, "--cluster=cluster.toml"
  )


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--inputs=none.npz"], "none.npz: No such file"),
    (["--inputs=cluster.toml"], "cluster.toml: not a NumPy .npz archive"),
    (["--inputs=in.npz"], "input 'y' is missing; the model's inputs are"),
    (["--inputs=in.npz", "--estimate"], "of no use with --estimate: estimates"),
    (["--inputs=in.npz", "--profile=x"], "of no use with --profile"),
    (["--inputs=in.npz", "--batch-size=2"], "of no use with --batch-size"),
    (["--inputs=in.npz", "--input-shape=x=1,4"], "no use with --input-shape"),
  ],
)
def test_wrong_inputs_are_refused(argv, message, saved_mlp, capsys):
  np.savez("in.npz", x=np.ones([5, 4], np.float32))
  argv = ("place", saved_mlp, "p", "--cluster=cluster.toml", *argv)
  assert message in complaint(capsys, *argv, "--signature=train")


def test_two_runs_from_a_profile_write_the_same_bytes(
  saved_mlp, profile, scratch
):
  for name in "xy":
    argv = ["place", saved_mlp, name, "--cluster=cluster.toml", *STEP]
    argv += [f"--profile={profile}", f"--report={name}-report"]
    assert main([*argv, "--search-evaluations=1000"]) == 0
  written = [
    {
      str(path.relative_to(directory)): path.read_bytes()
      for name in (f"{x}", f"{x}-report")
      for directory in [scratch / name]
      for path in sorted(directory.rglob("*"))
      if path.is_file()
    }
    for x in "xy"
  ]
  assert written[0] == written[1]


def test_place_measures_without_a_profile(saved_mlp, capsys):
  argv = ["place", saved_mlp, "plan.json", "--cluster=cluster.toml", *STEP]
  assert main([*argv, "--emit=plan", "--json"]) == 0
  (costs,) = json.loads(capsys.readouterr().out)["costs"]
  assert costs["device_type"] == "CPU"
  assert costs["num_measured"] > 0


def test_place_estimates_a_device_that_is_not_here(saved_mlp, scratch, capsys):
  text = cluster_text("1 MiB", 'type = "V100"')
  text += (
    '[device_type.V100]\nkind = "GPU"\ncores = 80\nfrequency_mhz = 1380\n'
    'bytes_per_us = 900000\narchitecture = "7.0"\nlaunch_us = 5\n'
  )
  (scratch / "cluster.toml").write_text(text)
  argv = ["place", saved_mlp, "plan.json", "--cluster=cluster.toml", *STEP]
  assert main([*argv, "--emit=plan", "--json"]) == 0
  (costs,) = json.loads(capsys.readouterr().out)["costs"]
  assert (costs["device_type"], costs["num_measured"]) == ("V100", 0)


def test_plan_of_a_model_is_simulated(saved_mlp, profile, capsys):
  argv = [saved_mlp, "plan.json", "--cluster=cluster.toml", *STEP]
  argv += [f"--profile={profile}", "--json"]
  assert main(["place", *argv, "--emit=plan"]) == 0
  placed = json.loads(capsys.readouterr().out)
  assert main(["simulate", *argv]) == 0
  simulated = json.loads(capsys.readouterr().out)
  assert simulated["makespan_us"] == placed["makespan_us"]


@pytest.mark.parametrize("name", ["graph.pb", "graph.pbtxt", "graph.meta"])
def test_graph_file_becomes_a_graph_file(name, scratch, capsys):
  graph = tf.Graph()
  with graph.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
    tf.add(tf.exp(x), tf.sin(x), name="y")
  if name.endswith(".meta"):
    with graph.as_default():
      tf.compat.v1.train.export_meta_graph(name)
  else:
    tf.io.write_graph(graph, ".", name, as_text=name.endswith("txt"))
  output = f"placed-{name}".replace(".meta", ".pb")
  argv = ["place", name, output, "--cluster=cluster.toml"]
  assert main([*argv, "--fetch=y", "--input-shape=x=2,4"]) == 0
  placed = read_graph_file(output).graph_def
  original = read_graph_file(name).graph_def
  assert {x.device for x in placed.node} <= set(DEVICES[:2])
  for node in placed.node:
    assert node.device
    node.device = ""
  assert placed == original


def test_profile_holds_every_op(profile, saved_mlp, capsys):
  (costs,) = read_profile(profile).values()
  assert main(["inspect", saved_mlp, *STEP, "--json"]) == 0
  fields = json.loads(capsys.readouterr().out)
  assert fields["num_ops"] == len(costs)


def test_inspect_shows_signatures_variables_and_types(saved_mlp, capsys):
  assert main(["inspect", saved_mlp, *STEP, "--json"]) == 0
  fields = json.loads(capsys.readouterr().out)
  assert fields["signatures"]["train"] == {
    "inputs": {"x": "float32 [?, 4]", "y": "float32 [?, 2]"},
    "outputs": {"loss": "float32 []"},
  }
  variables = {x["name"]: x["bytes"] for x in fields["variables"].values()}
  assert variables == {"w": 4 * 8 * 4, "v": 8 * 2 * 4, "step": 8}
  assert fields["op_types"]["AssignSubVariableOp"]["num_ops"] == 2
  assert main(["inspect", saved_mlp, *STEP]) == 0
  assert "signature train: x: float32 [?, 4]" in capsys.readouterr().out


def test_links_are_printed_as_toml(capsys):
  assert main(["bench-links", "--largest=256"]) == 0
  text = capsys.readouterr().out
  assert "[[link.between]]" in text
  assert 'devices = ["/device:CPU:0", "/device:CPU:1"]' in text


def test_unknown_device_of_a_link_is_refused(capsys):
  argv = ("bench-links", "--device=/device:CPU:0", "--device=/device:GPU:7")
  assert "/device:GPU:7' is not there" in complaint(capsys, *argv)


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--signature=fly"], "no signature 'fly'; there are 'serving_default'"),
    (["--signature=train"], "pass --batch-size"),
    (["--fetch=fly"], "no op 'fly' to fetch"),
    (["--input-shape=z=1,4"], "there is no such input"),
    (["--tags=tpu"], "no graph has the tags 'tpu'; there are 'serve'"),
    (["--profile=cluster.toml"], "cluster.toml: not a profile"),
  ],
)
def test_wrong_argument_for_a_model_is_refused(
  argv, message, saved_mlp, capsys
):
  argv = ("place", saved_mlp, "p", "--cluster=cluster.toml", *argv)
  assert message in complaint(capsys, *argv)


def test_step_that_fails_on_its_inputs_is_refused(saved_mlp, capsys):
  shapes = ["--input-shape=x=5,4", "--input-shape=y=3,2"]
  argv = ("profile", saved_mlp, "p", "--signature=train", *shapes)
  line = complaint(capsys, *argv)
  assert "the step fails here: Incompatible shapes: [5,2] vs. [3,2];" in line


def save_call(path, function) -> str:
  """Saves a function of one [2, 3] input."""
  module = tf.Module()
  module.call = tf.function(function, input_signature=[tf.TensorSpec([2, 3])])
  signatures = {"call": module.call}
  tf.saved_model.save(module, str(path), signatures=signatures)
  return str(path)


def rnn_of_a_gpu(x):
  return {
    "y": tf.raw_ops.CudnnRNN(
      input=x[None], input_h=x[None], input_c=x[None], params=tf.ones([9])
    ).output
  }


def rows_of_python(x):
  return {
    "y": tf.map_fn(lambda row: tf.numpy_function(np.sin, [row], tf.float32), x)
  }


@pytest.mark.parametrize(
  ("function", "reason", "advice", "note"),
  [
    (
      rnn_of_a_gpu,
      "No OpKernel was registered to support Op 'CudnnRNN'",
      "; profile the model where the op can run",
      "1 ops have no kernel for a CPU",
    ),
    (
      rows_of_python,
      "calls a Python function, which is not in the model",
      "export the model without py_function",
      "runs in no other process",
    ),
  ],
)
def test_op_that_cannot_run_is_refused_or_noted(
  function, reason, advice, note, scratch, capsys
):
  text = cluster_text("1 MiB") + (
    '[device_type.CPU]\nkind = "CPU"\ncores = 1\nfrequency_mhz = 2000\n'
    "bytes_per_us = 10000\n"
  )
  (scratch / "cluster.toml").write_text(text)
  path = save_call(scratch / "model", function)
  argv = ["place", path, "plan.json", "--cluster=cluster.toml", "--emit=plan"]
  line = complaint(capsys, *argv)
  assert reason in line
  assert advice in line
  assert "--inputs" not in line
  assert main([*argv, "--estimate", "--json"]) == 0
  notes = json.loads(capsys.readouterr().out)["notes"]
  assert any(note in x for x in notes)


def test_examples_are_made_up_or_their_damage_is_quoted(scratch, capsys):
  path = models.save_v1_examples(scratch / "model")
  argv = ["place", path, "plan.json", "--cluster=cluster.toml", "--emit=plan"]
  argv.append("--signature=examples")
  assert main([*argv, "--batch-size=3"]) == 0
  capsys.readouterr()
  os.remove("plan.json")
  # Bytes that are no text either, which TensorFlow puts into its complaint.
  np.savez("in.npz", **{"in": np.array([b"\xff\xfe"])})
  line = complaint(capsys, *argv, "--inputs=in.npz")
  assert "fails with the inputs of in.npz: Could not parse example" in line
  assert "made-up" not in line
  assert "\\xff\\xfe" in line


def test_damaged_variables_are_refused(saved_mlp, capsys):
  shutil.copytree(saved_mlp, "damaged")
  with open("damaged/variables/variables.data-00000-of-00001", "wb"):
    pass
  line = complaint(capsys, "profile", "damaged", "p", *STEP)
  assert "damaged: the step fails here: Read less bytes" in line


def test_profile_of_another_model_is_refused(
  saved_mlp, tmp_path_factory, capsys
):
  other = models.save_loop(tmp_path_factory.mktemp("other") / "loop")
  path = str(tmp_path_factory.mktemp("other") / "loop.profile")
  assert main(["profile", other, path, "--num-steps=1"]) == 0
  capsys.readouterr()
  argv = ("place", saved_mlp, "p", "--cluster=cluster.toml", *STEP)
  line = complaint(capsys, *argv, f"--profile={path}")
  assert line.startswith(f"baechi: {path}: ")
  assert "made for another model" in line


def test_cnn_is_placed_by_measuring_with_each_kernel_on_one_device(
  scratch, capsys
):
  saved = models.save_cnn(scratch / "cnn")
  step = ("--signature=train", "--batch-size=2")
  assert main(["profile", saved, "cnn.profile", *step, "--num-steps=2"]) == 0
  costs = read_profile("cnn.profile")["CPU"]
  fused = {x: cost.fused_into for x, cost in costs.items() if cost.fused_into}
  assert {costs[x].op_type for x in fused} == {"Conv2D", "BiasAddGrad"}
  capsys.readouterr()
  # No [device_type.CPU] table to estimate from.
  argv = ["place", saved, "plan", "--cluster=cluster.toml", *step, "--json"]
  argv += ["--profile=cnn.profile", "--emit=plan", "--placer=m_topo"]
  assert main([*argv, "--no-coplacement"]) == 0
  with open("plan", encoding="utf-8") as file:
    device_of = json.load(file)["placement"]
  assert len(set(device_of.values())) == 2
  assert all(device_of[x] == device_of[host] for x, host in fused.items())


def test_model_too_large_ends_with_3(saved_mlp, profile, scratch, capsys):
  (scratch / "cluster.toml").write_text(cluster_text("100 B"))
  argv = ("place", saved_mlp, "p", "--cluster=cluster.toml", *STEP)
  line = complaint(capsys, *argv, f"--profile={profile}", "--report=r", code=3)
  assert "bytes" in line
  assert "would help" in line


def damaged(saved_mlp: str, kind: str) -> str:
  """Copies what is left of a model."""
  with open(os.path.join(saved_mlp, "saved_model.pb"), "rb") as file:
    data = file.read()
  os.mkdir("damaged")
  if kind == "truncated":
    data = data[: len(data) // 2]
  if kind != "empty":
    with open("damaged/saved_model.pb", "wb") as file:
      file.write(data)
  return "damaged"


@pytest.mark.parametrize(
  "kind, message",
  [
    ("empty", "not a SavedModel"),
    ("truncated", "damaged or truncated"),
    ("without variables", "variables.index is missing"),
  ],
)
@pytest.mark.parametrize("command", ["place", "inspect", "profile"])
def test_damaged_model_is_refused(command, kind, message, saved_mlp, capsys):
  argv = [command, damaged(saved_mlp, kind), *STEP]
  if command != "inspect":
    argv.insert(2, "out")
  if command == "place":
    argv.append("--cluster=cluster.toml")
  assert message in complaint(capsys, *argv)


def test_real_process_says_nothing_but_the_result(saved_mlp, scratch):
  script = f"import os; os.chdir({str(scratch)!r})\n" + (
    "from baechi_tf.cli.main import run; run()"
  )
  argv = ("inspect", saved_mlp, "--signature=train")
  result = run_script(script, *argv)
  assert (result.returncode, result.stderr) == (0, "")
  argv = ("inspect", saved_mlp, "--signature=fly")
  result = run_script(script, *argv)
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith("baechi: ")
  assert result.stderr.count("\n") == 1
